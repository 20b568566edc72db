//! Heap profiles as a value, for use within the process.

use jiff::Timestamp;

use super::dump::{self, DumpBuffers};
use super::recorder::STACKS;
use super::{Error, rate};
use crate::model::{Profile, Sample};

/// Returns the current heap profile; `now` is its wall-clock time. It has Go's four sample types
/// with `inuse_space` as the default. `alloc_*` counts since the program started. There is one
/// sample per stack and block size (the label `bytes`). Totals are unbiased estimates; the comments
/// contain the standard error of the bytes in use.
///
/// Costs about one microsecond per live sample on the calling thread, whose own allocations
/// meanwhile are excluded, and some hundred bytes of heap per sample; [`DumpBuffers`] provides the
/// same data without allocating. Other threads are not stopped. Several threads may call it at
/// once.
///
/// # Errors
///
/// [`Error::NotInstalled`] if the program's allocator is not [`crate::Allocator`],
/// [`Error::Images`] if `/proc` cannot be read.
pub fn snapshot(now: Timestamp) -> Result<Profile, Error> {
    let _excluded = super::exclude_current_thread();
    let mut buffers = DumpBuffers::preallocate();
    let mut heap_dump = buffers.begin()?;
    let types = &dump::SAMPLE_TYPES;
    let period_type = dump::PERIOD_TYPE;
    let mut profile = Profile::new(types, period_type, rate().get() as i64, now);
    profile.default_sample_type = dump::DEFAULT_SAMPLE_TYPE;
    profile.drop_frames = super::DROP_FRAMES.to_owned();
    let mut addresses = Vec::new();
    let Ok(()) = heap_dump.visit_samples::<std::convert::Infallible>(|sample| {
        addresses.clear();
        addresses.extend(sample.frames.iter().filter_map(|&frame| STACKS.frames().get(frame)));
        let stack = profile.intern_stack(&addresses);
        let size = sample.size.map(|size| profile.number_label("bytes", size as i64, "bytes"));
        let labels = size.into_iter().collect();
        profile.samples.push(Sample { stack, values: sample.values.to_vec(), labels });
        Ok(())
    });
    profile.attach_mappings(heap_dump.mappings().to_vec());
    profile.losses = dump::losses();
    let Ok(()) = heap_dump.visit_comments::<std::convert::Infallible>(|comment| {
        profile.comments.push(comment.to_string());
        Ok(())
    });
    Ok(profile)
}
