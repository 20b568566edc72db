//! Stalls: looks for polls that last too long, and takes the stack of their thread at once.
//!
//! The looks are taken on the agent's thread; what takes longer (a signal, a stack, its names) is done on one
//! of the threads for files. A stack counts only if the poll still goes on after it was taken.

use std::future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::agent::fence::fence;
use crate::base::{Clock, SystemClock};
use crate::config::{Settings, ThreadsMode};
use crate::model::{Frame, Metric, Profile, Stall, ThreadDump, TraceMode};
use crate::stacks::threads;
use crate::symbols;
use crate::trace::stalls::{Overlong, Watch, longest as longest_poll};

/// What settings may not go below either.
const LEAST: Duration = Duration::from_millis(10);

/// A stall, and the thread as it was then.
pub(in crate::agent) struct Found {
    pub(in crate::agent) stall: Stall,
    pub(in crate::agent) dump: Option<Box<ThreadDump>>,
}

/// How long the longest poll that goes on has lasted, if that is known.
pub(in crate::agent) fn longest() -> Option<Duration> {
    longest_poll()
}

/// What is too long, to the settings or to a rule; none: nobody looks.
pub(in crate::agent) fn threshold(settings: &Settings) -> Option<Duration> {
    let rules = settings.rules.iter().filter(|rule| rule.metric == Metric::Stall);
    let shortest = rules.filter_map(|rule| Some(rule.abs?.max(rule.min))).reduce(f64::min);
    let shortest = shortest.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let stall = settings.trace.stall.filter(|_| settings.trace.mode != TraceMode::Off)?;
    // Below what settings allow a stall could not be told from a busy machine.
    Some(shortest.map_or(stall, |shortest| stall.min(shortest)).max(LEAST))
}

/// Whoever looks for stalls.
pub(in crate::agent) struct Stalls {
    wanted: Option<(Duration, bool)>,
    watch: Option<Watch>,
    due: Instant,
    examined: Option<JoinHandle<Vec<Found>>>,
}

impl Stalls {
    pub(in crate::agent) fn new() -> Self {
        Self { wanted: None, watch: None, due: Instant::now(), examined: None }
    }

    /// Looks as these settings say from here on: for what is a stall to them or to a rule.
    pub(in crate::agent) fn apply(&mut self, settings: &Settings) {
        let signals = settings.stacks.threads == ThreadsMode::Full;
        let wanted = threshold(settings).map(|threshold| (threshold, signals));
        if wanted != self.wanted {
            self.wanted = wanted;
            self.watch = wanted.map(|(threshold, _)| Watch::new(threshold));
            self.due = Instant::now();
        }
    }

    /// The next stalls. Nothing is lost when the future is dropped.
    pub(in crate::agent) async fn next(&mut self) -> Vec<Found> {
        loop {
            if let Some(examined) = &mut self.examined {
                let found = examined.await.unwrap_or_default();
                self.examined = None;
                return found;
            }
            let Some(watch) = &mut self.watch else { return future::pending().await };
            sleep_until(self.due).await;
            let (overlong, next) = watch.look();
            self.due = Instant::now() + next;
            if !overlong.is_empty() {
                let signals = self.wanted.is_some_and(|(_, signals)| signals);
                self.examined = Some(tokio::task::spawn_blocking(move || {
                    // The one that has lasted longest is the one to be seen first.
                    let mut overlong = overlong;
                    overlong.sort_by_key(|poll| std::cmp::Reverse((poll.running, poll.lasted)));
                    overlong.into_iter().map(|poll| examine(poll, signals)).collect()
                }));
            }
        }
    }
}

fn examine(mut poll: Overlong, signals: bool) -> Found {
    let anchor = SystemClock.anchor();
    let mut remark = "";
    let mut dump = None;
    if !poll.running {
        remark = "it ended before it was looked at";
    } else if !signals {
        remark = "no stack: threads are not signalled";
    } else {
        match fence(|| Ok(threads::dump_one(&SystemClock, anchor, poll.tid)?)) {
            Ok(taken) if poll.goes_on() => dump = Some(Box::new(taken)),
            Ok(_) => {
                poll.running = false;
                remark = "it ended before its stack was taken";
            }
            Err(_) => remark = "no stack: its thread could not be asked",
        }
    }
    let mut function = None;
    if let Some(dump) = &mut dump {
        let _ = fence(|| {
            symbols::name_functions(&mut dump.profile);
            Ok(())
        });
        let stack = dump.threads.first().and_then(|row| row.stack);
        function = stack.and_then(|_| service_function(&dump.profile));
        if function.is_none() {
            remark = dump.threads.first().map_or("", |row| row.remark);
        }
    }
    let stall = Stall {
        task: poll.task,
        number: poll.number,
        tid: poll.tid,
        thread: poll.thread,
        runtime: poll.runtime,
        worker: poll.worker,
        started: anchor.wall_at(poll.start),
        lasted: poll.lasted,
        running: poll.running,
        function,
        remark,
    };
    Found { stall, dump }
}

/// The innermost function that is the service's own, else the innermost with a name.
fn service_function(profile: &Profile) -> Option<String> {
    let stack = profile.samples.first()?.stack;
    let name = |frame: &Frame| {
        let line = frame.lines.first()?;
        let function = profile.functions.get(line.function.index())?;
        Some(profile.strings.get(function.name).to_owned())
    };
    let frames: Vec<&Frame> =
        profile.stacks.frames(stack).map(|frame| profile.frames.get(frame)).collect();
    let own = frames.iter().filter(|frame| frame.mapping.is_some_and(|file| file.index() == 0));
    own.filter_map(|frame| name(frame))
        .find(|name| !is_library(name))
        .or_else(|| frames.iter().find_map(|frame| name(frame)))
}

fn is_library(name: &str) -> bool {
    let path = name.trim_start_matches(['<', '&']);
    let known = ["std::", "core::", "alloc::", "tokio::", "rustix::", "libc::", "marple::", "__"];
    known.iter().any(|known| path.starts_with(known)) || !name.contains("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_the_service() {
        for (name, library) in [
            ("std::thread::sleep", true),
            ("<core::pin::Pin<P> as Future>::poll", true),
            ("nanosleep", true),
            ("orders::disk::wait", false),
            ("<orders::Disk as tokio::io::AsyncRead>::poll_read", false),
        ] {
            assert_eq!(is_library(name), library, "{name}");
        }
    }
}
