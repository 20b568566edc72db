//! All threads by time, running or not: for hangs.
//!
//! ```text
//! tick      each thread in turn: what /proc tells of it
//!   asleep, not run since the last look   where it was then; it is not touched
//!   asleep                                its stack read from outside (os::glance); not touched either
//!   else                                  a signal, and it copies its stack (unwind::thread_sampler)
//!           the time since the last look at it is the sample's
//! ```
//!
//! A sample's weight is the time since the thread was last looked at, so that a thread's samples add up to
//! the time it was watched, however late or rare the looks are. The looks are at random parts of the
//! period, lest they go in step with the host.
//!
//! A thread that sleeps gets a signal only where its stack cannot be read from outside (aarch64; a frame
//! that needs the frame pointer, as those of Rust's `std` do around its waits; no `/proc/*/syscall`), and
//! then once until it runs again by itself: when it
//! is seen to have run for the handler alone, what it showed holds. `stacks::threads` lists the system
//! calls that a signal cuts short.
//!
//! # What it costs
//!
//! Some 15 us a look, at most 2000 a second, and at most 500 signals; a service of more threads
//! than fit sees each in turn, less often. A tick that runs out of either ends before the next look, not
//! after it, so that who is looked at does not depend on what he does.

use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use super::wall_report::{self, Subject};
use super::wall_watch::Watch;
use crate::base::{Anchor, Hertz, Moment};
use crate::cpu::{Error, Options};
use crate::model::Profile;

/// A recording. Dropping it ends it.
pub(in crate::cpu) struct Wall {
    anchor: Anchor,
    frequency: Hertz,
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<Watch>>,
}

impl Wall {
    /// Begins to look.
    pub(in crate::cpu) fn start(options: &Options, anchor: Anchor) -> Result<Self, Error> {
        let watch = Watch::new(options.frequency, options.signals, true)?;
        let (over, ends) = mpsc::channel();
        let guard = options.guard;
        let thread = thread::Builder::new().name("marple-wall".to_owned());
        let thread = thread.spawn(move || watch.run(&ends, guard));
        let thread = Some(thread.map_err(|source| Error::Thread { source })?);
        Ok(Self { anchor, frequency: options.frequency, over: Some(over), thread })
    }

    /// What it is and how it looks.
    pub(in crate::cpu) fn engine(options: &Options) -> String {
        let how = if options.signals { "/proc and SIGURG" } else { "/proc without signals" };
        format!("wall: all threads at {}, by {how}", options.frequency)
    }

    /// Looks once more and reports. Takes up to a tenth of a second.
    pub(in crate::cpu) fn stop(mut self, now: Moment) -> Result<Profile, Error> {
        self.over = None;
        let panicked = || Error::Engine {
            engine: "wall",
            source: "the profiler's own thread panicked".into(),
        };
        let watch = self.thread.take().ok_or_else(panicked)?.join().map_err(|_| panicked())?;
        let subject = Subject {
            started: self.anchor.wall,
            duration: now.since(self.anchor.moment),
            frequency: self.frequency,
            images: watch.images.into_mappings(),
            signals: watch.signals,
        };
        Ok(wall_report::profile(subject, &watch.tally, &watch.standings, &watch.counts))
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
