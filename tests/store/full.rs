//! Tests of a full file system of 1 MiB: the write fails with a clear error, nothing already
//! written is lost, and the store continues once there is space.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use marple::config::{DiskReserve, StoreSettings};
use marple::internals::base::{Bytes, IncidentId, SystemClock};
use marple::internals::model::{Artifact, CaptureKind, IncidentState};
use marple::internals::store::{Error, IncidentDir, Store, StoreLimit};

use crate::support::rerun::{self, test_path};
use crate::support::store;

/// Runs `body` with a store on a file system of 1 MiB.
fn run_on_small_disk(test: &str, settings: StoreSettings, body: impl FnOnce(&Path, &Store)) {
    rerun::under(test, store::private_mounts_command(), || {
        let temp = tempfile::tempdir().unwrap();
        store::mount_small_tmpfs(temp.path());
        let dir = temp.path().join("captures");
        let (store, _) = Store::open(&dir, settings, Arc::new(SystemClock)).unwrap();
        body(temp.path(), &store);
    });
}

fn write_artifact(incident: &IncidentDir, bytes: usize) -> Result<Artifact, Error> {
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    if let Err(error) = draft.write_all(&vec![7; bytes]) {
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
    draft.commit()
}

fn create_closed_incident(store: &Store, bytes: usize) -> IncidentId {
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let artifact = write_artifact(&incident, bytes).unwrap();
    let close = |manifest: &mut marple::internals::model::Manifest| {
        manifest.artifacts.push(artifact);
        manifest.state = IncidentState::Closed;
    };
    incident.update(close).unwrap();
    incident.id()
}

#[test]
fn full_device_fails_write_and_keeps_existing_files() {
    let test = test_path!(full_device_fails_write_and_keeps_existing_files);
    run_on_small_disk(test, store::generous_limits(), |mount, store| {
        let mut incident = store.create_incident("memory", store::manifest()).unwrap();
        let kept = write_artifact(&incident, 300_000).unwrap();
        incident.update(|manifest| manifest.artifacts.push(kept.clone())).unwrap();
        // Another program uses nearly all of the rest.
        fs::write(mount.join("others"), vec![0; 500_000]).unwrap();

        let mut draft = incident.draft(CaptureKind::Cpu, Timestamp::now()).unwrap();
        let error = draft.write_all(&vec![7; 400_000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.to_string().contains("the file system is full"), "{error}");
        assert!(error.to_string().contains("002.cpu.pprof"), "{error}");
        assert!(matches!(draft.commit(), Err(Error::Incomplete { .. })));

        let names = fs::read_dir(incident.path()).unwrap().count();
        assert_eq!(names, 2, "the manifest and the first artifact");
        assert_eq!(fs::read(incident.path().join(&kept.file)).unwrap(), vec![7; 300_000]);

        // The space of the refused draft is free again, and the incident continues.
        incident.update(|manifest| manifest.captures[0].error = Some("no room".into())).unwrap();
        let small = write_artifact(&incident, 10_000).unwrap();
        assert_eq!(small.file, "orders_eu-1.002.memory.pprof");
        fs::remove_file(mount.join("others")).unwrap();
        write_artifact(&incident, 400_000).unwrap();
    });
}

#[test]
fn nothing_is_deleted_unless_it_frees_enough_space() {
    let test = test_path!(nothing_is_deleted_unless_it_frees_enough_space);
    let settings = StoreSettings {
        min_free_space: DiskReserve::Bytes(Bytes::kib(256)),
        ..store::generous_limits()
    };
    run_on_small_disk(test, settings, |mount, store| {
        let old = create_closed_incident(store, 100_000);
        let incident = store.create_incident("memory", store::manifest()).unwrap();
        // Another program uses so much that deleting the old incident would not free enough.
        let others = mount.join("others");
        fs::write(&others, vec![0; 800_000]).unwrap();
        assert!(write_artifact(&incident, 10_000).is_err());
        assert!(store.enforce_limits().evicted.is_empty());
        assert!(store.find(old).is_ok());

        // Little enough that deleting it frees enough.
        fs::write(&others, vec![0; 600_000]).unwrap();
        write_artifact(&incident, 90_000).unwrap();
        assert!(matches!(store.find(old), Err(Error::NoIncident { .. })));
    });
}

#[test]
fn completely_full_device_keeps_manifests_intact() {
    let test = test_path!(completely_full_device_keeps_manifests_intact);
    run_on_small_disk(test, store::generous_limits(), |mount, store| {
        let mut incident = store.create_incident("memory", store::manifest()).unwrap();
        let mut others = fs::File::create(mount.join("others")).unwrap();
        while others.write(&[0; 4096]).is_ok() {}
        let error = incident.update(|manifest| manifest.service = "changed".into()).unwrap_err();
        assert!(matches!(error, Error::Full { limit: StoreLimit::Device, .. }), "{error}");
        let manifest = store.find(incident.id()).unwrap().manifest.unwrap();
        assert_eq!(manifest.service, "orders", "the old one, whole");
        assert_eq!(fs::read_dir(incident.path()).unwrap().count(), 1, "no half manifest");
        let error = store.create_incident("cpu", store::manifest()).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(store.save_state(&1).unwrap_err().is_full());
        assert_eq!(store.list_incidents().unwrap().len(), 1);

        others.set_len(0).unwrap();
        incident.update(|_| ()).unwrap();
        let manifest = store.find(incident.id()).unwrap().manifest.unwrap();
        assert_eq!(manifest.service, "changed");
        assert!(store.create_incident("cpu", store::manifest()).is_ok());
    });
}

#[test]
fn open_on_full_device_marks_interrupted_incidents_later() {
    let test = test_path!(open_on_full_device_marks_interrupted_incidents_later);
    rerun::under(test, store::private_mounts_command(), || {
        let temp = tempfile::tempdir().unwrap();
        store::mount_small_tmpfs(temp.path());
        let dir = temp.path().join("captures");
        let open = || Store::open(&dir, store::generous_limits(), Arc::new(SystemClock)).unwrap();
        let (store, _) = open();
        let id = store.create_incident("memory", store::manifest()).unwrap().id();
        drop(store);
        let mut others = fs::File::create(temp.path().join("others")).unwrap();
        while others.write(&[0; 4096]).is_ok() {}
        let (store, recovery) = open();
        assert!(recovery.interrupted.is_empty());
        assert!(recovery.errors[0].is_full(), "{:?}", recovery.errors);
        assert!(store.find(id).unwrap().manifest.is_ok());
        drop(store);
        others.set_len(0).unwrap();
        let (_store, recovery) = open();
        assert_eq!(recovery.interrupted, [id]);
    });
}

#[test]
fn min_free_space_is_kept_during_write() {
    let test = test_path!(min_free_space_is_kept_during_write);
    let keep = Bytes::kib(512);
    let settings =
        StoreSettings { min_free_space: DiskReserve::Bytes(keep), ..store::generous_limits() };
    run_on_small_disk(test, settings, |mount, store| {
        let old = create_closed_incident(store, 100_000);
        let incident = store.create_incident("memory", store::manifest()).unwrap();
        let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
        let error = loop {
            if let Err(error) = draft.write_all(&[7; 10_000]) {
                break error;
            }
        };
        assert!(error.to_string().contains("min_free_space"), "{error}");
        assert!(store.find(old).is_err(), "the closed one went first");
        let free = rustix::fs::statvfs(mount).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
        assert!(free >= keep.get(), "{free}");
        assert!(draft.bytes().get() > 300_000, "{}", draft.bytes());
    });
}

#[test]
fn write_beyond_file_size_limit_fails_without_sigxfsz() {
    let test = test_path!(write_beyond_file_size_limit_fails_without_sigxfsz);
    rerun::under(test, &["prlimit", "--fsize=65536"], || {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("captures");
        let (store, _) =
            Store::open(&dir, store::generous_limits(), Arc::new(SystemClock)).unwrap();
        let mut incident = store.create_incident("memory", store::manifest()).unwrap();
        let fits = |bytes: usize| {
            let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
            draft.write_all(&vec![7; bytes]).and_then(|()| draft.flush()).map(|()| draft)
        };
        fits(65_536).unwrap().commit().unwrap();
        let error = fits(65_537).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("LimitFSIZE"), "{error}");
        let error = incident.update(|manifest| manifest.service = "x".repeat(65_536)).unwrap_err();
        assert!(matches!(error, Error::Full { limit: StoreLimit::FileSize, .. }), "{error}");
        assert!(store.find(incident.id()).unwrap().manifest.is_ok());
    });
}
