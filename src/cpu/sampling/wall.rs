//! Wall-time profiles of all threads, running or not, to find hangs.
//!
//! ```text
//! tick      checks each thread in turn, through /proc
//!   sleeping, not run since   the previous stack is valid; the thread is not disturbed
//!   sleeping                  reads its stack through /proc (os::proc::thread_reader); the thread
//!                             is not disturbed
//!   else                      sends a signal; the handler copies the stack (thread_sampler)
//!
//! weight of a sample = time since the previous check of the thread
//! ```
//!
//! The samples of a thread therefore add up to the time in which it was observed, even if checks
//! are late or rare. Checks happen at random phases of the period, to avoid aliasing with periodic
//! work of the host.
//!
//! A sleeping thread gets a signal only if its stack cannot be read through /proc: on aarch64; in a
//! frame that needs the frame pointer, such as those of Rust's `std` around its waits; without
//! `/proc/*/syscall`. Then it gets one signal until it runs for another reason. If the thread ran
//! only for the handler, its copied stack stays valid. `stacks::threads` lists the system calls
//! that a signal interrupts.
//!
//! # Cost
//!
//! About 15 us per check, at most 2000 checks and 500 signals per second. In a service with more
//! threads, each thread is checked less often, in turn. A tick that exhausts either limit ends
//! before the next check, not after it, so that the selection of threads does not depend on their
//! state.

use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use super::wall_report::{self, WallProfileInfo};
use crate::base::{Hertz, Moment, TimeAnchor};
use crate::cpu::error::Error;
use crate::cpu::options::Options;
use crate::cpu::sampling::wall_sampler::WallSampler;
use crate::model::Profile;

/// A running wall-time recording. Dropping it stops the recording.
pub(in crate::cpu) struct WallRecorder {
    anchor: TimeAnchor,
    frequency: Hertz,
    stop_sender: Option<Sender<()>>,
    thread: Option<JoinHandle<WallSampler>>,
}

impl WallRecorder {
    /// Starts the recording.
    pub(in crate::cpu) fn start(options: &Options, anchor: TimeAnchor) -> Result<Self, Error> {
        let sampler = WallSampler::new(options.frequency, options.allow_signals, true)?;
        let (stop_sender, stop_receiver) = mpsc::channel();
        let on_thread_start = options.on_thread_start;
        let thread = thread::Builder::new().name("marple-wall".to_owned());
        let thread = thread.spawn(move || sampler.run(&stop_receiver, on_thread_start));
        let thread = Some(thread.map_err(|source| Error::SpawnThread { source })?);
        Ok(Self { anchor, frequency: options.frequency, stop_sender: Some(stop_sender), thread })
    }

    /// Returns the engine's name and method.
    pub(in crate::cpu) fn engine(options: &Options) -> String {
        let method =
            if options.allow_signals { "/proc and SIGURG" } else { "/proc without signals" };
        format!("wall: all threads at {}, by {method}", options.frequency)
    }

    /// Checks all threads once more and returns the profile. Takes up to 0.1 s.
    pub(in crate::cpu) fn stop(mut self, now: Moment) -> Result<Profile, Error> {
        self.stop_sender = None;
        let panicked =
            || Error::Engine { engine: "wall", source: "the profiler's thread panicked".into() };
        let sampler = self.thread.take().ok_or_else(panicked)?.join().map_err(|_| panicked())?;
        let info = WallProfileInfo {
            started: self.anchor.wall,
            duration: now.since(self.anchor.moment),
            frequency: self.frequency,
            images: sampler.images.into_mappings(),
            allow_signals: sampler.allow_signals,
        };
        Ok(wall_report::build_profile(info, &sampler.table, &sampler.states, &sampler.counts))
    }
}

impl Drop for WallRecorder {
    fn drop(&mut self) {
        self.stop_sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
