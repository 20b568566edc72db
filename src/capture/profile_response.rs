//! The encoded response to an on-demand capture, with a maximum size.

use crate::base::Bytes;
use crate::base::failure::error_chain;
use crate::capture::collectors::{CaptureFailure, Evidence, Unavailable};
use crate::policy::on_demand::{HeapView, ProfileError};
use std::io::{self, Write};

pub(crate) fn profile_error(error: CaptureFailure) -> ProfileError {
    if error.is::<Unavailable>() {
        return ProfileError::Unavailable(error.to_string());
    }
    ProfileError::Failed(error_chain(&*error))
}

/// Encodes `evidence` in the binary format.
pub(crate) fn encode(
    mut evidence: Evidence,
    view: Option<HeapView>,
) -> Result<Vec<u8>, CaptureFailure> {
    evidence.symbolize();
    if let (Evidence::Profile(profile), Some(HeapView::Allocated)) = (&mut evidence, view) {
        profile.default_sample_type = "alloc_space";
    }
    let mut out = BoundedBuffer::default();
    evidence.write_binary(&mut out)?;
    Ok(out.bytes)
}

/// A buffer with a maximum size.
pub(crate) struct BoundedBuffer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) max_bytes: Bytes,
}

impl Default for BoundedBuffer {
    fn default() -> Self {
        Self { bytes: Vec::new(), max_bytes: MAX_RESPONSE_BYTES }
    }
}

impl Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + bytes.len();
        if length as u64 > self.max_bytes.get() {
            return Err(io::Error::other(format!(
                "the response is larger than {}",
                self.max_bytes
            )));
        }
        if length > self.bytes.capacity() {
            // Doubling would keep three times the bytes in memory while they are copied.
            self.bytes.reserve_exact(bytes.len().max(self.bytes.len() / 4).max(MIN_BUFFER_GROWTH));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Maximum encoded size. A trace of 16 MiB of memory takes some 3 MiB encoded, a heap profile of
/// 100,000 stacks 5. Anything larger would take memory that the service needs.
pub(crate) const MAX_RESPONSE_BYTES: Bytes = Bytes::mib(64);

/// Minimum growth of an output buffer.
pub(crate) const MIN_BUFFER_GROWTH: usize = 16 << 10;
