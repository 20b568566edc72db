//! CPU profiles: one of the time before the capture, from the look-back that runs from the agent's start
//! on, and one over the whole capture, which in wall mode is of all threads' time.

use super::{Collector, Evidence, Failure, Started};
use crate::base::{Anchor, Bytes, Hertz, Moment, warnings};
use crate::config::{Settings, ThreadsMode};
use crate::cpu::{Error, Lookback, Options, Session};
use crate::model::{CaptureKind, CpuEngine, CpuMode};

/// Why the settings want no capture, if they do not.
pub(super) fn switched_off(settings: &Settings) -> Option<&'static str> {
    let wall = settings.cpu.mode == CpuMode::Wall;
    (wall && settings.stacks.threads == ThreadsMode::Off)
        .then_some("`cpu.mode` is \"wall\", which shows threads, and `stacks.threads` is \"off\"")
}

/// What an engine may take.
pub(super) fn memory(settings: &Settings) -> Bytes {
    match settings.cpu.mode {
        CpuMode::Cpu => Session::memory(settings.cpu.engine),
        CpuMode::Wall => Session::memory(CpuEngine::Auto),
    }
}

pub(super) fn start(
    _: CaptureKind,
    settings: &Settings,
    anchor: Anchor,
) -> Result<Started, Failure> {
    let mut session = Session::with(&options(settings), anchor)?;
    let before = session.take_before().map(|profile| Evidence::Profile(Box::new(profile)));
    Ok(Started { collector: Box::new(session), at_start: before })
}

fn options(settings: &Settings) -> Options {
    Options {
        mode: settings.cpu.mode,
        signals: settings.stacks.threads == ThreadsMode::Full,
        engine: settings.cpu.engine,
        frequency: match settings.cpu.mode {
            CpuMode::Cpu => settings.cpu.frequency,
            CpuMode::Wall => settings.cpu.wall_frequency,
        },
        lookback_frequency: settings.cpu.lookback_frequency,
        lookback: settings.cpu.lookback,
        guard: || Box::new(super::heap::exclude_current_thread()),
    }
}

impl Collector for Session {
    fn engine(&self) -> &str {
        Self::engine(self)
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(Some(Evidence::Profile(Box::new(Self::stop(*self, now)?))))
    }
}

/// The topic of the warning that there is no look-back.
const TOPIC: &str = "cpu.lookback";

/// The look-back, or why there is none.
pub(in crate::agent) struct Always(Result<Option<Lookback>, Error>);

/// Begins to look back.
pub(in crate::agent) fn launch(settings: &Settings) -> Always {
    let started = Lookback::start(&options(settings));
    match &started {
        Err(error) => {
            warnings::set(TOPIC, format!("no CPU samples from before a capture: {error}"));
        }
        Ok(_) => warnings::clear(TOPIC),
    }
    Always(started)
}

impl Always {
    /// The engine that samples and why it is that one, or why none does.
    pub(in crate::agent) fn words(&self, settings: &Settings) -> String {
        match &self.0 {
            Ok(Some(lookback)) => lookback.engine(),
            Ok(None) if settings.cpu.lookback_frequency == Hertz(0) => {
                format!("{}: chosen when a capture starts; no look-back", settings.cpu.engine)
            }
            Ok(None) => "pprof: no look-back with this engine".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}
