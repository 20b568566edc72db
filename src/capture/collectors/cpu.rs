//! CPU profiles: one from the look-back before the capture, which runs from the agent's start, and
//! one of the whole capture. In wall mode the latter covers the wall-clock time of all threads.

use crate::base::{Bytes, Hertz, Moment, TimeAnchor, warnings};
use crate::capture::collectors::{CaptureFailure, Collector, Evidence, StartedCapture};
use crate::config::{Settings, ThreadsMode};
use crate::cpu::error::Error;
use crate::cpu::options::Options;
use crate::cpu::{CpuSession, Lookback};
use crate::model::{CaptureKind, CpuEngine, CpuMode};

/// Returns the reason CPU captures are disabled, or `None` if they are not.
pub(super) fn disabled_reason(settings: &Settings) -> Option<&'static str> {
    let wall = settings.cpu.mode == CpuMode::Wall;
    (wall && settings.stacks.threads == ThreadsMode::Off).then_some(
        "`cpu.mode` is \"wall\", which samples all threads, but `stacks.threads` is \"off\"",
    )
}

/// Returns the maximum memory of an engine.
pub(super) fn max_memory(settings: &Settings) -> Bytes {
    match settings.cpu.mode {
        CpuMode::Cpu => CpuSession::required_memory(settings.cpu.engine),
        CpuMode::Wall => CpuSession::required_memory(CpuEngine::Auto),
    }
}

pub(super) fn start(
    _: CaptureKind,
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    let mut session = CpuSession::start_with_options(&options(settings), anchor)?;
    let lookback_evidence =
        session.take_lookback().map(|profile| Evidence::Profile(Box::new(profile)));
    Ok(StartedCapture { collector: Box::new(session), initial_evidence: lookback_evidence })
}

fn options(settings: &Settings) -> Options {
    Options {
        mode: settings.cpu.mode,
        allow_signals: settings.stacks.threads == ThreadsMode::Full,
        engine: settings.cpu.engine,
        frequency: match settings.cpu.mode {
            CpuMode::Cpu => settings.cpu.frequency_hz,
            CpuMode::Wall => settings.cpu.wall_frequency_hz,
        },
        lookback_frequency: settings.cpu.lookback_frequency_hz,
        lookback: settings.cpu.lookback,
        on_thread_start: || Box::new(crate::capture::collectors::heap::exclude_current_thread()),
    }
}

impl Collector for CpuSession {
    fn engine(&self) -> &str {
        Self::engine(self)
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        Ok(Some(Evidence::Profile(Box::new(Self::stop(*self, now)?))))
    }
}

/// Topic of the warning raised without a look-back.
const LOOKBACK_WARNING_TOPIC: &str = "cpu.lookback";

/// The look-back, or the error that prevents it.
pub(crate) struct LookbackState(Result<Option<Lookback>, Error>);

/// Starts the look-back.
pub(crate) fn start_lookback(settings: &Settings) -> LookbackState {
    let started = Lookback::start(&options(settings));
    match &started {
        Err(error) => {
            warnings::set(LOOKBACK_WARNING_TOPIC, format!("CPU look-back is unavailable: {error}"));
        }
        Ok(_) => warnings::clear(LOOKBACK_WARNING_TOPIC),
    }
    LookbackState(started)
}

impl LookbackState {
    /// Returns the active engine and the reason for its selection, or the reason there is none.
    pub(crate) fn description(&self, settings: &Settings) -> String {
        match &self.0 {
            Ok(Some(lookback)) => lookback.engine(),
            Ok(None) if settings.cpu.lookback_frequency_hz == Hertz(0) => {
                format!("{}: selected when a capture starts; no look-back", settings.cpu.engine)
            }
            Ok(None) => "pprof: no look-back with this engine".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}
