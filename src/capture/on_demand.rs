//! On-demand captures on the capture thread: running collectors, and their data until it is
//! encoded.

use std::io::Write;

use crate::base::failure::{catch_panic, error_chain, panic_message};
use crate::base::{Bytes, Clock, TimeAnchor, panics};
use crate::capture::collectors::{self, CaptureFailure, Collector, Evidence, Unavailable};
use crate::capture::messages::{OnDemandTask, ResultSender};
use crate::capture::on_demand_encoder::{Encoder, RawProfile};
use crate::capture::profile_response::{BoundedBuffer, encode, profile_error};
use crate::codec::go_debug;
use crate::config::Settings;
use crate::model::{CaptureKind, Profile, Sample, ValueType, VitalsRow};
use crate::policy::on_demand::{
    HeapView, OnDemandCommand, OnDemandResult, ProfileError, ProfileForm, ProfileKind,
    ProfileResponse, ThreadView,
};
use crate::{model, os, symbols};

/// Maximum size of a symbol reply: 335 bytes each for 50,000 addresses, the maximum of a request.
const MAX_SYMBOL_RESPONSE_BYTES: Bytes = Bytes::mib(16);

/// The on-demand captures held by the capture thread.
pub(crate) struct OnDemandWorker {
    active: Vec<(u64, ActiveRequest)>,
    encoder: Encoder,
}

enum ActiveRequest {
    Running(RunningRequest),
    Stopped(RawProfile),
}

enum RunningRequest {
    Collector(CaptureKind, Box<dyn Collector>),
    /// Holds the heap profile at the start.
    HeapDelta(Box<Profile>, HeapView, RequestedRate),
    /// Holds the thread profile at the start.
    ThreadsDelta(Box<Profile>, ThreadView),
}

impl RunningRequest {
    fn engine(&self) -> Option<(CaptureKind, String)> {
        match self {
            Self::Collector(kind, collector) => Some((*kind, collector.engine().to_owned())),
            Self::HeapDelta(..) | Self::ThreadsDelta(..) => None,
        }
    }
}

/// Guard that applies the heap sampling rate requested by a client, if any.
struct RequestedRate(());

impl RequestedRate {
    fn apply(rate: Option<Bytes>) -> Self {
        collectors::heap::override_rate(rate);
        Self(())
    }
}

impl Drop for RequestedRate {
    fn drop(&mut self) {
        collectors::heap::override_rate(None);
    }
}

impl OnDemandWorker {
    /// Creates the worker. `results` receives the results of encodings.
    pub(crate) fn new(results: ResultSender) -> Self {
        Self { active: Vec::new(), encoder: Encoder::new(results) }
    }

    pub(crate) fn perform(&mut self, clock: &dyn Clock, task: OnDemandTask) -> OnDemandResult {
        let OnDemandTask { command, settings, headroom, vitals, state: _ } = task;
        match command {
            OnDemandCommand::Snapshot { id, kind } => {
                let result =
                    catch_panic(|| take_snapshot(kind, &settings, clock.anchor(), &vitals));
                OnDemandResult::Finished { id, result: result.map_err(profile_error) }
            }
            OnDemandCommand::Start { id, kind } => {
                match catch_panic(|| {
                    start_recording(&kind, &settings, headroom, clock.anchor(), &vitals)
                }) {
                    Ok(running) => {
                        let engine = running.engine();
                        self.active.push((id, ActiveRequest::Running(running)));
                        OnDemandResult::Started { id, engine }
                    }
                    Err(error) => {
                        OnDemandResult::Finished { id, result: Err(profile_error(error)) }
                    }
                }
            }
            OnDemandCommand::Stop { id, cut_short } => match self.take(id) {
                Some(ActiveRequest::Running(running)) => {
                    match catch_panic(|| {
                        stop_recording(running, &settings, clock, &vitals, cut_short)
                    }) {
                        Ok(stopped) => {
                            self.active.push((id, stopped));
                            OnDemandResult::Stopped { id }
                        }
                        Err(error) => {
                            OnDemandResult::Finished { id, result: Err(profile_error(error)) }
                        }
                    }
                }
                _ => OnDemandResult::Canceled { id },
            },
            OnDemandCommand::Encode { id } => match self.take(id) {
                Some(ActiveRequest::Stopped(raw)) => self.encoder.encode(id, raw),
                _ => OnDemandResult::Canceled { id },
            },
            OnDemandCommand::Cancel { id } => {
                let request = self.take(id);
                let _ = catch_panic(|| {
                    drop(request);
                    Ok(())
                });
                OnDemandResult::Canceled { id }
            }
        }
    }

    /// Replies to the client of a command that ended by `panic`.
    pub(crate) fn abandon_command(&mut self, id: u64, panic: &str) -> OnDemandResult {
        let request = self.take(id);
        panics::catch_and_record_panic("marple-capture", || drop(request));
        OnDemandResult::Finished { id, result: Err(ProfileError::Failed(panic_message(panic))) }
    }

    fn take(&mut self, id: u64) -> Option<ActiveRequest> {
        let index = self.active.iter().position(|(active, _)| *active == id)?;
        Some(self.active.swap_remove(index).1)
    }
}

fn start_recording(
    kind: &ProfileKind,
    settings: &Settings,
    headroom: Option<Bytes>,
    anchor: TimeAnchor,
    vitals: &VitalsRow,
) -> Result<RunningRequest, CaptureFailure> {
    let mut request_settings = settings.clone();
    let capture_kind = match kind {
        ProfileKind::Cpu { frequency, mode, .. } => {
            request_settings.cpu.mode = mode.unwrap_or(settings.cpu.mode);
            request_settings.cpu.frequency_hz = frequency.unwrap_or(settings.cpu.frequency_hz);
            request_settings.cpu.wall_frequency_hz =
                frequency.unwrap_or(settings.cpu.wall_frequency_hz);
            if let Some(why) = collectors::disabled_reason(CaptureKind::Cpu, &request_settings) {
                return Err(why.into());
            }
            CaptureKind::Cpu
        }
        ProfileKind::Trace { .. } => CaptureKind::Trace,
        ProfileKind::HeapDelta { view, rate, .. } => {
            let first = collectors::heap::snapshot(anchor.wall)?;
            return Ok(RunningRequest::HeapDelta(first, *view, RequestedRate::apply(*rate)));
        }
        ProfileKind::ThreadsDelta { view, .. } => {
            let first = threads(*view, settings, anchor, vitals)?;
            return Ok(RunningRequest::ThreadsDelta(Box::new(first), *view));
        }
        _ => return Err("it is not a timed capture".into()),
    };
    let need = collectors::max_memory(capture_kind, &request_settings);
    let left = headroom.unwrap_or(Bytes(u64::MAX));
    if left < need {
        let why =
            format!("only {left} left below the memory limit; the capture needs up to {need}");
        return Err(why.into());
    }
    // Look-back data is evidence for incidents; a client did not request it.
    Ok(RunningRequest::Collector(
        capture_kind,
        collectors::start(capture_kind, &request_settings, anchor)?.collector,
    ))
}

fn stop_recording(
    running: RunningRequest,
    settings: &Settings,
    clock: &dyn Clock,
    vitals: &VitalsRow,
    cut_short: Option<String>,
) -> Result<ActiveRequest, CaptureFailure> {
    let (mut evidence, view) = match running {
        RunningRequest::Collector(_, collector) => {
            (collector.stop(clock.now())?.ok_or("nothing was recorded")?, None)
        }
        RunningRequest::HeapDelta(first, view, _rate) => {
            let mut profile = collectors::heap::snapshot(clock.wall())?;
            profile.subtract(&first);
            (Evidence::Profile(profile), Some(view))
        }
        RunningRequest::ThreadsDelta(first, view) => {
            let mut profile = threads(view, settings, clock.anchor(), vitals)?;
            profile.subtract(&first);
            (Evidence::Profile(Box::new(profile)), None)
        }
    };
    if let Evidence::Profile(profile) = &mut evidence {
        profile.comments.extend(cut_short.iter().map(|why| format!("cut short: {why}")));
    }
    Ok(ActiveRequest::Stopped(RawProfile { evidence, view, cut_short }))
}

fn take_snapshot(
    kind: ProfileKind,
    settings: &Settings,
    anchor: TimeAnchor,
    vitals: &VitalsRow,
) -> Result<ProfileResponse, CaptureFailure> {
    let (evidence, view, form) = match kind {
        // Written directly from the tables, without a copy in memory. The other formats need a
        // copy.
        ProfileKind::Heap { view: HeapView::InUse, form: ProfileForm::Binary } => {
            (collectors::heap::streamed_profile(anchor.wall)?, None, ProfileForm::Binary)
        }
        ProfileKind::Heap { view, form } => {
            let snapshot = collectors::heap::snapshot(anchor.wall)?;
            (Evidence::Profile(snapshot), Some(view), form)
        }
        ProfileKind::Threads { form: ProfileForm::Full, .. } => {
            let bytes = dump_threads_and_tasks(settings, anchor)?;
            return Ok(ProfileResponse { bytes, cut_short: None });
        }
        ProfileKind::Threads { view, form } => {
            (Evidence::Profile(Box::new(threads(view, settings, anchor, vitals)?)), None, form)
        }
        ProfileKind::Symbols(addresses) => {
            let bytes = symbolize(&addresses, anchor)?;
            return Ok(ProfileResponse { bytes, cut_short: None });
        }
        ProfileKind::Cpu { .. }
        | ProfileKind::Trace { .. }
        | ProfileKind::HeapDelta { .. }
        | ProfileKind::ThreadsDelta { .. } => {
            return Err("it is a timed capture".into());
        }
    };
    let bytes = match (form, evidence) {
        (ProfileForm::Text, Evidence::Profile(mut profile)) => {
            symbols::symbolize(&mut profile);
            let mut out = BoundedBuffer::default();
            go_debug::write(&profile, vitals, &mut out)?;
            out.bytes
        }
        (_, evidence) => encode(evidence, view)?,
    };
    Ok(ProfileResponse { bytes, cut_short: None })
}

/// Returns the threads in the form of `view`.
fn threads(
    view: ThreadView,
    settings: &Settings,
    anchor: TimeAnchor,
    vitals: &VitalsRow,
) -> Result<Profile, CaptureFailure> {
    match view {
        ThreadView::Now => goroutine(settings, anchor, vitals),
        ThreadView::Created => threadcreate(anchor),
    }
}

/// Returns the number of threads by stack.
fn goroutine(
    settings: &Settings,
    anchor: TimeAnchor,
    vitals: &VitalsRow,
) -> Result<Profile, CaptureFailure> {
    let Evidence::Threads(dump) = dump(CaptureKind::Threads, settings, anchor)? else {
        return Err("the thread dump has an unexpected format".into());
    };
    let mut profile = dump.profile;
    let kind = ValueType { name: "goroutine", unit: "count" };
    profile.sample_types = vec![kind];
    profile.period_type = kind;
    profile.default_sample_type = kind.name;
    profile.samples.iter_mut().for_each(|sample| sample.values.truncate(1));
    profile.comments.push(vitals.values.get("tasks").map_or_else(
        || "no runtime is observed, so tasks are not counted".to_owned(),
        |tasks| format!("tasks alive on the observed runtimes: {tasks}; debug=2 lists them"),
    ));
    Ok(profile)
}

/// Lists every thread and every task as text.
fn dump_threads_and_tasks(
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<Vec<u8>, CaptureFailure> {
    let mut out = BoundedBuffer::default();
    let kinds = [
        (CaptureKind::Threads, model::ArtifactFormat::ThreadsText),
        (CaptureKind::Tasks, model::ArtifactFormat::TasksText),
    ];
    for (kind, form) in kinds {
        match dump(kind, settings, anchor) {
            Ok(mut evidence) => {
                evidence.symbolize();
                evidence.write(form, &mut out)?;
                writeln!(out)?;
            }
            Err(error) => writeln!(out, "no {kind}: {}", error_chain(&*error))?,
        }
    }
    Ok(out.bytes)
}

/// Takes a dump of `kind`.
fn dump(
    kind: CaptureKind,
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<Evidence, CaptureFailure> {
    if let Some(why) = collectors::disabled_reason(kind, settings) {
        return Err(Unavailable(why.to_owned()).into());
    }
    let started = collectors::start(kind, settings, anchor)?;
    started.initial_evidence.ok_or_else(|| format!("{kind}: nothing was recorded").into())
}

/// Returns the number of threads as a single sample.
fn threadcreate(anchor: TimeAnchor) -> Result<Profile, CaptureFailure> {
    let kind = ValueType { name: "threadcreate", unit: "count" };
    let mut profile = Profile::new(&[kind], kind, 1, anchor.wall);
    let threads = i64::try_from(os::proc::threads::list()?.len()).unwrap_or(i64::MAX);
    profile.samples.push(Sample { stack: None, values: vec![threads], labels: Vec::new() });
    profile.comments.push("stacks of thread creation are not recorded".to_owned());
    Ok(profile)
}

/// Returns the functions at `addresses` in the format of Go's `symbol` endpoint.
fn symbolize(addresses: &[u64], anchor: TimeAnchor) -> Result<Vec<u8>, CaptureFailure> {
    let sample_type = ValueType { name: "address", unit: "count" };
    let mut profile = Profile::new(&[sample_type], sample_type, 1, anchor.wall);
    let frames: Vec<_> = addresses.iter().map(|&address| profile.frames.intern(address)).collect();
    profile.attach_mappings(os::images::loaded_and_unloaded()?);
    symbols::symbolize(&mut profile);
    // Clients only check that this number is not 0.
    let mut out =
        BoundedBuffer { max_bytes: MAX_SYMBOL_RESPONSE_BYTES, ..BoundedBuffer::default() };
    writeln!(out, "num_symbols: 1")?;
    for frame in frames {
        let frame = profile.frames.get(frame);
        let function =
            frame.lines.last().and_then(|line| profile.functions.get(line.function.index()));
        let name = function.map(|function| profile.strings.get(function.name));
        // It is unknown if there is code outside the loaded files.
        if let Some(name) = name.filter(|name| *name != symbols::ANONYMOUS_CODE) {
            writeln!(out, "{:#x} {name}", frame.address)?;
        }
    }
    Ok(out.bytes)
}
