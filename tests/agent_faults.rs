//! A host whose directory of incidents fails while it runs: too many open files, a limit on the size of
//! files, a file system that turns read-only, too little room for everything. The host goes on, is told,
//! and has captures again when the fault is over. Each runs in a process of its own.

mod host;
mod store;

use std::alloc::System;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use host::{PATIENCE, incidents, settings, wait_for};
use marple::base::Bytes;
use marple::model::{CaptureKind, Manifest, Outcome};
use marple::{Agent, AgentHandle, CaptureSet, Settings};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const SHORT: Duration = Duration::from_millis(50);

fn start(captures: &Path) -> Agent {
    // Few rows of vitals, so that a manifest is small.
    let interval = Duration::from_secs(1);
    let settings = Settings { dir: captures.to_owned(), rules: Vec::new(), interval, ..settings() };
    Agent::from_settings(settings).start().unwrap()
}

/// Captures once and waits until the incident is over.
fn capture(handle: &AgentHandle, captures: &Path, kinds: impl Into<CaptureSet>) -> Manifest {
    let id = handle.capture(kinds, SHORT).wait(PATIENCE).unwrap().incident;
    wait_for("it to close", || {
        let found = incidents(captures).into_iter().map(|(_, manifest)| manifest);
        found.filter(|it| it.closed.is_some()).find(|it| it.id == id)
    })
}

/// Ticks go on, whatever is the matter with the disk.
fn ticks(handle: &AgentHandle) {
    let ticks = || handle.status().wait(PATIENCE).unwrap().counters.ticks;
    let before = ticks();
    wait_for("the next tick", || (ticks() > before).then_some(()));
}

#[test]
fn a_host_out_of_descriptors_is_told_and_has_captures_when_it_has_some() {
    let test = "a_host_out_of_descriptors_is_told_and_has_captures_when_it_has_some";
    store::again(test, &["prlimit", "--nofile=200"], || {
        let home = tempfile::tempdir().unwrap();
        let captures = home.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        assert_eq!(capture(&handle, &captures, [CaptureKind::Heap]).artifacts.len(), 2);

        let mut held = Vec::new();
        let error = wait_for("a refusal", || {
            // The agent gives some back as it ends what it does: they are taken too.
            while let Ok(file) = File::open("/dev/null") {
                held.push(file);
            }
            handle.capture([CaptureKind::Heap], SHORT).wait(PATIENCE).err()
        });
        let told = format!("{error}: {:?}", handle.status().wait(PATIENCE).unwrap().last_failure);
        assert!(told.contains("raise `ulimit -n`"), "{told}");
        ticks(&handle);

        drop(held);
        assert_eq!(capture(&handle, &captures, [CaptureKind::Heap]).artifacts.len(), 2);
    });
}

#[test]
fn a_limit_on_the_size_of_files_does_not_kill_the_host() {
    let test = "a_limit_on_the_size_of_files_does_not_kill_the_host";
    store::again(test, &["prlimit", "--fsize=32768"], || {
        let home = tempfile::tempdir().unwrap();
        let captures = home.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        let large = |out: &mut marple::agent::CollectorOutput| Ok(out.write_all(&[7; 100_000])?);
        handle.collector("large.txt", Default::default(), large).unwrap();
        let manifest = capture(&handle, &captures, [CaptureKind::Heap]);
        let record = manifest.captures.iter().find(|it| it.engine == "large.txt").unwrap();
        assert_eq!(record.outcome, Outcome::Failed, "{record:?}");
        assert!(record.error.as_ref().unwrap().contains("LimitFSIZE"), "{record:?}");
        assert_eq!(manifest.artifacts.iter().filter(|it| it.kind == CaptureKind::Heap).count(), 2);
        ticks(&handle);
    });
}

#[test]
fn a_file_system_that_turns_read_only_is_told_and_survived() {
    let test = "a_file_system_that_turns_read_only_is_told_and_survived";
    store::again(test, store::own_mounts(), || {
        let disk = tempfile::tempdir().unwrap();
        store::mount_small(disk.path());
        let mount = |how: &str| store::mount(&["-o", how, disk.path().to_str().unwrap()]);
        // One that has descriptors open for writing refuses; a bind mount does not.
        store::mount(&["--bind", disk.path().to_str().unwrap(), disk.path().to_str().unwrap()]);
        let captures = disk.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        assert_eq!(capture(&handle, &captures, [CaptureKind::Heap]).artifacts.len(), 2);

        // The lock is open for writing: the kernel has to be asked lazily.
        let turned = std::process::Command::new("mount")
            .args(["-o", "remount,bind,ro", disk.path().to_str().unwrap()])
            .status()
            .unwrap();
        if !turned.success() {
            return println!("not run: a file system in use cannot be made read-only here");
        }
        let error = handle.capture([CaptureKind::Heap], SHORT).wait(PATIENCE).unwrap_err();
        let told = format!("{error}: {:?}", handle.status().wait(PATIENCE).unwrap().last_failure);
        assert!(told.contains("mount it writable"), "{told}");
        ticks(&handle);

        mount("remount,bind,rw");
        assert_eq!(capture(&handle, &captures, [CaptureKind::Heap]).artifacts.len(), 2);
    });
}

#[test]
fn with_too_little_room_what_is_cheap_is_there_and_the_rest_is_said_to_be_skipped() {
    let test = "with_too_little_room_what_is_cheap_is_there_and_the_rest_is_said_to_be_skipped";
    store::again(test, store::own_mounts(), || {
        let disk = tempfile::tempdir().unwrap();
        store::mount_small(disk.path());
        let captures = disk.path().join("captures");
        let agent = start(&captures);
        let handle = agent.handle();
        let free = || {
            let stat = rustix::fs::statvfs(disk.path()).unwrap();
            stat.f_bavail * stat.f_frsize
        };
        let others = usize::try_from(free() - Bytes::kib(120).get()).unwrap();
        fs::write(disk.path().join("others"), vec![1; others]).unwrap();

        let manifest = capture(&handle, &captures, CaptureSet::all());
        let outcome = |kind| manifest.captures.iter().find(|it| it.kind == kind).unwrap();
        let trace = outcome(CaptureKind::Trace);
        assert_eq!(trace.outcome, Outcome::Skipped, "{trace:?}");
        let why = trace.error.as_ref().unwrap();
        assert!(why.contains("keep_free") && why.contains("went first"), "{why}");
        for kind in [CaptureKind::Threads, CaptureKind::Tasks, CaptureKind::Heap] {
            assert_eq!(outcome(kind).outcome, Outcome::Done, "{:?}", manifest.captures);
        }
        let first = manifest.captures.iter().map(|it| it.kind).next();
        assert_eq!(first, Some(CaptureKind::Threads), "from cheap to dear");
        fs::remove_file(disk.path().join("others")).unwrap();
        let whole = capture(&handle, &captures, CaptureSet::all());
        let first = whole.captures.iter().map(|it| it.kind).next();
        assert_eq!(first, Some(CaptureKind::Trace), "what vanishes first");
        assert!(whole.captures.iter().all(|it| it.outcome == Outcome::Done), "{whole:#?}");
    });
}
