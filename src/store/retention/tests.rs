//! Retention: which incidents and files a limit removes.

mod age;
mod foreign_files;
mod prune;
mod rule_limits;

use std::fs;
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
