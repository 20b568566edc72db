//! Tests of file systems that lack a feature, emulated by filters on system calls. In all cases an
//! incident has its manifest and its artifacts, nothing is replaced, and a warning names the
//! missing feature.
//!
//! A filter is permanent and applies to all threads, so each combination runs in a separate
//! process. A new combination is another row of [`COMBINATIONS`].

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use libc::sock_filter;
use marple::internals::base::{SystemClock, warnings};
use marple::internals::model::{CaptureKind, IncidentState};
use marple::internals::store::{ArtifactDraft, Error, Recovery, Store};

use crate::support::rerun::{self, test_path};
use crate::support::seccomp::{
    self, NUMBER_OFFSET, SECOND_ARG_OFFSET, THIRD_ARG_OFFSET, allow, and, fail, load, require_equal,
};
use crate::support::store;

/// Calls that fail with an error.
#[derive(Clone, Copy)]
enum MissingFeature {
    Call(i64, i32),
    /// `openat` with `O_TMPFILE`.
    Unnamed(i32),
    /// `fcntl` with `F_OFD_SETLK`.
    OpenFileLock(i32),
    /// `openat` with `O_RDWR`.
    ReadWrite(i32),
}

use MissingFeature::{Call, OpenFileLock, ReadWrite, Unnamed};
use libc::{
    EACCES, EBADF, EINVAL, EIO, EISDIR, ENOENT, ENOLCK, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM, EXDEV,
    SYS_fchmod, SYS_fdatasync, SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_linkat, SYS_renameat2,
};

const LOCK: &str = "store.lock";
const SYNC: &str = "store.sync";
const DIR_SYNC: &str = "store.directory_sync";
const UNNAMED_FILES: &str = "store.unnamed_files";
const RENAME: &str = "store.rename";
const LINKS: &str = "store.links";

/// Missing features, and the topics of the warnings about them.
const COMBINATIONS: &[(&[MissingFeature], &[&str])] = &[
    (&[], &[]),
    (&[Call(libc::SYS_flock, ENOSYS)], &[LOCK]),
    (&[Call(libc::SYS_flock, ENOLCK)], &[LOCK]),
    (&[Call(libc::SYS_flock, EBADF), OpenFileLock(EBADF)], &[LOCK]),
    (&[Call(libc::SYS_flock, EINVAL), OpenFileLock(EINVAL)], &[LOCK]),
    (&[Call(libc::SYS_flock, EPERM), OpenFileLock(EIO)], &[LOCK]),
    (&[ReadWrite(EINVAL)], &[LOCK, UNNAMED_FILES]),
    (&[Call(SYS_fsync, EINVAL)], &[DIR_SYNC]),
    (&[Call(SYS_fsync, ENOSYS), Call(SYS_fdatasync, ENOSYS)], &[DIR_SYNC, SYNC]),
    (&[Call(SYS_fsync, EINVAL), Call(SYS_fdatasync, EOPNOTSUPP)], &[DIR_SYNC, SYNC]),
    (&[Call(SYS_fsync, EPERM), Call(SYS_fdatasync, EPERM)], &[DIR_SYNC, SYNC]),
    (&[Unnamed(EOPNOTSUPP)], &[UNNAMED_FILES]),
    (&[Unnamed(EISDIR)], &[UNNAMED_FILES]),
    (&[Unnamed(ENOENT)], &[UNNAMED_FILES]),
    // Without `/proc` an unnamed file can be created but not linked.
    (&[Call(SYS_linkat, ENOENT)], &[UNNAMED_FILES]),
    (&[Call(SYS_linkat, EPERM)], &[UNNAMED_FILES]),
    (&[Call(SYS_linkat, EOPNOTSUPP), Call(SYS_renameat2, EINVAL)], &[LINKS, RENAME, UNNAMED_FILES]),
    (&[Call(SYS_linkat, EXDEV), Call(SYS_renameat2, ENOSYS)], &[LINKS, RENAME, UNNAMED_FILES]),
    (&[Unnamed(EOPNOTSUPP), Call(SYS_renameat2, EINVAL)], &[RENAME, UNNAMED_FILES]),
    (&[Unnamed(EPERM), Call(SYS_renameat2, EPERM)], &[RENAME, UNNAMED_FILES]),
    (&[Call(SYS_linkat, ENOENT), Call(SYS_renameat2, EINVAL)], &[LINKS, RENAME, UNNAMED_FILES]),
    (
        &[Unnamed(EOPNOTSUPP), Call(SYS_linkat, EPERM), Call(SYS_renameat2, EINVAL)],
        &[LINKS, RENAME, UNNAMED_FILES],
    ),
    (
        &[Unnamed(EINVAL), Call(SYS_linkat, ENOSYS), Call(SYS_renameat2, ENOTTY)],
        &[LINKS, RENAME, UNNAMED_FILES],
    ),
    (&[Call(SYS_fstatfs, ENOSYS), Call(libc::SYS_statfs, ENOSYS)], &[]),
    (&[Call(SYS_fchmod, EPERM), Call(SYS_ftruncate, EINVAL)], &[]),
    // All at once.
    (
        &[
            Call(libc::SYS_flock, ENOSYS),
            OpenFileLock(ENOLCK),
            Call(SYS_fsync, EINVAL),
            Call(SYS_fdatasync, EINVAL),
            Unnamed(EOPNOTSUPP),
            Call(SYS_linkat, EACCES),
            Call(SYS_renameat2, EOPNOTSUPP),
            Call(SYS_fstatfs, ENOSYS),
            Call(SYS_fchmod, EPERM),
            Call(SYS_ftruncate, EPERM),
        ],
        &[DIR_SYNC, LINKS, LOCK, RENAME, SYNC, UNNAMED_FILES],
    ),
];

fn filter(lacks: &[MissingFeature]) -> Vec<sock_filter> {
    let mut filter = Vec::new();
    for lack in lacks {
        filter.push(load(NUMBER_OFFSET));
        match *lack {
            Call(number, errno) => filter.extend([require_equal(number as u32, 1), fail(errno)]),
            Unnamed(errno) => filter.extend([
                require_equal(libc::SYS_openat as u32, 4),
                load(THIRD_ARG_OFFSET),
                and(libc::O_TMPFILE as u32),
                require_equal(libc::O_TMPFILE as u32, 1),
                fail(errno),
            ]),
            OpenFileLock(errno) => filter.extend([
                require_equal(libc::SYS_fcntl as u32, 3),
                load(SECOND_ARG_OFFSET),
                require_equal(libc::F_OFD_SETLK as u32, 1),
                fail(errno),
            ]),
            ReadWrite(errno) => filter.extend([
                require_equal(libc::SYS_openat as u32, 4),
                load(THIRD_ARG_OFFSET),
                and(libc::O_ACCMODE as u32),
                require_equal(libc::O_RDWR as u32, 1),
                fail(errno),
            ]),
        }
    }
    filter.push(allow());
    filter
}

const CHILD_ENV: &str = "STORE_FEATURES_CHILD";

/// Runs the test at the path `test` again in a child process with `value` in its environment.
/// Returns `value` in the child and `None` in the parent.
fn child_parameter(test: &str, value: &str) -> Option<String> {
    if let Ok(what) = std::env::var(CHILD_ENV) {
        return Some(what);
    }
    let output = rerun::command(test).env(CHILD_ENV, value).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{value}: {out}\n{err}");
    None
}

fn open(dir: &Path) -> Result<(Store, Recovery), Error> {
    Store::open(dir, store::generous_limits(), Arc::new(SystemClock))
}

fn write(mut draft: ArtifactDraft, content: &[u8]) -> marple::internals::model::Artifact {
    draft.write_all(content).unwrap();
    draft.commit().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn incidents_are_complete_without_file_system_features_and_warned_about() {
    let test = test_path!(incidents_are_complete_without_file_system_features_and_warned_about);
    for at in 0..COMBINATIONS.len() {
        if let Some(at) = child_parameter(test, &at.to_string()) {
            let (lacks, topics) = COMBINATIONS[at.parse::<usize>().unwrap()];
            return assert_incidents_complete(lacks, topics);
        }
    }
}

fn assert_incidents_complete(lacks: &[MissingFeature], topics: &[&str]) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    seccomp::install(&mut filter(lacks));
    let (store, recovery) = open(&dir).unwrap();
    assert!(recovery.is_empty(), "{recovery}");
    store.save_state(&7).unwrap();
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let planted = incident.path().join("orders_eu-1.002.cpu.pprof");
    fs::write(&planted, "another's").unwrap();
    // Two drafts are created before the store detects that unnamed files cannot be linked, one
    // after.
    let drafts = [CaptureKind::Heap, CaptureKind::Cpu]
        .map(|kind| incident.draft(kind, Timestamp::now()).unwrap());
    let contents: [&[u8]; 3] = [b"heap", &[7; 300_000], b""];
    let mut artifacts: Vec<_> =
        drafts.into_iter().zip(contents).map(|(draft, content)| write(draft, content)).collect();
    let last = incident.draft(CaptureKind::Trace, Timestamp::now()).unwrap();
    artifacts.push(write(last, contents[2]));
    let kept = artifacts.clone();
    incident
        .update(|manifest| {
            manifest.artifacts = kept;
            manifest.state = IncidentState::Closed;
        })
        .unwrap();
    let id = incident.id();
    let path = incident.path().to_owned();
    drop(incident);

    let mut expected = vec!["incident.json", "orders_eu-1.001.memory.pprof"];
    expected.extend(["orders_eu-1.002.cpu.pprof", "orders_eu-1.003.cpu.pprof"]);
    expected.push(&artifacts[2].file);
    assert_eq!(names(&path), expected);
    assert!(artifacts[2].file.starts_with("orders_eu-1.004."));
    for (artifact, content) in artifacts.iter().zip(contents) {
        assert_eq!(fs::read(path.join(&artifact.file)).unwrap(), content, "{}", artifact.file);
    }
    assert_eq!(fs::read(&planted).unwrap(), b"another's");
    let entry = store.find(id).unwrap();
    assert_eq!(entry.manifest.unwrap().artifacts, artifacts);

    // Ignores the warning about directories that end with a container: the test may run in one.
    let is_of_features = |warning: &warnings::Warning| warning.topic != "store.lifetime";
    let warned: Vec<_> = warnings::list().into_iter().filter(is_of_features).collect();
    let topics_reported: Vec<&str> = warned.iter().map(|entry| entry.topic).collect();
    assert_eq!(topics_reported, topics, "{warned:#?}");
    for warning in &warned {
        assert!(warning.text.contains(dir.to_str().unwrap()), "{}", warning.text);
    }

    // Retention removes an incident, and a restart finds nothing to repair.
    fs::remove_file(&planted).unwrap();
    store.set_settings(marple::config::StoreSettings {
        max_incidents: 1,
        ..store::generous_limits()
    });
    let second = store.create_incident("cpu", store::manifest()).unwrap();
    assert!(matches!(store.find(id), Err(Error::NoIncident { .. })), "it made room");
    let second_id = second.id();
    drop((second, store));
    let (store, recovery) = open(&dir).unwrap();
    assert!(recovery.deleted.is_empty() && recovery.errors.is_empty(), "{recovery}");
    // Without a record that identifies the previous writer as this process, the incident may still
    // be open.
    let has_record = !lacks.iter().any(|lack| matches!(lack, ReadWrite(_)));
    assert_eq!(recovery.interrupted, has_record.then_some(second_id).as_slice());
    assert_eq!(store.load_state::<u32>().unwrap(), Some(7));
}

#[test]
fn failing_disk_is_not_mistaken_for_missing_sync() {
    let test = test_path!(failing_disk_is_not_mistaken_for_missing_sync);
    for errno in [EIO, libc::ENOSPC, libc::EDQUOT, EACCES] {
        if let Some(errno) = child_parameter(test, &errno.to_string()) {
            let temp = tempfile::tempdir().unwrap();
            let (store, _) = open(&temp.path().join("captures")).unwrap();
            let mut incident = store.create_incident("memory", store::manifest()).unwrap();
            let before = fs::read(incident.path().join("incident.json")).unwrap();
            let errno = errno.parse().unwrap();
            let failing = [Call(SYS_fsync, errno), Call(SYS_fdatasync, errno)];
            seccomp::install(&mut filter(&failing));
            let draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
            let error = draft.commit().unwrap_err().to_string();
            assert!(error.contains("sync") || error.contains("no space"), "{error}");
            assert!(incident.update(|manifest| manifest.service = "new".into()).is_err());
            assert!(store.create_incident("cpu", store::manifest()).is_err());
            assert_eq!(names(incident.path()), ["incident.json"]);
            assert_eq!(fs::read(incident.path().join("incident.json")).unwrap(), before);
            assert_eq!(store.list_incidents().unwrap().len(), 1);
            // Warnings that the ages of incidents cannot be written are expected too.
            let warnings_reported = warnings::list()
                .into_iter()
                .filter(|warning| !["store.max_age", "store.lifetime"].contains(&warning.topic));
            assert_eq!(warnings_reported.count(), 0);
            return;
        }
    }
}

#[test]
fn fcntl_lock_excludes_second_writer_without_flock() {
    let test = test_path!(fcntl_lock_excludes_second_writer_without_flock);
    if child_parameter(test, "flock").is_some() {
        seccomp::install(&mut filter(&[Call(libc::SYS_flock, ENOSYS)]));
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("captures");
        let (store, _) = open(&dir).unwrap();
        assert!(matches!(open(&dir), Err(Error::Busy { .. })));
        drop(store);
        open(&dir).unwrap();
    }
}

/// Sets the modification time of the incident's directory.
fn set_age(path: &Path, age: Duration) {
    let changed = SystemTime::now() - age;
    fs::File::open(path).unwrap().set_modified(changed).unwrap();
}

#[test]
fn start_without_lock_keeps_drafts_of_other_writers() {
    let test = test_path!(start_without_lock_keeps_drafts_of_other_writers);
    if child_parameter(test, "no lock").is_some() {
        seccomp::install(&mut filter(&[Call(libc::SYS_flock, ENOSYS), OpenFileLock(ENOLCK)]));
        let temp = tempfile::tempdir().unwrap();
        let dir: PathBuf = temp.path().join("captures");
        let (first, _) = open(&dir).unwrap();
        // Names another host, whose processes cannot be inspected from here.
        let record = fs::read_to_string(dir.join(".lock")).unwrap();
        let mut lines: Vec<&str> = record.lines().collect();
        lines[2] = "another-host";
        fs::write(dir.join(".lock"), lines.join("\n")).unwrap();
        let mut incident = first.create_incident("memory", store::manifest()).unwrap();
        assert!(
            warnings::list().iter().all(|warning| warning.topic != "store.writer"),
            "it is its own"
        );
        let part = incident.path().join(".draft-9.part");
        fs::write(&part, "half").unwrap();

        let (second, recovery) = open(&dir).unwrap();
        assert!(recovery.is_empty() && part.exists(), "{recovery}");
        incident.update(|manifest| manifest.state = IncidentState::Closed).unwrap();
        let _another = first.create_incident("cpu", store::manifest()).unwrap();
        let warning =
            warnings::list().into_iter().find(|warning| warning.topic == "store.writer").unwrap();
        assert!(warning.text.contains("no lock prevents it"), "{}", warning.text);

        // An incident that has not changed for a long time is recovered all the same.
        let path = incident.path().to_owned();
        drop((second, incident, first));
        let mut lines: Vec<&str> = record.lines().collect();
        lines[2] = "another-host";
        fs::write(dir.join(".lock"), lines.join("\n")).unwrap();
        set_age(&path, Duration::from_secs(3600));
        let (_third, recovery) = open(&dir).unwrap();
        assert_eq!(recovery.deleted.len(), 1, "{recovery}");
        assert!(!part.exists());
    }
}
