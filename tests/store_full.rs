//! Tests of a full file system of 1 MiB: the write fails with a clear error, nothing already
//! written is lost, and the store continues once there is space.

mod store;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use marple::base::{Bytes, IncidentId, SystemClock};
use marple::config::{DiskReserve, StoreSettings};
use marple::model::{Artifact, CaptureKind, IncidentState};
use marple::store::{Error, IncidentDir, Store, StoreLimit};

/// Runs `body` with a store on a file system of 1 MiB.
fn on_a_small_disk(test: &str, settings: StoreSettings, body: impl FnOnce(&Path, &Store)) {
    store::again(test, store::own_mounts(), || {
        let temp = tempfile::tempdir().unwrap();
        store::mount_small(temp.path());
        let dir = temp.path().join("captures");
        let (store, _) = Store::open(&dir, settings, Arc::new(SystemClock)).unwrap();
        body(temp.path(), &store);
    });
}

fn artifact(incident: &IncidentDir, bytes: usize) -> Result<Artifact, Error> {
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    if let Err(error) = draft.write_all(&vec![7; bytes]) {
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
    draft.commit()
}

fn closed(store: &Store, bytes: usize) -> IncidentId {
    let mut incident = store.begin("memory", store::manifest()).unwrap();
    let artifact = artifact(&incident, bytes).unwrap();
    let close = |manifest: &mut marple::model::Manifest| {
        manifest.artifacts.push(artifact);
        manifest.state = IncidentState::Closed;
    };
    incident.update(close).unwrap();
    incident.id()
}

#[test]
fn a_full_device_refuses_the_write_and_keeps_what_is_there() {
    let test = "a_full_device_refuses_the_write_and_keeps_what_is_there";
    on_a_small_disk(test, store::roomy(), |mount, store| {
        let mut incident = store.begin("memory", store::manifest()).unwrap();
        let kept = artifact(&incident, 300_000).unwrap();
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
        let small = artifact(&incident, 10_000).unwrap();
        assert_eq!(small.file, "orders_eu-1.002.memory.pprof");
        fs::remove_file(mount.join("others")).unwrap();
        artifact(&incident, 400_000).unwrap();
    });
}

#[test]
fn nothing_is_removed_in_vain() {
    let test = "nothing_is_removed_in_vain";
    let settings =
        StoreSettings { keep_free: DiskReserve::Bytes(Bytes::kib(256)), ..store::roomy() };
    on_a_small_disk(test, settings, |mount, store| {
        let old = closed(store, 100_000);
        let incident = store.begin("memory", store::manifest()).unwrap();
        // Another program uses so much that deleting the old incident would not free enough.
        let others = mount.join("others");
        fs::write(&others, vec![0; 800_000]).unwrap();
        assert!(artifact(&incident, 10_000).is_err());
        assert!(store.retain().removed.is_empty());
        assert!(store.find(old).is_ok());

        // Little enough that deleting it frees enough.
        fs::write(&others, vec![0; 600_000]).unwrap();
        artifact(&incident, 90_000).unwrap();
        assert!(matches!(store.find(old), Err(Error::NoIncident { .. })));
    });
}

#[test]
fn a_device_without_a_byte_left_keeps_manifests_whole() {
    let test = "a_device_without_a_byte_left_keeps_manifests_whole";
    on_a_small_disk(test, store::roomy(), |mount, store| {
        let mut incident = store.begin("memory", store::manifest()).unwrap();
        let mut others = fs::File::create(mount.join("others")).unwrap();
        while others.write(&[0; 4096]).is_ok() {}
        let error = incident.update(|manifest| manifest.service = "changed".into()).unwrap_err();
        assert!(matches!(error, Error::Full { bound: StoreLimit::Device, .. }), "{error}");
        let manifest = store.find(incident.id()).unwrap().manifest.unwrap();
        assert_eq!(manifest.service, "orders", "the old one, whole");
        assert_eq!(fs::read_dir(incident.path()).unwrap().count(), 1, "no half manifest");
        let error = store.begin("cpu", store::manifest()).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(store.save_state(&1).unwrap_err().is_full());
        assert_eq!(store.index().unwrap().len(), 1);

        others.set_len(0).unwrap();
        incident.update(|_| ()).unwrap();
        let manifest = store.find(incident.id()).unwrap().manifest.unwrap();
        assert_eq!(manifest.service, "changed");
        assert!(store.begin("cpu", store::manifest()).is_ok());
    });
}

#[test]
fn a_start_on_a_full_device_opens_and_marks_when_there_is_room() {
    let test = "a_start_on_a_full_device_opens_and_marks_when_there_is_room";
    store::again(test, store::own_mounts(), || {
        let temp = tempfile::tempdir().unwrap();
        store::mount_small(temp.path());
        let dir = temp.path().join("captures");
        let open = || Store::open(&dir, store::roomy(), Arc::new(SystemClock)).unwrap();
        let (store, _) = open();
        let id = store.begin("memory", store::manifest()).unwrap().id();
        drop(store);
        let mut others = fs::File::create(temp.path().join("others")).unwrap();
        while others.write(&[0; 4096]).is_ok() {}
        let (store, recovery) = open();
        assert!(recovery.interrupted.is_empty());
        assert!(recovery.failed[0].is_full(), "{:?}", recovery.failed);
        assert!(store.find(id).unwrap().manifest.is_ok());
        drop(store);
        others.set_len(0).unwrap();
        let (_store, recovery) = open();
        assert_eq!(recovery.interrupted, [id]);
    });
}

#[test]
fn the_room_of_others_is_kept_during_a_write() {
    let test = "the_room_of_others_is_kept_during_a_write";
    let keep = Bytes::kib(512);
    let settings = StoreSettings { keep_free: DiskReserve::Bytes(keep), ..store::roomy() };
    on_a_small_disk(test, settings, |mount, store| {
        let old = closed(store, 100_000);
        let incident = store.begin("memory", store::manifest()).unwrap();
        let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
        let error = loop {
            if let Err(error) = draft.write_all(&[7; 10_000]) {
                break error;
            }
        };
        assert!(error.to_string().contains("keep_free"), "{error}");
        assert!(store.find(old).is_err(), "the closed one went first");
        let free = rustix::fs::statvfs(mount).map(|it| it.f_bavail * it.f_frsize).unwrap();
        assert!(free >= keep.get(), "{free}");
        assert!(draft.bytes().get() > 300_000, "{}", draft.bytes());
    });
}

#[test]
fn a_limit_on_the_size_of_files_refuses_the_write_before_the_kernel_kills_for_it() {
    let test = "a_limit_on_the_size_of_files_refuses_the_write_before_the_kernel_kills_for_it";
    store::again(test, &["prlimit", "--fsize=65536"], || {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("captures");
        let (store, _) = Store::open(&dir, store::roomy(), Arc::new(SystemClock)).unwrap();
        let mut incident = store.begin("memory", store::manifest()).unwrap();
        let fits = |bytes: usize| {
            let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
            draft.write_all(&vec![7; bytes]).and_then(|()| draft.flush()).map(|()| draft)
        };
        fits(65_536).unwrap().commit().unwrap();
        let error = fits(65_537).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("LimitFSIZE"), "{error}");
        let error = incident.update(|manifest| manifest.service = "x".repeat(65_536)).unwrap_err();
        assert!(matches!(error, Error::Full { bound: StoreLimit::FileSize, .. }), "{error}");
        assert!(store.find(incident.id()).unwrap().manifest.is_ok());
    });
}
