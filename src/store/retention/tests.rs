use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::base::Percent;
use crate::config::{Room, StoreSettings};
use crate::store::fixture::{Fixture, roomy};

fn bounds(retained: &Retained) -> Vec<(IncidentId, Bound)> {
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
    assert_eq!(gone, [(ids[1], Bound::Incidents), (ids[2], Bound::Incidents)]);
    // One more makes room for itself.
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
    assert_eq!(bounds(&it.store.retain()), [(large[1], Bound::Bytes)]);
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
    assert_eq!(bounds(&retained), [(ids[1], Bound::Bytes)]);
    assert_eq!(retained.bytes.get() + retained.removed[0].bytes.get(), all.get());
}

#[test]
fn those_past_their_age_go() {
    let it = Fixture::new(StoreSettings { max_age: Duration::from_secs(10), ..roomy() });
    let (first, second) = (it.closed(10), it.closed(10));
    it.clock.advance(Duration::from_secs(9));
    assert_eq!(bounds(&it.store.retain()), [], "ten seconds old is not past ten seconds");
    it.clock.advance(Duration::from_millis(1));
    assert_eq!(bounds(&it.store.retain()), [(first, Bound::Age)]);
    assert_eq!(it.ids(), [second]);
}

#[test]
fn the_clock_set_back_makes_nothing_old() {
    let it = Fixture::new(StoreSettings { max_age: Duration::from_secs(10), ..roomy() });
    it.clock.advance(Duration::from_secs(1000));
    it.closed(10);
    let (it, _) = it.reopen(roomy());
    let back = std::sync::Arc::new(crate::base::ManualClock::new(Timestamp::UNIX_EPOCH));
    let dir = it.dir().to_owned();
    drop(it.store);
    let settings = StoreSettings { max_age: Duration::from_secs(10), ..roomy() };
    let (store, recovery) = crate::store::Store::open(&dir, settings, back).unwrap();
    assert_eq!(bounds(&recovery.retained), []);
    assert_eq!(store.index().unwrap().len(), 1);
}

#[test]
fn room_that_cannot_be_made_costs_nothing() {
    for keep_free in [Room::Bytes(Bytes(u64::MAX)), Room::Percent(Percent(100.0))] {
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
    assert_eq!(bounds(&it.store.retain()), [(id, Bound::Incidents)]);
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
        [(ids[1], Bound::Incidents), (ids[2], Bound::Incidents)],
        "the one that stays takes the one place there is"
    );
    assert_eq!(retained.standing, [Standing { path: path.join("notes.txt") }]);
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
    assert_eq!(retained.standing, [Standing { path: bare.clone() }], "it has no manifest");
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
    assert_eq!(retained.standing, [Standing { path: planted }]);
    assert!(precious.exists() && path.join(MANIFEST).exists());
}
