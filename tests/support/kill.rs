//! Processes that are killed at a random moment, and a check of the files that they leave.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::Duration;

use marple::internals::model::Manifest;
use sha2::{Digest, Sha256};

/// A random number generator (SplitMix64). Its seed is fixed, so that a run can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// Kills `child` after `delay`. Panics if it ended earlier, with its error output if that is piped.
pub(crate) fn kill_after(mut child: Child, delay: Duration) {
    thread::sleep(delay);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert_eq!(
        status.signal(),
        Some(libc::SIGKILL),
        "the child ended by itself: {status} {stderr}"
    );
}

/// Checks that each artifact of the incident in `dir` has the size and the hash in its manifest.
#[track_caller]
pub(crate) fn check_artifacts(dir: &Path, manifest: &Manifest) {
    for artifact in &manifest.artifacts {
        let content = fs::read(dir.join(&artifact.file)).unwrap();
        assert_eq!(content.len() as u64, artifact.bytes.get(), "{}: {artifact:?}", dir.display());
        let hash: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, artifact.sha256, "{}: {artifact:?}", dir.display());
    }
}
