//! Pruning of files of incidents that stay.

use super::*;

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
        "evicted once it has no prunable file left"
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
