//! Tests of a disk quota that is exhausted while the agent runs. The test kernel may have no
//! quotas, so a filter on system calls fails large writes as a quota does: large artifacts are
//! refused and small ones are still written.
#![cfg(all(feature = "heap", target_os = "linux"))]

mod host;
mod seccomp;

use std::alloc::System;
use std::io::Write;
use std::time::Duration;

use host::{Host, PATIENCE, settings, wait_for};
use marple::Settings;
use marple::agent::CollectorOutput;
use marple::model::{CaptureKind, Outcome};
use seccomp::{NUMBER, THIRD, allow, at_least, fail, is, load};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// Size from which writes exceed the quota. Manifests are smaller.
const LARGE: u32 = 32 << 10;

/// Makes large writes of every thread fail as at the end of a quota.
fn use_up_the_quota() {
    seccomp::install(&mut [
        load(NUMBER),
        is(libc::SYS_write as u32, 3),
        load(THIRD),
        at_least(LARGE, 1),
        fail(libc::EDQUOT),
        allow(),
    ]);
}

#[test]
fn a_quota_that_is_used_up_is_told_and_what_needs_little_is_still_kept() {
    // Few rows of vitals keep the manifest small.
    let interval = Duration::from_secs(1);
    let host = Host::start(Settings { interval, rules: Vec::new(), ..settings() });
    let handle = host.handle();
    let large = |out: &mut CollectorOutput| Ok(out.write_all(&[7; 300_000])?);
    handle.collector("large.txt", Default::default(), large).unwrap();
    let status = || handle.status().wait(PATIENCE).unwrap();
    let capture = || {
        let id = handle.capture([CaptureKind::Heap], Duration::from_millis(50));
        let id = id.wait(PATIENCE).unwrap().incident;
        wait_for("it to close", || {
            let found = host.incidents().into_iter().find(|(_, it)| it.id == id)?;
            found.1.closed.is_some().then_some(found)
        })
    };
    let large_of = |(dir, manifest): &(std::path::PathBuf, marple::model::Manifest)| {
        let record = manifest.captures.iter().find(|it| it.engine == "large.txt").unwrap().clone();
        (record, dir.join("large.txt"), manifest.artifacts.len())
    };
    let (record, _, kept) = large_of(&capture());
    assert_eq!((record.outcome, kept), (Outcome::Done, 3));
    let held = status().store.bytes;

    use_up_the_quota();
    let incident = capture();
    let (record, _, kept) = large_of(&incident);
    assert_eq!((record.outcome, kept), (Outcome::Failed, 2), "{record:?}");
    assert!(record.error.as_ref().unwrap().contains("raise the quota"), "{record:?}");
    let heap = |it: &&marple::model::Artifact| it.kind == CaptureKind::Heap;
    assert_eq!(incident.1.artifacts.iter().filter(heap).count(), 2);
    let files = std::fs::read_dir(&incident.0).unwrap().count();
    assert_eq!(files, 3, "the manifest, two profiles and nothing that is half written");
    let after = status();
    assert!(after.last_failure.unwrap().contains("raise the quota"));
    assert!(after.failures.iter().any(|it| it.count == 1), "{:?}", after.failures);
    let grown = after.store.bytes.get() - held.get();
    assert!(grown < 300_000, "room that was not used is given back: {grown}");
    let ticks = after.counters.ticks;
    wait_for("the next tick", || (status().counters.ticks > ticks).then_some(()));
}
