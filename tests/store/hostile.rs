//! Tests of directories with unexpected content, or that change during use: each gives a clear
//! error, and nothing is written or removed elsewhere.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use marple::internals::base::SystemClock;
use marple::internals::model::CaptureKind;
use marple::internals::store::{Error, Location, Store};

use crate::support::rerun::{self, test_path};
use crate::support::store;

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, store::generous_limits(), Arc::new(SystemClock)).map(|(store, _)| store)
}

fn open_error(dir: &Path) -> Error {
    open(dir).err().unwrap_or_else(|| panic!("{} was opened", dir.display()))
}

#[test]
fn created_directories_are_private() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("a/b/captures");
    open(&dir).unwrap();
    for made in ["a", "a/b", "a/b/captures"] {
        let mode = fs::metadata(temp.path().join(made)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{made}");
    }
    let lock = fs::metadata(dir.join(".lock")).unwrap();
    assert_eq!(lock.permissions().mode() & 0o7777, 0o600);
}

#[test]
fn symlink_as_incident_directory_is_rejected_in_any_notation() {
    let temp = tempfile::tempdir().unwrap();
    let (real, link) = (temp.path().join("real"), temp.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    symlink(temp.path().join("nowhere"), temp.path().join("dangling")).unwrap();
    for written in ["link", "link/", "link/.", "./link//", "dangling"] {
        let error = open_error(&temp.path().join(written));
        assert!(matches!(error, Error::NotADirectory { .. }), "{written}: {error}");
        assert!(error.to_string().contains("a symbolic link"), "{error}");
    }
    assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
    assert!(!temp.path().join("nowhere").exists());
    open(&real).unwrap();
}

#[test]
fn file_as_incident_directory_is_rejected() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(open_error(&file).to_string().contains("is a file, not a directory"));
    assert!(matches!(open_error(&file.join("below")), Error::Io { .. }));
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn world_writable_directory_gets_private_subdirectory() {
    let temp = tempfile::tempdir().unwrap();
    let own = temp.path().join(format!("marple-{}", rustix::process::geteuid().as_raw()));
    for (mode, used) in [
        (0o755, temp.path()),
        (0o777, &own),
        (0o1777, &own),
        (0o770, &own),
        (0o702, &own),
        (0o700, temp.path()),
    ] {
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(open(temp.path()).unwrap().dir(), used, "{mode:o}");
    }
}

#[test]
fn directory_swapped_for_symlink_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, moved, victim) =
        (temp.path().join("captures"), temp.path().join("moved"), temp.path().join("victim"));
    fs::create_dir(&victim).unwrap();
    let store = open(&dir).unwrap();
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let inside = victim.join(incident.path().file_name().unwrap());
    fs::create_dir(&inside).unwrap();
    fs::rename(&dir, &moved).unwrap();
    symlink(&victim, &dir).unwrap();

    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"secret").unwrap();
    let artifact = draft.commit().unwrap();
    incident.update(|manifest| manifest.artifacts.push(artifact.clone())).unwrap();
    let _another = store.create_incident("cpu", store::manifest()).unwrap();
    store.save_state(&1).unwrap();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
    assert!(moved.join(inside.file_name().unwrap()).join(&artifact.file).exists());
    assert_eq!(store.list_incidents().unwrap().len(), 2);

    // The same with the directory of an incident.
    let path = moved.join(inside.file_name().unwrap());
    fs::rename(&path, temp.path().join("incident")).unwrap();
    symlink(&victim, &path).unwrap();
    incident.draft(CaptureKind::Cpu, Timestamp::now()).unwrap().commit().unwrap();
    incident.update(|_| ()).unwrap();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert!(store.open_artifact(incident.id(), "incident.json").is_err());
    assert_eq!(store.list_incidents().unwrap().len(), 1);
}

#[test]
fn planted_symlinks_are_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let precious = temp.path().join("precious");
    // Valid as a state file, if a reader followed the link.
    fs::write(&precious, "41").unwrap();
    let dir = temp.path().join("captures");
    let store = open(&dir).unwrap();
    symlink(&precious, dir.join("state.json")).unwrap();
    symlink(&precious, dir.join("state.json.part")).unwrap();
    assert!(store.load_state::<u32>().is_err());
    store.save_state(&7).unwrap();
    assert_eq!(store.load_state::<u32>().unwrap(), Some(7));

    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    for planted in ["incident.json.part", ".draft-0.part", "orders_eu-1.001.memory.pprof"] {
        symlink(&precious, incident.path().join(planted)).unwrap();
    }
    let moved = temp.path().join("moved.json");
    fs::rename(incident.path().join("incident.json"), &moved).unwrap();
    symlink(&moved, incident.path().join("incident.json")).unwrap();
    assert!(store.find(incident.id()).unwrap().manifest.is_err());

    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"secret").unwrap();
    assert_eq!(draft.commit().unwrap().file, "orders_eu-1.002.memory.pprof");
    incident.update(|manifest| manifest.service = "changed".into()).unwrap();
    assert_eq!(store.find(incident.id()).unwrap().manifest.unwrap().service, "changed");
    assert!(!fs::read_to_string(&moved).unwrap().contains("changed"));
    let id = incident.id();
    drop((incident, store));

    // A start does not follow it either, although it sweeps partial files and reads unlisted ones.
    let (store, recovery) =
        Store::open(&dir, store::generous_limits(), Arc::new(SystemClock)).unwrap();
    assert_eq!(recovery.interrupted, [id]);
    assert_eq!(recovery.added_artifacts.len(), 1, "the link is not an artifact");
    assert_eq!(fs::read(&precious).unwrap(), b"41");
    drop(store);

    fs::remove_file(dir.join(".lock")).unwrap();
    symlink(&precious, dir.join(".lock")).unwrap();
    assert!(open_error(&dir).to_string().contains(".lock"));
    assert_eq!(fs::read(&precious).unwrap(), b"41");
}

#[test]
fn directory_removed_during_use_is_clear_error() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    let store = open(&dir).unwrap();
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"x").unwrap();
    fs::remove_dir_all(&dir).unwrap();

    let errors = [
        draft.commit().unwrap_err(),
        incident.update(|_| ()).unwrap_err(),
        incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap_err(),
        store.create_incident("memory", store::manifest()).unwrap_err(),
        store.save_state(&1).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Removed { .. }), "{error}");
        assert!(error.to_string().contains("captures"), "{error}");
    }
    assert!(matches!(store.find(incident.id()), Err(Error::NoIncident { .. })));
    assert!(store.enforce_limits().evicted.is_empty());
    assert!(!dir.exists());
    // A store on a new directory with that name is a different one.
    open(&dir).unwrap();
}

#[test]
fn incident_removed_during_use_does_not_affect_others() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(&temp.path().join("captures")).unwrap();
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    fs::remove_dir_all(incident.path()).unwrap();
    assert!(matches!(incident.update(|_| ()), Err(Error::Removed { .. })));
    let mut other = store.create_incident("cpu", store::manifest()).unwrap();
    other.update(|_| ()).unwrap();
    assert_eq!(store.list_incidents().unwrap().len(), 1);
}

#[test]
fn read_only_file_system_is_clear_error_and_readable() {
    let test = test_path!(read_only_file_system_is_clear_error_and_readable);
    rerun::under(test, store::private_mounts_command(), || {
        let temp = tempfile::tempdir().unwrap();
        store::mount_small_tmpfs(temp.path());
        let dir = temp.path().join("captures");
        let id = open(&dir).unwrap().create_incident("memory", store::manifest()).unwrap().id();
        store::mount(&["-o", "remount,bind,ro", temp.path().to_str().unwrap()]);
        for dir in [&dir, &temp.path().join("fresh")] {
            let error = open_error(dir);
            assert!(error.to_string().contains("mount it writable"), "{error}");
            assert_eq!(std::io::Error::from(error).kind(), ErrorKind::ReadOnlyFilesystem);
        }
        let location = Location::new(&dir);
        assert_eq!(location.entries().unwrap().count(), 1);
        assert!(location.open_artifact(id, "incident.json").is_ok());
    });
}

#[test]
fn directory_without_permission_is_clear_error() {
    // Root bypasses permissions, so the test runs as another user then.
    let test = test_path!(directory_without_permission_is_clear_error);
    let body = || {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("captures");
        let allow = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        let store = open(&dir).unwrap();
        let incident = store.create_incident("memory", store::manifest()).unwrap();
        allow(0o500);
        for error in [
            store.create_incident("memory", store::manifest()).unwrap_err(),
            store.save_state(&1).unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("give this process's user write permission"),
                "{error}"
            );
        }
        incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap().commit().unwrap();
        allow(0o700);
        drop((incident, store));
        allow(0o000);
        assert!(open_error(&dir).to_string().contains("Permission denied"));
        allow(0o700);
        assert!(open(&dir).is_ok());
    };
    if rustix::process::geteuid().is_root() {
        let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        rerun::under(test, &as_nobody, body);
    } else {
        body();
    }
}
