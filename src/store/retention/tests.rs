use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::base::Percent;
use crate::config::{DiskReserve, StoreSettings};
use crate::store::fixture::{Fixture, generous_settings};

fn evictions(report: &RetentionReport) -> Vec<(IncidentId, StoreLimit)> {
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    report.evicted.iter().map(|evicted| (evicted.id, evicted.limit)).collect()
}

#[test]
fn evicts_nothing_while_all_limits_hold() {
    let fixture = Fixture::new(generous_settings());
    let ids = [fixture.create_closed(10), fixture.create_closed(10)];
    let report = fixture.store.enforce_limits();
    assert!(report.evicted.is_empty());
    assert_eq!(report.incidents, 2);
    assert_eq!(fixture.incident_ids(), [ids[1], ids[0]]);
}

#[test]
fn evicts_oldest_when_max_incidents_is_exceeded() {
    let fixture = Fixture::new(generous_settings());
    let ids: Vec<_> = (0..5).map(|_| fixture.create_closed(10)).collect();
    fixture.store.set_settings(StoreSettings { max_incidents: 3, ..generous_settings() });
    let evicted = evictions(&fixture.store.enforce_limits());
    assert_eq!(evicted, [(ids[1], StoreLimit::Incidents), (ids[2], StoreLimit::Incidents)]);
    // Creating another incident evicts one.
    let sixth = fixture.create_closed(10);
    assert_eq!(
        fixture.incident_ids(),
        [sixth, ids[4], ids[0]],
        "the first and the last stay longest"
    );
}

#[test]
fn frequent_rule_does_not_displace_other_rules() {
    let fixture = Fixture::new(generous_settings());
    let only = fixture.create_closed_for_rule("lag", 10);
    let pair =
        [fixture.create_closed_for_rule("cpu", 5000), fixture.create_closed_for_rule("cpu", 5000)];
    let often: Vec<_> = (0..20).map(|_| fixture.create_closed_for_rule("memory", 10)).collect();
    let ids_after_limit = |max_incidents| {
        fixture.store.set_settings(StoreSettings { max_incidents, ..generous_settings() });
        fixture.store.enforce_limits();
        fixture.incident_ids().into_iter().rev().collect::<Vec<_>>()
    };
    assert_eq!(ids_after_limit(6), [only, pair[0], pair[1], often[0], often[18], often[19]]);
    assert_eq!(ids_after_limit(5), [only, pair[0], pair[1], often[0], often[19]]);
    assert_eq!(
        ids_after_limit(4),
        [only, pair[1], often[0], often[19]],
        "of two alike the older rule's"
    );
    assert_eq!(ids_after_limit(3), [only, pair[1], often[19]], "the last of each");
    assert_eq!(ids_after_limit(1), [often[19]]);
}

#[test]
fn evicts_from_rule_with_most_bytes() {
    let fixture = Fixture::new(generous_settings());
    let small: Vec<_> = (0..5).map(|_| fixture.create_closed_for_rule("lag", 10)).collect();
    let large: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("memory", 100_000)).collect();
    let all = fixture.store.enforce_limits().bytes;
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all.get() - 1), ..generous_settings() });
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(large[1], StoreLimit::Bytes)]);
    assert_eq!(fixture.incident_ids().len(), small.len() + 2);
}

#[test]
fn evicts_oldest_one_byte_above_max_bytes() {
    let fixture = Fixture::new(generous_settings());
    let ids: Vec<_> = (0..3).map(|_| fixture.create_closed(1000)).collect();
    let all = fixture.store.enforce_limits().bytes;
    fixture.store.set_settings(StoreSettings { max_bytes: all, ..generous_settings() });
    assert_eq!(evictions(&fixture.store.enforce_limits()), []);
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all.get() - 1), ..generous_settings() });
    let report = fixture.store.enforce_limits();
    assert_eq!(evictions(&report), [(ids[1], StoreLimit::Bytes)]);
    assert_eq!(report.bytes.get() + report.evicted[0].bytes.get(), all.get());
}

#[test]
fn expires_incidents_except_first_and_last_of_rule() {
    let fixture =
        Fixture::new(StoreSettings { max_age: Duration::from_secs(10), ..generous_settings() });
    let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
    let only = fixture.create_closed_for_rule("cpu", 10);
    fixture.clock.advance(Duration::from_secs(7));
    assert_eq!(
        evictions(&fixture.store.enforce_limits()),
        [],
        "ten seconds old is not past ten seconds"
    );
    fixture.clock.advance(Duration::from_millis(1));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(ids[1], StoreLimit::Age)]);
    fixture.clock.advance(Duration::from_secs(10));
    let report = fixture.store.enforce_limits();
    assert_eq!(evictions(&report), [(ids[2], StoreLimit::Age)]);
    assert_eq!(fixture.incident_ids(), [only, ids[3], ids[0]]);
    let log: Vec<String> = fixture.store.take_evicted().iter().map(ToString::to_string).collect();
    assert_eq!(log.len(), 2, "both since the start");
    let expected = format!("incident {} of `memory` removed: max_age (", ids[1]);
    assert!(log[0].starts_with(&expected) && log[0].ends_with(" 0 h old)"), "{}", log[0]);
    assert!(fixture.store.take_evicted().is_empty());
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn setting_wall_clock_at_runtime_expires_nothing() {
    for days in [15, -15, 4000, -4000] {
        let fixture = Fixture::new(StoreSettings { max_age: 14 * DAY, ..generous_settings() });
        let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
        fixture.clock.step_wall(jiff::SignedDuration::from_hours(24 * days));
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        fixture.clock.advance(13 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        // An incident that opens after the clock was set is the last of its rule, whatever its name
        // is.
        let last = fixture.create_closed(10);
        fixture.clock.advance(2 * DAY);
        let evicted = evictions(&fixture.store.enforce_limits());
        assert_eq!(
            evicted,
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age), (ids[3], StoreLimit::Age)]
        );
        fixture.clock.advance(30 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{days}");
        assert!(fixture.store.find(last).is_ok() && fixture.store.find(ids[0]).is_ok());
    }
}

/// Reopens the store in the directory of `it` as after a reboot, with the wall clock at `wall`.
fn reopen_after_reboot(
    fixture: Fixture,
    wall: Timestamp,
    settings: StoreSettings,
) -> (Fixture, RetentionReport) {
    let clock = std::sync::Arc::new(crate::base::ManualClock::new(wall));
    let dir = fixture.dir().to_owned();
    let Fixture { temp, store, .. } = fixture;
    drop(store);
    let (store, recovery) =
        crate::store::Store::open(&dir, settings, std::sync::Arc::clone(&clock) as _).unwrap();
    (Fixture { temp, clock, store }, recovery.retention)
}

#[test]
fn wrong_wall_clock_at_start_expires_nothing() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    for wall in ["2026-12-08T04:00:00Z", "2037-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
        let fixture = Fixture::new(settings());
        let ids: Vec<_> = (0..4).map(|_| fixture.create_closed(10)).collect();
        let (fixture, report) = reopen_after_reboot(fixture, wall.parse().unwrap(), settings());
        assert_eq!(evictions(&report), [], "{wall}");
        // Correcting the wall clock while the process runs does not matter either.
        let right: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
        fixture.clock.step_wall(right.duration_since(crate::base::Clock::wall(&*fixture.clock)));
        assert_eq!(evictions(&fixture.store.enforce_limits()), [], "{wall}");
        fixture.clock.advance(15 * DAY);
        assert_eq!(
            evictions(&fixture.store.enforce_limits()),
            [(ids[1], StoreLimit::Age), (ids[2], StoreLimit::Age)]
        );
    }
}

#[test]
fn age_accumulates_across_processes() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    let mut fixture = Fixture::new(settings());
    let ids: Vec<_> = (0..3).map(|_| fixture.create_closed(10)).collect();
    for _ in 0..14 {
        fixture.clock.advance(DAY - Duration::from_secs(60));
        assert_eq!(evictions(&fixture.store.enforce_limits()), []);
        let (next, recovery) = fixture.reopen(settings());
        assert_eq!(evictions(&recovery.retention), []);
        // At most an hour without a process, then another boot.
        let wall = crate::base::Clock::wall(&*next.clock);
        let (next, report) = reopen_after_reboot(next, wall, settings());
        assert_eq!(evictions(&report), []);
        fixture = next;
    }
    fixture.clock.advance(Duration::from_secs(3600));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(ids[1], StoreLimit::Age)]);
}

#[test]
fn missing_age_starts_at_zero() {
    let settings = || StoreSettings { max_age: 14 * DAY, ..generous_settings() };
    for text in [None, Some("{"), Some("[]")] {
        let fixture = Fixture::new(settings());
        for _ in 0..3 {
            fixture.create_closed(10);
        }
        fixture.store.enforce_limits();
        let path = fixture.dir().join("ages.json");
        match text {
            None => fs::remove_file(path).unwrap(),
            Some(text) => fs::write(path, text).unwrap(),
        }
        fixture.clock.advance(20 * DAY);
        let (fixture, recovery) = fixture.reopen(settings());
        assert_eq!(evictions(&recovery.retention), [], "{text:?}");
        fixture.clock.advance(15 * DAY);
        assert_eq!(evictions(&fixture.store.enforce_limits()).len(), 1, "{text:?}");
    }
}

#[test]
fn unreachable_min_free_space_evicts_nothing() {
    for min_free_space in
        [DiskReserve::Bytes(Bytes(u64::MAX)), DiskReserve::Percent(Percent(100.0))]
    {
        let fixture = Fixture::new(generous_settings());
        let id = fixture.create_closed(10);
        fixture.store.set_settings(StoreSettings { min_free_space, ..generous_settings() });
        assert_eq!(evictions(&fixture.store.enforce_limits()), []);
        assert!(fixture.store.find(id).is_ok());
    }
}

#[test]
fn open_incident_is_kept_until_handle_and_drafts_drop() {
    let fixture = Fixture::new(StoreSettings { max_incidents: 0, ..generous_settings() });
    let incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    let draft = incident.draft(crate::model::CaptureKind::Heap, fixture.manifest().opened).unwrap();
    assert_eq!(evictions(&fixture.store.enforce_limits()), []);
    let id = incident.id();
    drop(incident);
    assert_eq!(evictions(&fixture.store.enforce_limits()), []);
    drop(draft);
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(id, StoreLimit::Incidents)]);
}

#[test]
fn incident_with_foreign_file_is_kept_and_counted() {
    let fixture = Fixture::new(generous_settings());
    let ids = [fixture.create_closed(10), fixture.create_closed(10), fixture.create_closed(10)];
    let path = fixture.store.find(ids[0]).unwrap().path;
    fs::write(path.join("notes.txt"), "it was the cache").unwrap();
    let before: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixture.store.set_settings(StoreSettings { max_incidents: 1, ..generous_settings() });
    let report = fixture.store.enforce_limits();
    assert_eq!(
        evictions(&report),
        [(ids[1], StoreLimit::Incidents), (ids[2], StoreLimit::Incidents)],
        "the one that stays takes the one place there is"
    );
    assert_eq!(report.blocked, [BlockedRemoval { path: path.join("notes.txt") }]);
    assert_eq!(report.incidents, 1);
    let after: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(before, after);
}

#[test]
fn lookalikes_of_incidents_are_not_touched() {
    let fixture = Fixture::new(StoreSettings { max_incidents: 0, ..generous_settings() });
    let outside = fixture.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(MANIFEST_FILE), "{}").unwrap();
    let name = |name: &str| {
        let opened = "2020-01-01T00:00:00Z".parse().unwrap();
        let id = IncidentId::new(opened);
        fixture.dir().join(IncidentName { opened, name: name.into(), id }.format())
    };
    let (link, file, bare, other) =
        (name("link"), name("file"), name("bare"), fixture.dir().join("mine"));
    symlink(&outside, &link).unwrap();
    fs::write(&file, "x").unwrap();
    fs::create_dir(&bare).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join(MANIFEST_FILE), "{}").unwrap();
    let report = fixture.store.enforce_limits();
    assert_eq!(evictions(&report), []);
    assert_eq!(report.blocked, [BlockedRemoval { path: bare.clone() }], "it has no manifest");
    for path in [&link.join(MANIFEST_FILE), &file, &bare, &other.join(MANIFEST_FILE)] {
        assert!(path.exists(), "{}", path.display());
    }
}

#[test]
fn incident_with_symlink_is_kept_with_link_target() {
    let fixture = Fixture::new(generous_settings());
    let path = fixture.store.find(fixture.create_closed(10)).unwrap().path;
    let precious = fixture.temp.path().join("precious");
    fs::write(&precious, "x").unwrap();
    let planted = path.join("orders_eu-1.002.cpu.pprof");
    symlink(&precious, &planted).unwrap();
    fixture.store.set_settings(StoreSettings { max_incidents: 0, ..generous_settings() });
    let report = fixture.store.enforce_limits();
    assert_eq!(report.blocked, [BlockedRemoval { path: planted }]);
    assert!(precious.exists() && path.join(MANIFEST_FILE).exists());
}

/// Creates a closed incident of the rule `name` with heap profiles of these sizes.
fn create_with_profiles(fixture: &Fixture, name: &str, sizes: &[usize]) -> IncidentId {
    fixture.clock.advance(Duration::from_secs(1));
    let mut incident = fixture.store.create_incident(name, fixture.manifest()).unwrap();
    for &size in sizes {
        write_profile(fixture, &mut incident, size).unwrap();
    }
    incident.update(|manifest| manifest.state = crate::model::IncidentState::Closed).unwrap();
    incident.id()
}

fn write_profile(
    fixture: &Fixture,
    incident: &mut crate::store::IncidentDir,
    size: usize,
) -> Result<(), crate::store::Error> {
    use std::io::Write;
    let mut draft =
        incident.draft(crate::model::CaptureKind::Heap, fixture.manifest().opened).unwrap();
    let written = draft.write_all(&vec![b'x'; size]).and_then(|()| draft.flush());
    if written.is_err() {
        let needed = draft.rejected_size().expect("a bound of ours");
        drop(draft);
        if incident.free_space(needed)? {
            return write_profile(fixture, incident, size);
        }
        return Err(Error::Full {
            path: incident.path().to_owned(),
            limit: StoreLimit::IncidentBytes,
        });
    }
    let artifact = draft.commit()?;
    incident.update(|manifest| manifest.artifacts.push(artifact))
}

/// Returns the numbers of an incident's heap profiles: those present and those listed as removed.
fn profile_numbers(fixture: &Fixture, id: IncidentId) -> (Vec<u32>, Vec<u32>) {
    let entry = fixture.store.find(id).unwrap();
    let number = |file: &str| file.split('.').nth(1).unwrap().parse().unwrap();
    let manifest = entry.manifest.unwrap();
    let listed: Vec<u32> =
        manifest.artifacts.iter().map(|artifact| number(&artifact.file)).collect();
    let mut present: Vec<u32> = fs::read_dir(&entry.path)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".pprof"))
        .map(|name| number(&name))
        .collect();
    present.sort_unstable();
    assert_eq!(listed, present, "the manifest lists the existing files");
    let removed = manifest.removed.iter().map(|removed| number(&removed.artifact.file)).collect();
    (listed, removed)
}

#[test]
fn prunes_middle_files_before_evicting_incident() {
    let fixture = Fixture::new(generous_settings());
    let kb = |sizes: &[usize]| sizes.iter().map(|size| size * 1000).collect::<Vec<_>>();
    let [old, long, last] = [&[50][..], &[40, 40, 90, 40, 40, 40], &[50]]
        .map(|sizes| create_with_profiles(&fixture, "memory", &kb(sizes)));
    let all = fixture.store.enforce_limits().bytes.get();
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all - 1000), ..generous_settings() });
    let report = fixture.store.enforce_limits();
    assert_eq!(evictions(&report), []);
    assert_eq!((report.pruned[0].id, report.pruned[0].limit), (long, StoreLimit::Bytes));
    assert_eq!(profile_numbers(&fixture, long), (vec![1, 3, 4, 5, 6], vec![2]));
    let usage = fixture.store.usage();
    assert_eq!((usage.artifacts_removed, usage.incidents_removed), (1, 0));
    let reason = fixture.store.find(long).unwrap().manifest.unwrap().removed[0].why.clone();
    assert_eq!(reason, "to free space (max_bytes)");
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all - 125_000), ..generous_settings() });
    assert_eq!(
        evictions(&fixture.store.enforce_limits()),
        [(long, StoreLimit::Bytes)],
        "thin, and then as a whole"
    );
    assert_eq!(fixture.incident_ids(), [last, old]);
}

#[test]
fn full_incident_prunes_its_middle_files() {
    let settings = StoreSettings { max_bytes_per_incident: Bytes::kib(400), ..generous_settings() };
    let fixture = Fixture::new(settings.clone());
    let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    let id = incident.id();
    for _ in 0..8 {
        write_profile(&fixture, &mut incident, 100_000).unwrap();
    }
    assert_eq!(profile_numbers(&fixture, id), (vec![1, 6, 7, 8], vec![2, 3, 4, 5]));
    assert_eq!(fixture.store.usage().artifacts_removed, 4);
    let stored = fixture.store.enforce_limits().bytes;
    assert_eq!(fixture.store.usage().bytes, stored);
    assert!(stored <= settings.max_bytes_per_incident, "{stored}");
    // A write that does not fit even after every possible eviction deletes nothing.
    let error = write_profile(&fixture, &mut incident, 390_000).unwrap_err();
    assert!(error.to_string().contains("max_bytes_per_incident"), "{error}");
    assert_eq!(profile_numbers(&fixture, id).0, [1, 6, 7, 8]);
    // The limit applies to one incident, not to all of them together.
    let mut other = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    write_profile(&fixture, &mut other, 390_000).unwrap();
}

#[test]
fn start_completes_pruning_after_crash() {
    let fixture = Fixture::new(generous_settings());
    let id = create_with_profiles(&fixture, "memory", &[1000, 1000, 1000, 1000]);
    let path = fixture.store.find(id).unwrap().path;
    let pruned = "orders_eu-1.002.memory.pprof";
    let copy = fs::read(path.join(pruned)).unwrap();
    let all = fixture.store.enforce_limits().bytes.get();
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all - 100), ..generous_settings() });
    fixture.store.enforce_limits();
    fs::write(path.join(pruned), copy).unwrap();
    let (fixture, recovery) = fixture.reopen(generous_settings());
    assert_eq!(recovery.deleted.len(), 1, "{recovery:?}");
    assert_eq!(profile_numbers(&fixture, id), (vec![1, 3, 4], vec![2]));
}

#[test]
fn incident_with_foreign_file_is_not_pruned() {
    let fixture = Fixture::new(generous_settings());
    let id = create_with_profiles(&fixture, "memory", &[1000; 4]);
    fs::write(fixture.store.find(id).unwrap().path.join("notes.txt"), "it was the cache").unwrap();
    let all = fixture.store.enforce_limits().bytes.get();
    fixture
        .store
        .set_settings(StoreSettings { max_bytes: Bytes(all - 100), ..generous_settings() });
    let report = fixture.store.enforce_limits();
    assert_eq!((report.pruned.len(), report.evicted.len()), (0, 0));
    assert_eq!(profile_numbers(&fixture, id).0, [1, 2, 3, 4]);
}

#[test]
fn rule_limits_evict_only_incidents_of_that_rule() {
    use crate::config::RuleStoreSettings;
    let fixture = Fixture::new(generous_settings());
    let others: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("cpu", 1000)).collect();
    let ids: Vec<_> = (0..5).map(|_| fixture.create_closed_for_rule("memory", 1000)).collect();
    let evictions_with = |rule: RuleStoreSettings| {
        let rules = [("Memory".to_owned(), rule)].into();
        fixture.store.set_settings(StoreSettings { rules, ..generous_settings() });
        evictions(&fixture.store.enforce_limits())
    };
    assert_eq!(evictions_with(RuleStoreSettings::default()), []);
    let four = RuleStoreSettings { max_incidents: Some(4), ..RuleStoreSettings::default() };
    assert_eq!(evictions_with(four), [(ids[1], StoreLimit::RuleIncidents)]);
    let size =
        |id| fixture.store.find(id).map(|it| fs::read_dir(it.path).unwrap().count()).unwrap();
    assert_eq!(size(ids[2]), 2);
    let all: u64 = ids[2..].iter().chain([&ids[0]]).map(|&id| stored_bytes(&fixture, id)).sum();
    let less =
        RuleStoreSettings { max_bytes: Some(Bytes(all - 1)), ..RuleStoreSettings::default() };
    assert_eq!(evictions_with(less), [(ids[2], StoreLimit::RuleBytes)]);
    fixture.clock.advance(Duration::from_secs(30));
    let young = RuleStoreSettings { max_age: Some(Duration::from_secs(20)), ..Default::default() };
    let aged: Vec<_> = evictions_with(young).into_iter().map(|(id, _)| id).collect();
    assert_eq!(aged, [ids[3]]);
    let remaining = [ids[4], ids[0], others[2], others[1], others[0]];
    assert_eq!(fixture.incident_ids(), remaining, "the ends, and what is of others");
}

#[test]
fn write_over_rule_limit_evicts_same_rule() {
    use crate::config::RuleStoreSettings;
    let rule = RuleStoreSettings { max_bytes: Some(Bytes(250_000)), ..Default::default() };
    let fixture = Fixture::new(StoreSettings {
        rules: [("memory".to_owned(), rule)].into(),
        ..generous_settings()
    });
    let other = fixture.create_closed_for_rule("cpu", 200_000);
    let old = fixture.create_closed_for_rule("memory", 100_000);
    let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    write_profile(&fixture, &mut incident, 200_000).unwrap();
    assert_eq!(fixture.incident_ids(), [incident.id(), other], "{old} went for it");
    assert!(write_profile(&fixture, &mut incident, 200_000).is_err());
    drop(incident);
    let mut incident = fixture.store.create_incident("cpu", fixture.manifest()).unwrap();
    write_profile(&fixture, &mut incident, 400_000).unwrap();
}

#[test]
fn rule_max_age_can_exceed_store_max_age() {
    use crate::config::RuleStoreSettings;
    let rule = RuleStoreSettings { max_age: Some(Duration::from_secs(1000)), ..Default::default() };
    let rules = [("memory".to_owned(), rule)].into();
    let fixture = Fixture::new(StoreSettings {
        max_age: Duration::from_secs(10),
        rules,
        ..generous_settings()
    });
    let kept: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("memory", 10)).collect();
    let expired: Vec<_> = (0..3).map(|_| fixture.create_closed_for_rule("cpu", 10)).collect();
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(evictions(&fixture.store.enforce_limits()), [(expired[1], StoreLimit::Age)]);
    assert!(kept.iter().all(|id| fixture.store.find(*id).is_ok()));
}

fn stored_bytes(fixture: &Fixture, id: IncidentId) -> u64 {
    let files = fs::read_dir(fixture.store.find(id).unwrap().path).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn directory_in_memory_uses_half_of_memory_left() {
    // Requires /dev/shm to be a tmpfs; without one there is nothing to test.
    let Ok(temp) = tempfile::tempdir_in("/dev/shm") else { return };
    let clock = std::sync::Arc::new(crate::base::ManualClock::new(Timestamp::UNIX_EPOCH));
    let (store, _) = crate::store::Store::open(
        &temp.path().join("captures"),
        generous_settings(),
        clock.clone(),
    )
    .unwrap();
    assert!(store.is_in_memory());
    let fixture = Fixture { temp, clock, store };
    let old = fixture.create_closed(50_000);
    let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
    fixture.store.set_memory_left(Some(Bytes(300_000)));
    let usage = fixture.store.usage();
    assert_eq!((usage.in_memory, usage.memory_left), (true, Some(Bytes(150_000))));
    write_profile(&fixture, &mut incident, 100_000).unwrap();
    assert!(fixture.store.find(old).is_ok());
    write_profile(&fixture, &mut incident, 60_000).unwrap();
    assert!(fixture.store.find(old).is_err(), "removed files free memory");
    let error = {
        use std::io::Write;
        let mut draft =
            incident.draft(crate::model::CaptureKind::Cpu, fixture.manifest().opened).unwrap();
        draft.write_all(&[0; 60_000]).unwrap_err()
    };
    assert!(error.to_string().contains("memory available to tmpfs"), "{error}");
    fixture.store.set_memory_left(None);
    write_profile(&fixture, &mut incident, 400_000).unwrap();
}
