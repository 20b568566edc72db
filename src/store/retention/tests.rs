use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::base::Percent;
use crate::config::{DiskReserve, StoreSettings};
use crate::store::fixture::{Fixture, roomy};

fn bounds(retained: &RetentionReport) -> Vec<(IncidentId, StoreLimit)> {
    assert!(retained.failed.is_empty(), "{:?}", retained.failed);
    retained.removed.iter().map(|it| (it.id, it.bound)).collect()
}

#[test]
fn nothing_goes_while_every_bound_holds() {
    let it = Fixture::new(roomy());
    let ids = [it.closed(10), it.closed(10)];
    let retained = it.store.retain();
    assert!(retained.removed.is_empty());
    assert_eq!(retained.incidents, 2);
    assert_eq!(it.ids(), [ids[1], ids[0]]);
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let it = Fixture::new(roomy());
    let ids: Vec<_> = (0..5).map(|_| it.closed(10)).collect();
    it.store.set_limits(StoreSettings { max_incidents: 3, ..roomy() });
    let gone = bounds(&it.store.retain());
    assert_eq!(gone, [(ids[1], StoreLimit::Incidents), (ids[2], StoreLimit::Incidents)]);
    // Creating another incident evicts one.
    let sixth = it.closed(10);
    assert_eq!(it.ids(), [sixth, ids[4], ids[0]], "the first and the last stay longest");
}

#[test]
fn one_rule_does_not_push_out_the_others() {
    let it = Fixture::new(roomy());
    let only = it.closed_by("lag", 10);
    let pair = [it.closed_by("cpu", 5000), it.closed_by("cpu", 5000)];
    let often: Vec<_> = (0..20).map(|_| it.closed_by("memory", 10)).collect();
    let keep = |max_incidents| {
        it.store.set_limits(StoreSettings { max_incidents, ..roomy() });
        it.store.retain();
        it.ids().into_iter().rev().collect::<Vec<_>>()
    };
    assert_eq!(keep(6), [only, pair[0], pair[1], often[0], often[18], often[19]]);
    assert_eq!(keep(5), [only, pair[0], pair[1], often[0], often[19]]);
    assert_eq!(keep(4), [only, pair[1], often[0], often[19]], "of two alike the older rule's");
    assert_eq!(keep(3), [only, pair[1], often[19]], "the last of each");
    assert_eq!(keep(1), [often[19]]);
}

#[test]
fn for_bytes_it_is_the_rule_that_holds_most_of_them() {
    let it = Fixture::new(roomy());
    let small: Vec<_> = (0..5).map(|_| it.closed_by("lag", 10)).collect();
    let large: Vec<_> = (0..3).map(|_| it.closed_by("memory", 100_000)).collect();
    let all = it.store.retain().bytes;
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all.get() - 1), ..roomy() });
    assert_eq!(bounds(&it.store.retain()), [(large[1], StoreLimit::Bytes)]);
    assert_eq!(it.ids().len(), small.len() + 2);
}

#[test]
fn the_oldest_go_when_they_are_too_large_at_the_byte() {
    let it = Fixture::new(roomy());
    let ids: Vec<_> = (0..3).map(|_| it.closed(1000)).collect();
    let all = it.store.retain().bytes;
    it.store.set_limits(StoreSettings { max_bytes: all, ..roomy() });
    assert_eq!(bounds(&it.store.retain()), []);
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all.get() - 1), ..roomy() });
    let retained = it.store.retain();
    assert_eq!(bounds(&retained), [(ids[1], StoreLimit::Bytes)]);
    assert_eq!(retained.bytes.get() + retained.removed[0].bytes.get(), all.get());
}

#[test]
fn those_past_their_age_go_but_for_the_first_and_the_last_of_a_rule() {
    let it = Fixture::new(StoreSettings { max_age: Duration::from_secs(10), ..roomy() });
    let ids: Vec<_> = (0..4).map(|_| it.closed(10)).collect();
    let only = it.closed_by("cpu", 10);
    it.clock.advance(Duration::from_secs(7));
    assert_eq!(bounds(&it.store.retain()), [], "ten seconds old is not past ten seconds");
    it.clock.advance(Duration::from_millis(1));
    assert_eq!(bounds(&it.store.retain()), [(ids[1], StoreLimit::Age)]);
    it.clock.advance(Duration::from_secs(10));
    let retained = it.store.retain();
    assert_eq!(bounds(&retained), [(ids[2], StoreLimit::Age)]);
    assert_eq!(it.ids(), [only, ids[3], ids[0]]);
    let log: Vec<String> = it.store.take_removed().iter().map(ToString::to_string).collect();
    assert_eq!(log.len(), 2, "both since the start");
    let expected = format!("incident {} of `memory` removed: max_age (", ids[1]);
    assert!(log[0].starts_with(&expected) && log[0].ends_with(" 0 h old)"), "{}", log[0]);
    assert!(it.store.take_removed().is_empty());
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn a_clock_that_is_set_while_the_process_runs_ages_nothing() {
    for days in [15, -15, 4000, -4000] {
        let it = Fixture::new(StoreSettings { max_age: 14 * DAY, ..roomy() });
        let ids: Vec<_> = (0..4).map(|_| it.closed(10)).collect();
        it.clock.step_wall(jiff::SignedDuration::from_hours(24 * days));
        assert_eq!(bounds(&it.store.retain()), [], "{days}");
        it.clock.advance(13 * DAY);
        assert_eq!(bounds(&it.store.retain()), [], "{days}");
        // An incident that opens after the clock was set is the last of its rule, whatever its name
        // is.
        let last = it.closed(10);
        it.clock.advance(2 * DAY);
        let gone = bounds(&it.store.retain());
        assert_eq!(
            gone,
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age), (ids[3], StoreLimit::Age)]
        );
        it.clock.advance(30 * DAY);
        assert_eq!(bounds(&it.store.retain()), [], "{days}");
        assert!(it.store.find(last).is_ok() && it.store.find(ids[0]).is_ok());
    }
}

/// Reopens the store in the directory of `it` as after a reboot, with the wall clock at `wall`.
fn rebooted(it: Fixture, wall: Timestamp, settings: StoreSettings) -> (Fixture, RetentionReport) {
    let clock = std::sync::Arc::new(crate::base::ManualClock::new(wall));
    let dir = it.dir().to_owned();
    let Fixture { temp, store, .. } = it;
    drop(store);
    let (store, recovery) =
        crate::store::Store::open(&dir, settings, std::sync::Arc::clone(&clock) as _).unwrap();
    (Fixture { temp, clock, store }, recovery.retained)
}

#[test]
fn a_clock_that_is_wrong_at_a_start_ages_nothing() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..roomy() };
    for wall in ["2026-12-08T04:00:00Z", "2037-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
        let it = Fixture::new(settings());
        let ids: Vec<_> = (0..4).map(|_| it.closed(10)).collect();
        let (it, retained) = rebooted(it, wall.parse().unwrap(), settings());
        assert_eq!(bounds(&retained), [], "{wall}");
        // Correcting the wall clock while the process runs does not matter either.
        let right: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        it.clock.step_wall(right.duration_since(crate::base::Clock::wall(&*it.clock)));
        assert_eq!(bounds(&it.store.retain()), [], "{wall}");
        it.clock.advance(15 * DAY);
        assert_eq!(
            bounds(&it.store.retain()),
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age)]
        );
    }
}

#[test]
fn what_earlier_processes_saw_counts() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..roomy() };
    let mut it = Fixture::new(settings());
    let ids: Vec<_> = (0..3).map(|_| it.closed(10)).collect();
    for _ in 0..14 {
        it.clock.advance(DAY - Duration::from_secs(60));
        assert_eq!(bounds(&it.store.retain()), []);
        let (next, recovery) = it.reopen(settings());
        assert_eq!(bounds(&recovery.retained), []);
        // At most an hour without a process, then another boot.
        let wall = crate::base::Clock::wall(&*next.clock);
        let (next, retained) = rebooted(next, wall, settings());
        assert_eq!(bounds(&retained), []);
        it = next;
    }
    it.clock.advance(Duration::from_secs(3600));
    assert_eq!(bounds(&it.store.retain()), [(ids[1], StoreLimit::Age)]);
}

#[test]
fn an_age_that_was_not_recorded_starts_at_zero() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..roomy() };
    for text in [None, Some("{"), Some("[]")] {
        let it = Fixture::new(settings());
        for _ in 0..3 {
            it.closed(10);
        }
        it.store.retain();
        let path = it.dir().join("ages.json");
        match text {
            None => fs::remove_file(path).unwrap(),
            Some(text) => fs::write(path, text).unwrap(),
        }
        it.clock.advance(20 * DAY);
        let (it, recovery) = it.reopen(settings());
        assert_eq!(bounds(&recovery.retained), [], "{text:?}");
        it.clock.advance(15 * DAY);
        assert_eq!(bounds(&it.store.retain()).len(), 1, "{text:?}");
    }
}

#[test]
fn room_that_cannot_be_made_costs_nothing() {
    for keep_free in [DiskReserve::Bytes(Bytes(u64::MAX)), DiskReserve::Percent(Percent(100.0))] {
        let it = Fixture::new(roomy());
        let id = it.closed(10);
        it.store.set_limits(StoreSettings { keep_free, ..roomy() });
        assert_eq!(bounds(&it.store.retain()), []);
        assert!(it.store.find(id).is_ok());
    }
}

#[test]
fn an_open_incident_stays_until_it_and_its_drafts_are_dropped() {
    let it = Fixture::new(StoreSettings { max_incidents: 0, ..roomy() });
    let incident = it.store.begin("memory", it.manifest()).unwrap();
    let draft = incident.draft(crate::model::CaptureKind::Heap, it.manifest().opened).unwrap();
    assert_eq!(bounds(&it.store.retain()), []);
    let id = incident.id();
    drop(incident);
    assert_eq!(bounds(&it.store.retain()), []);
    drop(draft);
    assert_eq!(bounds(&it.store.retain()), [(id, StoreLimit::Incidents)]);
}

#[test]
fn an_incident_with_a_file_of_somebody_elses_stays_and_counts() {
    let it = Fixture::new(roomy());
    let ids = [it.closed(10), it.closed(10), it.closed(10)];
    let path = it.store.find(ids[0]).unwrap().path;
    fs::write(path.join("notes.txt"), "it was the cache").unwrap();
    let before: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()).collect();
    it.store.set_limits(StoreSettings { max_incidents: 1, ..roomy() });
    let retained = it.store.retain();
    assert_eq!(
        bounds(&retained),
        [(ids[1], StoreLimit::Incidents), (ids[2], StoreLimit::Incidents)],
        "the one that stays takes the one place there is"
    );
    assert_eq!(retained.standing, [BlockedRemoval { path: path.join("notes.txt") }]);
    assert_eq!(retained.incidents, 1);
    let after: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(before, after);
}

#[test]
fn what_only_looks_like_an_incident_is_not_touched() {
    let it = Fixture::new(StoreSettings { max_incidents: 0, ..roomy() });
    let outside = it.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(MANIFEST), "{}").unwrap();
    let name = |name: &str| {
        let opened = "2020-01-01T00:00:00Z".parse().unwrap();
        let id = IncidentId::new(opened);
        it.dir().join(IncidentName { opened, name: name.into(), id }.format())
    };
    let (link, file, bare, other) =
        (name("link"), name("file"), name("bare"), it.dir().join("mine"));
    symlink(&outside, &link).unwrap();
    fs::write(&file, "x").unwrap();
    fs::create_dir(&bare).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join(MANIFEST), "{}").unwrap();
    let retained = it.store.retain();
    assert_eq!(bounds(&retained), []);
    assert_eq!(retained.standing, [BlockedRemoval { path: bare.clone() }], "it has no manifest");
    for path in [&link.join(MANIFEST), &file, &bare, &other.join(MANIFEST)] {
        assert!(path.exists(), "{}", path.display());
    }
}

#[test]
fn a_link_in_an_incident_keeps_it_and_what_it_leads_to() {
    let it = Fixture::new(roomy());
    let path = it.store.find(it.closed(10)).unwrap().path;
    let precious = it.temp.path().join("precious");
    fs::write(&precious, "x").unwrap();
    let planted = path.join("orders_eu-1.002.cpu.pprof");
    symlink(&precious, &planted).unwrap();
    it.store.set_limits(StoreSettings { max_incidents: 0, ..roomy() });
    let retained = it.store.retain();
    assert_eq!(retained.standing, [BlockedRemoval { path: planted }]);
    assert!(precious.exists() && path.join(MANIFEST).exists());
}

/// Creates a closed incident of the rule `name` with heap profiles of these sizes.
fn with_profiles(it: &Fixture, name: &str, sizes: &[usize]) -> IncidentId {
    it.clock.advance(Duration::from_secs(1));
    let mut incident = it.store.begin(name, it.manifest()).unwrap();
    for &size in sizes {
        profile(it, &mut incident, size).unwrap();
    }
    incident.update(|manifest| manifest.state = crate::model::IncidentState::Closed).unwrap();
    incident.id()
}

fn profile(
    it: &Fixture,
    incident: &mut crate::store::IncidentDir,
    size: usize,
) -> Result<(), crate::store::Error> {
    use std::io::Write;
    let mut draft = incident.draft(crate::model::CaptureKind::Heap, it.manifest().opened).unwrap();
    let written = draft.write_all(&vec![b'x'; size]).and_then(|()| draft.flush());
    if written.is_err() {
        let wanted = draft.refused().expect("a bound of ours");
        drop(draft);
        if incident.make_room(wanted)? {
            return profile(it, incident, size);
        }
        return Err(Error::Full { path: incident.path().to_owned(), bound: StoreLimit::Incident });
    }
    let artifact = draft.commit()?;
    incident.update(|manifest| manifest.artifacts.push(artifact))
}

/// Returns the numbers of an incident's heap profiles: those present and those listed as removed.
fn numbers(it: &Fixture, id: IncidentId) -> (Vec<u32>, Vec<u32>) {
    let entry = it.store.find(id).unwrap();
    let number = |file: &str| file.split('.').nth(1).unwrap().parse().unwrap();
    let manifest = entry.manifest.unwrap();
    let listed: Vec<u32> = manifest.artifacts.iter().map(|it| number(&it.file)).collect();
    let mut there: Vec<u32> = fs::read_dir(&entry.path)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".pprof"))
        .map(|name| number(&name))
        .collect();
    there.sort_unstable();
    assert_eq!(listed, there, "the manifest lists what is there");
    let gone = manifest.removed.iter().map(|it| number(&it.artifact.file)).collect();
    (listed, gone)
}

#[test]
fn files_between_the_first_the_last_and_the_largest_go_before_an_incident_does() {
    let it = Fixture::new(roomy());
    let kb = |sizes: &[usize]| sizes.iter().map(|size| size * 1000).collect::<Vec<_>>();
    let [old, long, last] = [&[50][..], &[40, 40, 90, 40, 40, 40], &[50]]
        .map(|sizes| with_profiles(&it, "memory", &kb(sizes)));
    let all = it.store.retain().bytes.get();
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all - 1000), ..roomy() });
    let retained = it.store.retain();
    assert_eq!(bounds(&retained), []);
    assert_eq!((retained.thinned[0].id, retained.thinned[0].bound), (long, StoreLimit::Bytes));
    assert_eq!(numbers(&it, long), (vec![1, 3, 4, 5, 6], vec![2]));
    let holdings = it.store.holdings();
    assert_eq!((holdings.artifacts_removed, holdings.incidents_removed), (1, 0));
    let why = it.store.find(long).unwrap().manifest.unwrap().removed[0].why.clone();
    assert_eq!(why, "to make room (max_bytes)");
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all - 125_000), ..roomy() });
    assert_eq!(
        bounds(&it.store.retain()),
        [(long, StoreLimit::Bytes)],
        "thin, and then as a whole"
    );
    assert_eq!(it.ids(), [last, old]);
}

#[test]
fn an_incident_with_its_fill_gives_up_what_is_between() {
    let settings = StoreSettings { max_incident_bytes: Bytes::kib(400), ..roomy() };
    let it = Fixture::new(settings.clone());
    let mut incident = it.store.begin("memory", it.manifest()).unwrap();
    let id = incident.id();
    for _ in 0..8 {
        profile(&it, &mut incident, 100_000).unwrap();
    }
    assert_eq!(numbers(&it, id), (vec![1, 6, 7, 8], vec![2, 3, 4, 5]));
    assert_eq!(it.store.holdings().artifacts_removed, 4);
    let held = it.store.retain().bytes;
    assert_eq!(it.store.holdings().bytes, held);
    assert!(held <= settings.max_incident_bytes, "{held}");
    // A write that does not fit even after every possible eviction deletes nothing.
    let error = profile(&it, &mut incident, 390_000).unwrap_err();
    assert!(error.to_string().contains("max_incident_bytes"), "{error}");
    assert_eq!(numbers(&it, id).0, [1, 6, 7, 8]);
    // The limit applies to one incident, not to all of them together.
    let mut other = it.store.begin("memory", it.manifest()).unwrap();
    profile(&it, &mut other, 390_000).unwrap();
}

#[test]
fn a_crash_amid_a_thinning_is_made_up_for() {
    let it = Fixture::new(roomy());
    let id = with_profiles(&it, "memory", &[1000, 1000, 1000, 1000]);
    let path = it.store.find(id).unwrap().path;
    let gone = "orders_eu-1.002.memory.pprof";
    let copy = fs::read(path.join(gone)).unwrap();
    let all = it.store.retain().bytes.get();
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all - 100), ..roomy() });
    it.store.retain();
    fs::write(path.join(gone), copy).unwrap();
    let (it, recovery) = it.reopen(roomy());
    assert_eq!(recovery.swept.len(), 1, "{recovery:?}");
    assert_eq!(numbers(&it, id), (vec![1, 3, 4], vec![2]));
}

#[test]
fn an_incident_with_a_file_of_somebody_elses_is_not_thinned() {
    let it = Fixture::new(roomy());
    let id = with_profiles(&it, "memory", &[1000; 4]);
    fs::write(it.store.find(id).unwrap().path.join("notes.txt"), "it was the cache").unwrap();
    let all = it.store.retain().bytes.get();
    it.store.set_limits(StoreSettings { max_bytes: Bytes(all - 100), ..roomy() });
    let retained = it.store.retain();
    assert_eq!((retained.thinned.len(), retained.removed.len()), (0, 0));
    assert_eq!(numbers(&it, id).0, [1, 2, 3, 4]);
}

#[test]
fn a_rule_has_bounds_of_its_own() {
    use crate::config::RuleStoreSettings;
    let it = Fixture::new(roomy());
    let others: Vec<_> = (0..3).map(|_| it.closed_by("cpu", 1000)).collect();
    let ids: Vec<_> = (0..5).map(|_| it.closed_by("memory", 1000)).collect();
    let keep = |rule: RuleStoreSettings| {
        let rules = [("Memory".to_owned(), rule)].into();
        it.store.set_limits(StoreSettings { rules, ..roomy() });
        bounds(&it.store.retain())
    };
    assert_eq!(keep(RuleStoreSettings::default()), []);
    let four = RuleStoreSettings { max_incidents: Some(4), ..RuleStoreSettings::default() };
    assert_eq!(keep(four), [(ids[1], StoreLimit::RuleIncidents)]);
    let size = |id| it.store.find(id).map(|it| fs::read_dir(it.path).unwrap().count()).unwrap();
    assert_eq!(size(ids[2]), 2);
    let all: u64 = ids[2..].iter().chain([&ids[0]]).map(|&id| held(&it, id)).sum();
    let less =
        RuleStoreSettings { max_bytes: Some(Bytes(all - 1)), ..RuleStoreSettings::default() };
    assert_eq!(keep(less), [(ids[2], StoreLimit::RuleBytes)]);
    it.clock.advance(Duration::from_secs(30));
    let young = RuleStoreSettings { max_age: Some(Duration::from_secs(20)), ..Default::default() };
    let aged: Vec<_> = keep(young).into_iter().map(|(id, _)| id).collect();
    assert_eq!(aged, [ids[3]]);
    let stay = [ids[4], ids[0], others[2], others[1], others[0]];
    assert_eq!(it.ids(), stay, "the ends, and what is of others");
}

#[test]
fn a_rule_with_its_fill_makes_room_of_its_own_incidents_during_a_write() {
    use crate::config::RuleStoreSettings;
    let rule = RuleStoreSettings { max_bytes: Some(Bytes(250_000)), ..Default::default() };
    let it = Fixture::new(StoreSettings { rules: [("memory".to_owned(), rule)].into(), ..roomy() });
    let other = it.closed_by("cpu", 200_000);
    let old = it.closed_by("memory", 100_000);
    let mut incident = it.store.begin("memory", it.manifest()).unwrap();
    profile(&it, &mut incident, 200_000).unwrap();
    assert_eq!(it.ids(), [incident.id(), other], "{old} went for it");
    assert!(profile(&it, &mut incident, 200_000).is_err());
    drop(incident);
    let mut incident = it.store.begin("cpu", it.manifest()).unwrap();
    profile(&it, &mut incident, 400_000).unwrap();
}

#[test]
fn an_age_of_a_rules_own_may_be_longer() {
    use crate::config::RuleStoreSettings;
    let rule = RuleStoreSettings { max_age: Some(Duration::from_secs(1000)), ..Default::default() };
    let rules = [("memory".to_owned(), rule)].into();
    let it = Fixture::new(StoreSettings { max_age: Duration::from_secs(10), rules, ..roomy() });
    let kept: Vec<_> = (0..3).map(|_| it.closed_by("memory", 10)).collect();
    let gone: Vec<_> = (0..3).map(|_| it.closed_by("cpu", 10)).collect();
    it.clock.advance(Duration::from_secs(60));
    assert_eq!(bounds(&it.store.retain()), [(gone[1], StoreLimit::Age)]);
    assert!(kept.iter().all(|id| it.store.find(*id).is_ok()));
}

fn held(it: &Fixture, id: IncidentId) -> u64 {
    let files = fs::read_dir(it.store.find(id).unwrap().path).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_directory_in_memory_takes_half_of_what_is_left_of_it() {
    // Requires /dev/shm to be a tmpfs; without one there is nothing to test.
    let Ok(temp) = tempfile::tempdir_in("/dev/shm") else { return };
    let clock = std::sync::Arc::new(crate::base::ManualClock::new(Timestamp::UNIX_EPOCH));
    let (store, _) =
        crate::store::Store::open(&temp.path().join("captures"), roomy(), clock.clone()).unwrap();
    assert!(store.is_in_memory());
    let it = Fixture { temp, clock, store };
    let old = it.closed(50_000);
    let mut incident = it.store.begin("memory", it.manifest()).unwrap();
    it.store.set_headroom(Some(Bytes(300_000)));
    let holdings = it.store.holdings();
    assert_eq!((holdings.in_memory, holdings.memory_left), (true, Some(Bytes(150_000))));
    profile(&it, &mut incident, 100_000).unwrap();
    assert!(it.store.find(old).is_ok());
    profile(&it, &mut incident, 60_000).unwrap();
    assert!(it.store.find(old).is_err(), "what is removed is memory again");
    let error = {
        use std::io::Write;
        let mut draft =
            incident.draft(crate::model::CaptureKind::Cpu, it.manifest().opened).unwrap();
        draft.write_all(&[0; 60_000]).unwrap_err()
    };
    assert!(error.to_string().contains("the memory left"), "{error}");
    it.store.set_headroom(None);
    profile(&it, &mut incident, 400_000).unwrap();
}
