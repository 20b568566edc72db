//! One interface to all CPU profiling engines, so that benches and stress tests drive them alike:
//! marple's, the `pprof` crate used as its README shows, and the control, which records nothing.
#![allow(dead_code, reason = "each binary uses a part of it")]

use std::fmt;

use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::cpu::CpuSession;
use marple::internals::cpu::options::Options;
use marple::internals::model::{CpuEngine, CpuMode, LabelValue, Profile, Sample};
use marple::internals::symbols;
use pprof::{ProfilerGuard, ProfilerGuardBuilder};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The control: records nothing.
    Control,
    /// marple with perf events.
    Perf,
    /// marple with one CPU-clock timer per thread.
    Timer,
    /// marple's wall-clock mode: all threads, running or not.
    Wall,
    /// marple with the `pprof` crate as its engine.
    Pprof,
    /// The `pprof` crate by itself, with its default unwinder and its README's blocklist.
    Peer,
}

impl Engine {
    pub(crate) const ALL: [Self; 6] =
        [Self::Control, Self::Perf, Self::Timer, Self::Wall, Self::Pprof, Self::Peer];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Perf => "perf",
            Self::Timer => "timer",
            Self::Wall => "wall",
            Self::Pprof => "pprof",
            Self::Peer => "pprof-rs",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Starts the engine. The error is the engine's own message.
    pub(crate) fn start(self, hertz: u32) -> Result<Running, String> {
        let marple = |options| {
            let options = Options { frequency: Hertz(hertz), ..options };
            CpuSession::start_with_options(&options, SystemClock.anchor())
                .map(Running::Marple)
                .map_err(|error| error.to_string())
        };
        let by = |engine| marple(Options { engine, ..Options::default() });
        match self {
            Self::Control => Ok(Running::Control),
            Self::Perf => by(CpuEngine::Perf),
            Self::Timer => by(CpuEngine::Timer),
            Self::Wall => marple(Options { mode: CpuMode::Wall, ..Options::default() }),
            Self::Pprof => by(CpuEngine::Pprof),
            Self::Peer => ProfilerGuardBuilder::default()
                .frequency(hertz as i32)
                .blocklist(&["libc", "libgcc", "pthread", "vdso"])
                .build()
                .map(Running::Peer)
                .map_err(|error| error.to_string()),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

pub(crate) enum Running {
    Control,
    Marple(CpuSession),
    Peer(ProfilerGuard<'static>),
}

impl Running {
    /// Stops the engine and returns what it recorded.
    pub(crate) fn stop(self) -> Result<Recorded, String> {
        match self {
            Self::Control => Ok(Recorded::Nothing),
            Self::Marple(session) => match session.stop(SystemClock.now()) {
                Ok(profile) => Ok(Recorded::Marple(Box::new(profile))),
                Err(error) => Err(error.to_string()),
            },
            Self::Peer(guard) => match guard.report().build_unresolved() {
                Ok(report) => Ok(Recorded::Peer(report)),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// A recording without symbols.
pub(crate) enum Recorded {
    Nothing,
    Marple(Box<Profile>),
    Peer(pprof::UnresolvedReport),
}

/// The samples of one thread name at one stack.
#[derive(Clone, Debug)]
pub(crate) struct StackCount {
    pub(crate) thread: String,
    /// Function names, innermost first; empty for a frame without a symbol.
    pub(crate) functions: Vec<String>,
    /// Number of observations.
    pub(crate) samples: u64,
    /// Weight of the samples, in periods of the requested rate.
    pub(crate) weight: f64,
}

/// A symbolized recording.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) stacks: Vec<StackCount>,
    /// Samples the engine reports as lost, in periods.
    pub(crate) lost: f64,
    /// All other remarks of the engine.
    pub(crate) remarks: Vec<String>,
}

impl Recorded {
    /// Symbolizes the recording. It costs more than everything else, so callers do it after the
    /// measurement.
    pub(crate) fn symbolize(self, hertz: u32) -> Report {
        match self {
            Self::Nothing => Report::default(),
            Self::Marple(profile) => report_from_profile(*profile, hertz),
            Self::Peer(report) => report_from_pprof_crate(report),
        }
    }
}

fn report_from_profile(mut profile: Profile, hertz: u32) -> Report {
    symbols::symbolize(&mut profile);
    let column = |name| profile.sample_types.iter().position(|kind| kind.name == name);
    let (samples, nanos) = (column("samples"), column("cpu"));
    let value = |sample: &Sample, column: Option<usize>| {
        column.and_then(|column| sample.values.get(column)).copied().unwrap_or(0)
    };
    let seen = profile.samples.iter().map(|sample| StackCount {
        thread: thread_name(&profile, sample),
        functions: function_names(&profile, sample),
        samples: value(sample, samples) as u64,
        weight: value(sample, nanos) as f64 * f64::from(hertz) / 1e9,
    });
    let mut remarks = profile.comments.clone();
    remarks.extend(profile.losses.iter().map(|loss| format!("{}: {}", loss.cause, loss.count)));
    // Parses, for example: "expected 100 samples for 1.000 s of CPU time at 100 Hz, got 98, lost 2"
    let expected_comment = profile.comments.iter().find(|comment| comment.starts_with("expected "));
    let lost =
        expected_comment.and_then(|said| said.rsplit_once("lost ")?.1.parse().ok()).unwrap_or(0.0);
    Report { stacks: seen.collect(), lost, remarks }
}

fn thread_name(profile: &Profile, sample: &Sample) -> String {
    let of_thread = |key: &str| key == "thread";
    let label = sample.labels.iter().find(|label| of_thread(profile.strings.get(label.key)));
    match label.map(|label| label.value) {
        Some(LabelValue::Text(name)) => profile.strings.get(name).to_owned(),
        _ => String::new(),
    }
}

fn function_names(profile: &Profile, sample: &Sample) -> Vec<String> {
    let frames = profile.stacks.frames(sample.stack);
    let name = |frame| {
        let line = profile.frames.get(frame).lines.first()?;
        let function = profile.functions.get(line.function.index())?;
        Some(profile.strings.get(function.name).to_owned())
    };
    frames.map(|frame| name(frame).unwrap_or_default()).collect()
}

fn report_from_pprof_crate(report: pprof::UnresolvedReport) -> Report {
    let seen = report.data.into_iter().map(|(frames, count)| {
        let frames = pprof::Frames::from(frames);
        StackCount {
            thread: frames.thread_name.clone(),
            functions: frames.frames.iter().flatten().map(pprof::Symbol::name).collect(),
            samples: count as u64,
            weight: count as f64,
        }
    });
    Report { stacks: seen.collect(), ..Report::default() }
}
