//! Tests of volume mount points as orchestrators provide them: writable, but not owned by the
//! process alone. Each process runs as a different user, so these tests need root, which CI has.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use marple::config::StoreSettings;
use marple::internals::base::{SystemClock, warnings};
use marple::internals::model::CaptureKind;
use marple::internals::store::{Error, ErrorKind, Location, Store};
use rustix::fs::{Gid, Uid, chown};

use crate::support::rerun::{self, test_path};
use crate::support::store;

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
const BASE_ENV: &str = "STORE_VOLUME_BASE";

fn base_dir() -> std::path::PathBuf {
    std::env::var_os(BASE_ENV).unwrap().into()
}

/// Runs `body` as the process of `volume`. `test` is the name of the calling test.
fn run_as_process(test: &str, mount_base: &Path, volume: &Volume, body: impl FnOnce()) -> bool {
    let [user, group, other] = volume.process.map(|id| id.to_string());
    let base = format!("{BASE_ENV}={}", mount_base.display());
    let name = format!("STORE_VOLUME_NAME={}", volume.name);
    #[rustfmt::skip]
    let wrapper =
        ["env", &base, &name, "setpriv", "--reuid", &user, "--regid", &group, "--groups", &other];
    rerun::under(test, &wrapper, body)
}

/// Returns the volume that this process uses.
fn current_volume() -> Volume {
    let name = std::env::var("STORE_VOLUME_NAME").unwrap();
    *VOLUMES.iter().find(|volume| volume.name == name).unwrap()
}

fn create_mount_point(mount_base: &Path, volume: &Volume) {
    let dir = mount_base.join(volume.name);
    fs::create_dir(&dir).unwrap();
    let (owner, group) = (Uid::from_raw(volume.owner), Gid::from_raw(volume.group));
    chown(&dir, Some(owner), Some(group)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(volume.mode)).unwrap();
}

fn create_base_dir() -> Option<tempfile::TempDir> {
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
    let settings = StoreSettings { group_read, ..store::generous_limits() };
    Store::open(dir, settings, Arc::new(SystemClock)).map(|(store, _)| store)
}

/// Creates a closed incident with one file and returns its path.
fn create_closed_incident(store: &Store) -> std::path::PathBuf {
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"secret").unwrap();
    let artifact = draft.commit().unwrap();
    incident.update(|manifest| manifest.artifacts.push(artifact)).unwrap();
    incident.path().to_owned()
}

#[test]
fn shared_mount_point_gets_private_subdirectory() {
    let test = test_path!(shared_mount_point_gets_private_subdirectory);
    if std::env::var_os(BASE_ENV).is_some() {
        rerun::under(test, &[], || assert_private_subdirectory(&base_dir(), &current_volume()));
        return;
    }
    let Some(temp) = create_base_dir() else { return };
    for volume in &VOLUMES {
        create_mount_point(temp.path(), volume);
        // The second process is a restart.
        for _ in 0..2 {
            run_as_process(test, temp.path(), volume, || unreachable!());
        }
    }
}

fn assert_private_subdirectory(base: &Path, volume: &Volume) {
    let mount = base.join(volume.name);
    let user = volume.process[0];
    let location = Location::new(&mount);
    let settings = store::generous_limits();
    let (store, _) = Store::open_at(&location, settings, Arc::new(SystemClock)).unwrap();
    let own = mount.join(format!("marple-{user}"));
    assert_eq!((store.dir(), location.path().as_path()), (own.as_path(), own.as_path()));
    let before = store.list_incidents().unwrap().len();
    let path = create_closed_incident(&store);
    for (made, wanted) in [(&own, 0o700), (&path, 0o700), (&path.join("incident.json"), 0o600)] {
        assert_eq!(mode(made) & 0o777, wanted, "{}", made.display());
        assert_eq!(fs::metadata(made).unwrap().uid(), user);
    }
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 1, "nothing else was left");
    let warning =
        warnings::list().into_iter().find(|warning| warning.topic == "store.place").unwrap();
    assert!(warning.text.contains(own.to_str().unwrap()), "{}", warning.text);
    assert_eq!(
        marple::internals::store::list(&mount).unwrap().len(),
        before + 1,
        "readers find them"
    );
    // The next process of this user gets an error that names the owner, and does not use another
    // directory.
    assert_eq!(open(&mount, false).unwrap_err().kind(), ErrorKind::Busy);
    let first_run = before == 0;
    assert!(first_run || before == 1, "{before}: the one of the process before is found");
}

#[test]
fn subdirectory_planted_by_another_user_is_not_used() {
    let test = test_path!(subdirectory_planted_by_another_user_is_not_used);
    let volume = &VOLUMES[1];
    if std::env::var_os(BASE_ENV).is_some() {
        rerun::under(test, &[], || {
            let mount = base_dir().join(volume.name);
            let store = open(&mount, false).unwrap();
            assert_eq!(store.dir(), mount.join("marple-1000-4"));
            assert!(marple::internals::store::list(&mount).unwrap().is_empty());
            create_closed_incident(&store);
            assert_eq!(marple::internals::store::list(&mount).unwrap().len(), 1);
        });
        return;
    }
    let Some(temp) = create_base_dir() else { return };
    create_mount_point(temp.path(), volume);
    let mount = temp.path().join(volume.name);
    let victim = temp.path().join("victim");
    fs::create_dir(&victim).unwrap();
    chown(&victim, Some(Uid::from_raw(1000)), None).unwrap();
    // A link to our own directory, another user's directory, and a file.
    symlink(&victim, mount.join("marple-1000")).unwrap();
    fs::create_dir(mount.join("marple-1000-2")).unwrap();
    fs::write(mount.join("marple-1000-3"), "").unwrap();
    run_as_process(test, temp.path(), volume, || unreachable!());
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert_eq!(fs::read_dir(mount.join("marple-1000-2")).unwrap().count(), 0);
}

#[test]
fn unwritable_directory_is_permission_error() {
    let test = test_path!(unwritable_directory_is_permission_error);
    let volume = &VOLUMES[0];
    if std::env::var_os(BASE_ENV).is_some() {
        rerun::under(test, &[], || {
            let error = open(&base_dir(), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
            let error = open(&base_dir().join("below"), false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
            assert_eq!(fs::read_dir(base_dir()).unwrap().count(), 0);
        });
        return;
    }
    let Some(temp) = create_base_dir() else { return };
    run_as_process(test, temp.path(), volume, || unreachable!());
}

#[test]
fn group_read_allows_group_sidecar_only() {
    let test = test_path!(group_read_allows_group_sidecar_only);
    let sidecar = Volume { process: [2000, 2000, 4242], ..VOLUMES[0] };
    let stranger = Volume { process: [2001, 2001, 2001], ..VOLUMES[0] };
    if std::env::var_os(BASE_ENV).is_some() {
        rerun::under(test, &[], || {
            let mount = base_dir().join("fs-group");
            match rustix::process::geteuid().as_raw() {
                1000 => {
                    // A umask that many services use.
                    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
                    for dir in [mount.clone(), mount.join("a/b")] {
                        let store = open(&dir, true).unwrap();
                        let path = create_closed_incident(&store);
                        assert_eq!(mode(store.dir()), 0o2750);
                        assert_eq!(mode(&path), 0o2750);
                        assert_eq!(mode(&path.join("incident.json")), 0o640);
                        assert_eq!(fs::metadata(&path).unwrap().gid(), 4242);
                    }
                    let topics: Vec<_> =
                        warnings::list().iter().map(|warning| warning.topic).collect();
                    assert!(!topics.contains(&"store.group_read"), "{topics:?}");
                }
                user => {
                    for dir in [mount.join("marple-1000"), mount.join("a/b")] {
                        let found = marple::internals::store::list(&dir);
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
    let Some(temp) = create_base_dir() else { return };
    create_mount_point(temp.path(), &VOLUMES[0]);
    for process in [&VOLUMES[0], &sidecar, &stranger] {
        run_as_process(test, temp.path(), process, || unreachable!());
    }
}
