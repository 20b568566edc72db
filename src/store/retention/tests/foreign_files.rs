//! Incidents and look-alikes with entries that the store did not create.

use std::os::unix::fs::symlink;

use super::*;

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
    let link = name("link");
    let file = name("file");
    let bare = name("bare");
    let other = fixture.dir().join("mine");
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
