//! Tests of a disk quota that is exhausted while the agent runs. The test kernel may have no
//! quotas, so a filter on system calls fails large writes as a quota does: large artifacts are
//! refused and small ones are still written.

use std::io::Write;
use std::time::Duration;

use marple::Settings;
use marple::internals::agent::CollectorOutput;
use marple::internals::model::{CaptureKind, Outcome};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::seccomp::{
    self, NUMBER_OFFSET, THIRD_ARG_OFFSET, allow, fail, load, require_at_least, require_equal,
};

/// Size from which writes exceed the quota. Manifests are smaller.
const LARGE_WRITE_BYTES: u32 = 32 << 10;

/// Makes large writes of every thread fail as at the end of a quota.
fn exhaust_quota() {
    seccomp::install(&mut [
        load(NUMBER_OFFSET),
        require_equal(libc::SYS_write as u32, 3),
        load(THIRD_ARG_OFFSET),
        require_at_least(LARGE_WRITE_BYTES, 1),
        fail(libc::EDQUOT),
        allow(),
    ]);
}

#[test]
fn exhausted_quota_is_reported_and_small_artifacts_are_written() {
    // Few rows of vitals keep the manifest small.
    let interval = Duration::from_secs(1);
    let host = Host::start(Settings { interval, rules: Vec::new(), ..settings() });
    let handle = host.handle();
    let large = |out: &mut CollectorOutput| Ok(out.write_all(&[7; 300_000])?);
    handle.add_collector("large.txt", Default::default(), large).unwrap();
    let status = || handle.status().wait(WAIT_TIMEOUT).unwrap();
    let capture = || {
        let id = handle.capture([CaptureKind::Heap], Duration::from_millis(50));
        let id = id.wait(WAIT_TIMEOUT).unwrap().incident;
        wait_for("it to close", || {
            let found = host.incidents().into_iter().find(|(_, manifest)| manifest.id == id)?;
            found.1.closed.is_some().then_some(found)
        })
    };
    let large_of = |(dir, manifest): &(std::path::PathBuf, marple::internals::model::Manifest)| {
        let record =
            manifest.captures.iter().find(|entry| entry.engine == "large.txt").unwrap().clone();
        (record, dir.join("large.txt"), manifest.artifacts.len())
    };
    let (record, _, kept) = large_of(&capture());
    assert_eq!((record.outcome, kept), (Outcome::Done, 3));
    let bytes_before = status().store.bytes;

    exhaust_quota();
    let incident = capture();
    let (record, _, kept) = large_of(&incident);
    assert_eq!((record.outcome, kept), (Outcome::Failed, 2), "{record:?}");
    assert!(record.error.as_ref().unwrap().contains("raise the quota"), "{record:?}");
    let heap = |artifact: &&marple::internals::model::Artifact| artifact.kind == CaptureKind::Heap;
    assert_eq!(incident.1.artifacts.iter().filter(heap).count(), 2);
    let files = std::fs::read_dir(&incident.0).unwrap().count();
    assert_eq!(files, 4, "manifest, report, two profiles, and nothing that is half written");
    let after = status();
    assert!(after.last_failure.unwrap().contains("raise the quota"));
    assert!(after.failures.iter().any(|failure| failure.count == 1), "{:?}", after.failures);
    let grown = after.store.bytes.get() - bytes_before.get();
    assert!(grown < 300_000, "room that was not used is given back: {grown}");
    let ticks = after.counters.ticks;
    wait_for("the next tick", || (status().counters.ticks > ticks).then_some(()));
}
