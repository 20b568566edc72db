//! Drafts on a failing device. The kernel produces the failures: the file is replaced by a device
//! that rejects writes with the expected error. Only the quota error is simulated, because few
//! machines have quotas.

use std::fs::File;
use std::io::{ErrorKind, Write};

use super::*;
use crate::model::CaptureKind;
use crate::store::fixture::{Fixture, generous_settings};

#[test]
fn device_failure_discards_only_that_artifact() {
    for (device, kind, message) in [
        ("/dev/full", ErrorKind::StorageFull, "the file system is full"),
        ("/proc/self/mem", ErrorKind::Other, "Input/output error"),
    ] {
        let fixture = Fixture::new(generous_settings());
        let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let mut draft = incident.draft(CaptureKind::Heap, fixture.manifest().opened).unwrap();
        draft.write_all(b"whole so far").unwrap();
        draft.flush().unwrap();
        draft.file = File::options().write(true).open(device).unwrap();
        draft.write_all(b"x").unwrap();
        let error = draft.flush().unwrap_err();
        assert!(error.kind() == kind || kind == ErrorKind::Other, "{error:?}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.to_string().contains("001.memory.pprof"), "the path is named: {error}");
        assert_eq!(
            draft.rejected_size(),
            None,
            "not a limit of the store: eviction does not free space for it"
        );
        assert!(draft.write(b"more").is_err());
        assert!(matches!(draft.commit(), Err(Error::Incomplete { .. })));
        assert_eq!(std::fs::read_dir(incident.path()).unwrap().count(), 1, "the manifest alone");
        assert_eq!(fixture.store.inner.lock_usage().reserved_bytes, 0);
        // The device works again.
        let mut next = incident.draft(CaptureKind::Heap, fixture.manifest().opened).unwrap();
        next.write_all(b"y").unwrap();
        let artifact = next.commit().unwrap();
        incident.update(|manifest| manifest.artifacts.push(artifact)).unwrap();
    }
}

#[test]
fn exhausted_quota_is_reported_as_quota() {
    let quota = || io::Error::from_raw_os_error(rustix::io::Errno::DQUOT.raw_os_error());
    let error = Error::io("write", "/captures/x".into(), quota());
    assert!(matches!(error, Error::Full { limit: StoreLimit::Quota, .. }), "{error}");
    assert!(error.to_string().contains("raise the quota"), "{error}");
    assert!(!error.is_store_limit(), "eviction does not free space for it");
    assert_eq!(io::Error::from(error).kind(), ErrorKind::QuotaExceeded);
}
