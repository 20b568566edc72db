//! Options of the CPU recorder.

use crate::base::Hertz;
use crate::cpu::error::Error;
use crate::model::{CpuEngine, CpuMode};
use std::any::Any;
use std::time::Duration;

/// Settings of a session and of the look-back.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kind of time that a session samples. The look-back always samples CPU time.
    pub mode: CpuMode,
    /// `true` if threads may be interrupted by a signal to copy their stacks, in [`CpuMode::Wall`].
    pub allow_signals: bool,
    /// Engine, in [`CpuMode::Cpu`].
    pub engine: CpuEngine,
    /// Samples per second of CPU time, or of each thread's wall time, in a session.
    pub frequency: Hertz,
    /// Samples per second of CPU time between sessions; 0 disables the look-back.
    pub lookback_frequency: Hertz,
    /// Time span of the look-back.
    pub lookback: Duration,
    /// Function that the recording thread calls first. The returned value is dropped when the
    /// thread ends.
    pub on_thread_start: fn() -> Box<dyn Any>,
}

impl Default for Options {
    /// Returns 99 Hz with the best available engine and no look-back.
    fn default() -> Self {
        Self {
            mode: CpuMode::Cpu,
            allow_signals: true,
            engine: CpuEngine::Auto,
            frequency: Hertz(99),
            lookback_frequency: Hertz(0),
            lookback: Duration::from_secs(30),
            on_thread_start: || Box::new(()),
        }
    }
}

impl Options {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for frequency in [self.frequency, self.lookback_frequency.max(MIN_FREQUENCY)] {
            if !(MIN_FREQUENCY..=MAX_FREQUENCY).contains(&frequency) {
                return Err(Error::Frequency {
                    asked: frequency,
                    lowest: MIN_FREQUENCY,
                    highest: MAX_FREQUENCY,
                });
            }
        }
        Ok(())
    }
}

/// Below 1 Hz a session ends before its first sample; above 1 kHz sampling itself shows up in the
/// profile.
pub(crate) const MIN_FREQUENCY: Hertz = Hertz(1);

pub(crate) const MAX_FREQUENCY: Hertz = Hertz(1000);
