//! Plain data types shared by all layers: no threads, no clocks, no files, no unsafe.
//!
//! There are two families:
//!
//! - *evidence*, returned by collectors and written by codecs: [`Profile`] (CPU, heap),
//!   [`Timeline`] (trace), [`ThreadDump`] and [`TaskDump`];
//! - *decisions* and their record: [`Vitals`], [`Rule`], [`Reason`], [`Manifest`].
//!
//! Evidence is stored as integers in tables. A stack is one [`StackHandle`] and a text is one
//! [`StringHandle`]. A handle is valid only in the table that returned it.

mod amount;
mod capture;
mod collect;
mod cpu;
mod custom_metrics;
mod descriptors;
mod difference;
mod dump;
mod finding;
mod incident;
mod losses;
mod manifest;
mod marker;
mod metric;
mod panics;
mod profile;
mod rule;
mod slices;
mod stacks;
mod stall;
mod strings;
mod timeline;
mod trace_mode;
mod vitals;

pub use crate::model::stacks::FunctionHandle;
pub use amount::Amount;
pub use capture::{ArtifactFormat, CaptureKind, CaptureSet, ParseCaptureKindError};
pub use collect::{CollectorSelection, FileName, ParseFileNameError};
pub use cpu::{CpuEngine, CpuMode, ParseCpuEngineError};
pub use custom_metrics::{
    CounterPart, CounterReading, HistogramPart, HistogramReading, MAX_CUSTOM_NAME_LEN,
    is_valid_custom_name,
};
pub use descriptors::{DescriptorCount, DescriptorDump};
pub use dump::{SiteCount, SpawnLocation, TaskDump, TaskRow, TaskState, ThreadDump, ThreadRow};
pub use finding::{Confidence, Finding, FindingEvidence, FindingKind};
pub use incident::{IncidentState, Origin, Reason};
pub use losses::{Loss, Losses};
pub use manifest::{
    Artifact, CaptureRecord, Limits, Manifest, Outcome, ProcessInfo, RemovedArtifact, Versions,
    VitalsRow,
};
pub use marker::Marker;
pub use metric::{Metric, ParseMetricError, Unit};
pub use panics::PanicDump;
pub use profile::{Function, Label, LabelValue, Profile, Sample, TimedSample, ValueType};
pub use rule::{HoldDurations, Mode, Refire, Rule};
pub use slices::{
    Activity, Calibration, OpenSlice, RawKind, RawSlice, RawTask, TaskKey, ThreadSlices,
    TickConverter,
};
pub use stacks::{
    Frame, FrameHandle, FrameTable, Line, Mapping, MappingHandle, StackHandle, StackTable,
};
pub use stall::{Stall, WorkerProgress};
pub use strings::{StringHandle, StringTable};
pub use timeline::{ArgValue, EventKind, Timeline, TimelineEvent, Track, TrackHandle, TrackKind};
pub use trace_mode::TraceMode;
pub use vitals::{Limit, LimitEffect, MemoryLimitUsage, Vitals};
