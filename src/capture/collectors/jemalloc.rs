//! Heap profiles of programs that use jemalloc with its profiler. As in `heap`, one is taken at the
//! start and one at the stop. jemalloc samples during the capture if it did not already.

use std::io::{BufReader, Seek, SeekFrom};

use jiff::Timestamp;

use crate::base::{Moment, TimeAnchor};
use crate::capture::collectors::{
    CaptureFailure, Collector, Evidence, StartedCapture, Unavailable,
};
use crate::capture::memory_summary::MemorySummary;
use crate::codec::jemalloc_heap;
use crate::heap;
use crate::heap::jemalloc::{Activation, Profiler};
use crate::model::Profile;
use crate::os::images;

pub(super) fn start(anchor: TimeAnchor) -> Result<StartedCapture, CaptureFailure> {
    let profiler = find_profiler()?;
    let activation = profiler.activate()?;
    let sampling_since = activation.turned_on().then_some(anchor.wall);
    let at_start = dump(profiler, anchor.wall, sampling_since)?;
    let collector =
        Box::new(JemallocCollector { anchor, profiler, sampling_since, _activation: activation });
    Ok(StartedCapture { collector, initial_evidence: Some(Evidence::Profile(at_start)) })
}

/// Returns a profile of the heap.
pub(super) fn snapshot(wall: Timestamp) -> Result<Box<Profile>, CaptureFailure> {
    dump(find_profiler()?, wall, None)
}

pub(super) fn unavailable_reason() -> Option<String> {
    Profiler::find().err().map(|why| why.to_string())
}

/// Returns jemalloc's profiler. Without one, heap profiles are unavailable in this program.
fn find_profiler() -> Result<Profiler, CaptureFailure> {
    Profiler::find().map_err(|why| Unavailable(why.to_string()).into())
}

struct JemallocCollector {
    anchor: TimeAnchor,
    profiler: Profiler,
    /// Time at which this capture turned sampling on; `None` if it was already on.
    sampling_since: Option<Timestamp>,
    _activation: Activation,
}

impl Collector for JemallocCollector {
    fn engine(&self) -> &str {
        "jemalloc"
    }

    fn snapshot(&self, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        let profile = dump(self.profiler, self.anchor.wall_at(now), self.sampling_since)?;
        Ok(Some(Evidence::Profile(profile)))
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        self.snapshot(now)
    }
}

fn dump(
    profiler: Profiler,
    wall: Timestamp,
    sampling_since: Option<Timestamp>,
) -> Result<Box<Profile>, CaptureFailure> {
    let accumulates = profiler.has_cumulative_counts()?;
    let mut text = profiler.dump()?;
    text.seek(SeekFrom::Start(0))?;
    let mut profile = jemalloc_heap::read(BufReader::new(text), accumulates, wall)?;
    profile.drop_frames = format!("{}|{}", heap::DROP_FRAMES, heap::jemalloc::DROP_FRAMES);
    profile.attach_mappings(images::loaded_and_unloaded()?);
    MemorySummary::prepend_to(&mut profile);
    if let Some(since) = sampling_since {
        profile.comments.push(format!(
            "heap: jemalloc sampled nothing before this capture (prof_active:false); allocations \
             before {since} are missing"
        ));
    } else if !profiler.is_active()? {
        profile.comments.push(
            "heap: jemalloc sampling is off (prof_active:false); only samples of earlier captures \
             are shown"
                .to_owned(),
        );
    }
    Ok(Box::new(profile))
}
