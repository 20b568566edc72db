//! Tests of volume mount points as orchestrators provide them: writable, but not owned by the
//! process alone. Each process runs as a different user, so these tests need root, which CI has.
#![cfg(target_os = "linux")]

mod store;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use marple::base::{SystemClock, warnings};
use marple::config::StoreSettings;
use marple::model::CaptureKind;
use marple::store::{Error, ErrorKind, Location, Store};
use rustix::fs::{Gid, Uid, chown};

/// A mount point and the process that uses it.
#[derive(Clone, Copy)]
struct Volume {
    name: &'static str,
    mode: u32,
    owner: u32,
    group: u32,
    /// User and group of the process, and one supplementary group.
    process: [u32; 3],
}

const VOLUMES: [Volume; 6] = [
    Volume { name: "fs-group", mode: 0o2775, owner: 0, group: 4242, process: [1000, 1000, 4242] },
    Volume { name: "empty-dir", mode: 0o777, owner: 0, group: 0, process: [1000, 1000, 1000] },
    Volume { name: "sticky", mode: 0o1777, owner: 0, group: 0, process: [1000, 1000, 1000] },
    Volume { name: "random-user", mode: 0o775, owner: 0, group: 0, process: [1_000_650_000, 0, 0] },
    Volume { name: "own", mode: 0o775, owner: 1000, group: 1000, process: [1000, 1000, 1000] },
    Volume { name: "root", mode: 0o755, owner: 1000, group: 1000, process: [0, 0, 0] },
];

/// Environment variable with the directory of the mount points.
const BASE: &str = "STORE_VOLUME_BASE";

fn base() -> std::path::PathBuf {
    std::env::var_os(BASE).unwrap().into()
}

/// Runs `body` as the process of `volume`. `test` is the name of the calling test.
fn as_process(test: &str, at: &Path, volume: &Volume, body: impl FnOnce()) -> bool {
    let [user, group, other] = volume.process.map(|id| id.to_string());
    let base = format!("{BASE}={}", at.display());
    let name = format!("STORE_VOLUME_NAME={}", volume.name);
    #[rustfmt::skip]
    let wrapper =
        ["env", &base, &name, "setpriv", "--reuid", &user, "--regid", &group, "--groups", &other];
    store::again(test, &wrapper, body)
}

/// Returns the volume that this process uses.
fn given() -> Volume {
    let name = std::env::var("STORE_VOLUME_NAME").unwrap();
    *VOLUMES.iter().find(|volume| volume.name == name).unwrap()
}

fn make(at: &Path, volume: &Volume) {
    let dir = at.join(volume.name);
    fs::create_dir(&dir).unwrap();
    let (owner, group) = (Uid::from_raw(volume.owner), Gid::from_raw(volume.group));
    chown(&dir, Some(owner), Some(group)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(volume.mode)).unwrap();
}

fn base_of_all() -> Option<tempfile::TempDir> {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI is root");
        eprintln!("not run: other users' directories need root");
        return None;
    }
    Some(temp)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn open(dir: &Path, group_read: bool) -> Result<Store, Error> {
    let settings = StoreSettings { group_read, ..store::roomy() };
    Store::open(dir, settings, Arc::new(SystemClock)).map(|(store, _)| store)
}

/// Creates a closed incident with one file and returns its path.
fn incident(store: &Store) -> std::path::PathBuf {
    let mut incident = store.begin("memory", store::manifest()).unwrap();
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"secret").unwrap();
    let artifact = draft.commit().unwrap();
    incident.update(|manifest| manifest.artifacts.push(artifact)).unwrap();
    incident.path().to_owned()
}

#[test]
fn a_mount_point_that_is_not_ours_alone_gets_a_private_directory() {
    let this = "a_mount_point_that_is_not_ours_alone_gets_a_private_directory";
    if std::env::var_os(BASE).is_some() {
        store::again(this, &[], || in_a_private_directory(&base(), &given()));
        return;
    }
    let Some(temp) = base_of_all() else { return };
    for volume in &VOLUMES {
        make(temp.path(), volume);
        // The second process is a restart.
        for _ in 0..2 {
            as_process(this, temp.path(), volume, || unreachable!());
        }
    }
}

fn in_a_private_directory(base: &Path, volume: &Volume) {
    let mount = base.join(volume.name);
    let user = volume.process[0];
    let location = Location::new(&mount);
    let settings = store::roomy();
    let (store, _) = Store::open_at(&location, settings, Arc::new(SystemClock)).unwrap();
    let own = mount.join(format!("marple-{user}"));
    assert_eq!((store.dir(), location.path().as_path()), (own.as_path(), own.as_path()));
    let before = store.index().unwrap().len();
    let path = incident(&store);
    for (made, wanted) in [(&own, 0o700), (&path, 0o700), (&path.join("incident.json"), 0o600)] {
        assert_eq!(mode(made) & 0o777, wanted, "{}", made.display());
        assert_eq!(fs::metadata(made).unwrap().uid(), user);
    }
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 1, "nothing else was left");
    let said = warnings::list().into_iter().find(|it| it.topic == "store.place").unwrap();
    assert!(said.text.contains(own.to_str().unwrap()), "{}", said.text);
    assert_eq!(marple::store::list(&mount).unwrap().len(), before + 1, "readers find them");
    // The next process of this user gets an error that names the owner, and does not use another
    // directory.
    assert_eq!(open(&mount, false).unwrap_err().kind(), ErrorKind::Busy);
    let first_run = before == 0;
    assert!(first_run || before == 1, "{before}: the one of the process before is found");
}

#[test]
fn what_another_user_has_put_in_the_place_of_our_directory_is_not_used() {
    let this = "what_another_user_has_put_in_the_place_of_our_directory_is_not_used";
    let volume = &VOLUMES[1];
    if std::env::var_os(BASE).is_some() {
        store::again(this, &[], || {
            let mount = base().join(volume.name);
            let store = open(&mount, false).unwrap();
            assert_eq!(store.dir(), mount.join("marple-1000-4"));
            assert!(marple::store::list(&mount).unwrap().is_empty());
            incident(&store);
            assert_eq!(marple::store::list(&mount).unwrap().len(), 1);
        });
        return;
    }
    let Some(temp) = base_of_all() else { return };
    make(temp.path(), volume);
    let mount = temp.path().join(volume.name);
    let victim = temp.path().join("victim");
    fs::create_dir(&victim).unwrap();
    chown(&victim, Some(Uid::from_raw(1000)), None).unwrap();
    // A link to our own directory, another user's directory, and a file.
    symlink(&victim, mount.join("marple-1000")).unwrap();
    fs::create_dir(mount.join("marple-1000-2")).unwrap();
    fs::write(mount.join("marple-1000-3"), "").unwrap();
    as_process(this, temp.path(), volume, || unreachable!());
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert_eq!(fs::read_dir(mount.join("marple-1000-2")).unwrap().count(), 0);
}

#[test]
fn a_directory_we_may_not_write_is_an_error_of_its_kind() {
    let this = "a_directory_we_may_not_write_is_an_error_of_its_kind";
    let volume = &VOLUMES[0];
    if std::env::var_os(BASE).is_some() {
        store::again(this, &[], || {
            let error = open(&base(), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
            let error = open(&base().join("below"), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
            assert_eq!(fs::read_dir(base()).unwrap().count(), 0);
        });
        return;
    }
    let Some(temp) = base_of_all() else { return };
    as_process(this, temp.path(), volume, || unreachable!());
}

#[test]
fn with_group_read_a_sidecar_of_the_group_reads_and_nobody_else_does() {
    let this = "with_group_read_a_sidecar_of_the_group_reads_and_nobody_else_does";
    let sidecar = Volume { process: [2000, 2000, 4242], ..VOLUMES[0] };
    let stranger = Volume { process: [2001, 2001, 2001], ..VOLUMES[0] };
    if std::env::var_os(BASE).is_some() {
        store::again(this, &[], || {
            let mount = base().join("fs-group");
            match rustix::process::geteuid().as_raw() {
                1000 => {
                    // A umask that many services use.
                    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
                    for dir in [mount.clone(), mount.join("a/b")] {
                        let store = open(&dir, true).unwrap();
                        let path = incident(&store);
                        assert_eq!(mode(store.dir()), 0o2750);
                        assert_eq!(mode(&path), 0o2750);
                        assert_eq!(mode(&path.join("incident.json")), 0o640);
                        assert_eq!(fs::metadata(&path).unwrap().gid(), 4242);
                    }
                    let topics: Vec<_> = warnings::list().iter().map(|it| it.topic).collect();
                    assert!(!topics.contains(&"store.group_read"), "{topics:?}");
                }
                user => {
                    for dir in [mount.join("marple-1000"), mount.join("a/b")] {
                        let found = marple::store::list(&dir);
                        assert_eq!(found.is_ok(), user == 2000, "{}", dir.display());
                        for entry in found.into_iter().flatten() {
                            let manifest = entry.manifest.unwrap();
                            let file = entry.path.join(&manifest.artifacts[0].file);
                            assert_eq!(fs::read(&file).unwrap(), b"secret");
                            assert!(fs::write(&file, "x").is_err());
                            assert!(fs::write(entry.path.join("x"), "x").is_err());
                        }
                    }
                }
            }
        });
        return;
    }
    let Some(temp) = base_of_all() else { return };
    make(temp.path(), &VOLUMES[0]);
    for process in [&VOLUMES[0], &sidecar, &stranger] {
        as_process(this, temp.path(), process, || unreachable!());
    }
}
