//! The thread `marple-wall`, which checks all threads in turn.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::images::SeenImages;
use super::wall_report::WallCounts;
use crate::base::{Clock, Hertz, Moment, SystemClock, panics};
use crate::cpu::Error;
use crate::cpu::sampling::sample_table::SampleTable;
use crate::cpu::sampling::thread_state_key::{ThreadStateInterner, ThreadStateKey};
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::thread_reader::{ProcThreadReader, SchedStat};
use crate::os::proc::threads::{self, Thread};
use crate::unwind::thread_sampler::{self, BATCH, SIGNAL, ThreadSampler};
use crate::unwind::{MAX_FRAMES, StackWalker, WalkEnd};

/// Maximum checks per second: 3 % of a core.
const LOOKS: u32 = 2000;

/// Maximum signals per second, over all threads.
const SIGNALS: u32 = 500;

/// Maximum interval between reads of the thread list; a changed number of threads also triggers a
/// read.
const LIST_EVERY: Duration = Duration::from_millis(250);

/// Table entries, as in a CPU session.
const NODES: usize = 64 << 10;

/// Stack bytes read first through /proc; deeper stacks are read again in full.
const SHALLOW: usize = 16 << 10;

/// Maximum wait for a thread to sleep again after a signal woke it.
const SETTLE: Duration = Duration::from_millis(5);

/// A thread being sampled.
struct SampledThread {
    /// End of the time that is accounted for.
    since: Moment,
    last: SchedStat,
    asleep: Option<SleepingThread>,
}

/// Stack of a sleeping thread, valid while `turns` is unchanged.
struct SleepingThread {
    turns: u64,
    frames: Arc<[u64]>,
    is_cut: bool,
}

/// A check that needs a signal.
struct PendingSignal {
    thread: Thread,
    runs: SchedStat,
    at: Moment,
}

/// A token bucket, refilled with time.
struct TokenBucket {
    each_second: f64,
    left: f64,
}

impl TokenBucket {
    fn new(each_second: u32) -> Self {
        Self { each_second: each_second.into(), left: 0.0 }
    }

    /// Adds tokens, up to the larger of one tick's share and one batch of signals. Older unused
    /// tokens expire, so that they cannot cause a burst.
    fn grow(&mut self, passed: Duration, frequency: Hertz) {
        let most = (self.each_second / f64::from(frequency.get().max(1))).max(BATCH as f64);
        self.left = (self.left + passed.as_secs_f64() * self.each_second).min(most);
    }

    fn is_spent(&self) -> bool {
        self.left < 1.0
    }
}

/// State of the thread `marple-wall`.
pub(super) struct WallSampler {
    frequency: Hertz,
    pub(super) signals: bool,
    /// `true` if stacks of sleeping threads are read through /proc where possible.
    from_outside: bool,
    own: u32,
    tasks: ThreadList,
    listed_at: Option<Moment>,
    listed: Vec<u32>,
    eyes: ProcThreadReader,
    walker: StackWalker,
    watched: HashMap<u32, SampledThread>,
    /// Threads in the order of their next check.
    line: VecDeque<u32>,
    looks: TokenBucket,
    questions: TokenBucket,
    ticked: Moment,
    stack: Vec<u64>,
    pub(super) tally: SampleTable,
    pub(super) standings: ThreadStateInterner,
    pub(super) counts: WallCounts,
    pub(super) images: SeenImages,
}

impl WallSampler {
    pub(super) fn new(frequency: Hertz, signals: bool, from_outside: bool) -> Result<Self, Error> {
        let refused = |why| Error::Refused { engine: "wall", why };
        let mut watch = Self {
            frequency,
            signals,
            from_outside,
            own: 0,
            tasks: ThreadList::open().map_err(|source| Error::Tasks { source })?,
            listed_at: None,
            listed: Vec::new(),
            eyes: ProcThreadReader::open().map_err(refused)?,
            walker: StackWalker::new()?,
            watched: HashMap::new(),
            line: VecDeque::new(),
            looks: TokenBucket::new(LOOKS),
            questions: TokenBucket::new(SIGNALS),
            ticked: SystemClock.now(),
            stack: Vec::new(),
            tally: SampleTable::new(NODES),
            standings: ThreadStateInterner::default(),
            counts: WallCounts::default(),
            images: SeenImages::default(),
        };
        // Threads that already exist are accounted for from the start of the profile.
        watch.list(watch.ticked);
        Ok(watch)
    }

    /// Samples until `ends` closes.
    pub(super) fn run(mut self, ends: &Receiver<()>, guard: fn() -> Box<dyn Any>) -> Self {
        let _guard = guard();
        crate::os::own_thread::enter();
        self.own = threads::current();
        let period = Duration::from_secs(1) / self.frequency.get().max(1);
        let mut random = u64::from(self.own);
        loop {
            // Knuth's multiplier; only the upper bits are random enough.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let part = (random >> 11) as f64 / (1u64 << 53) as f64;
            let is_over = match ends.recv_timeout(period.mul_f64(0.5 + part)) {
                Err(RecvTimeoutError::Timeout) => false,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            };
            panics::fence_and_record("marple-wall", || self.tick());
            if is_over {
                return self;
            }
        }
    }

    /// Checks the threads at the front of the queue.
    pub(super) fn tick(&mut self) {
        let now = SystemClock.now();
        let passed = now.since(self.ticked);
        self.ticked = now;
        self.looks.grow(passed, self.frequency);
        self.questions.grow(passed, self.frequency);
        self.counts.ticks += 1;
        let is_due = self.listed_at.is_none_or(|at| now.since(at) >= LIST_EVERY);
        if is_due || self.tasks.count().is_none_or(|count| count != self.listed.len()) {
            self.list(now);
        }
        if self.walker.refresh().unwrap_or(false) || self.images.is_empty() {
            self.images.note();
        }
        let mut questions = Vec::new();
        for _ in 0..self.line.len() {
            let is_spent = self.questions.left - (questions.len() as f64) < 1.0;
            if self.looks.is_spent() || (self.signals && is_spent) {
                self.counts.short_ticks += 1;
                break;
            }
            let Some(tid) = self.line.pop_front() else { break };
            self.looks.left -= 1.0;
            match self.eyes.look(tid) {
                Some((thread, runs)) => {
                    self.line.push_back(tid);
                    let at = SystemClock.now();
                    questions.extend(self.look(PendingSignal { thread, runs, at }));
                }
                None => self.forget(tid, true),
            }
        }
        if !questions.is_empty() {
            self.ask(questions);
        }
    }

    /// Updates the queue with started and ended threads.
    fn list(&mut self, now: Moment) {
        let is_whole = self.tasks.list(&mut self.listed).is_ok();
        // A thread started since the last list has existed for half of that time, on average.
        let born = self.listed_at.map_or(now, |last| now - now.since(last) / 2);
        for &tid in &self.listed {
            if tid != self.own && !self.watched.contains_key(&tid) {
                let last = self.eyes.runs(tid).unwrap_or_default();
                let watched = SampledThread { since: born, last, asleep: None };
                self.watched.insert(tid, watched);
                self.line.push_back(tid);
            }
        }
        if is_whole {
            let listed = &self.listed;
            let is_gone = |tid: &&u32| listed.binary_search(tid).is_err();
            let gone: Vec<u32> = self.watched.keys().filter(is_gone).copied().collect();
            gone.into_iter().for_each(|tid| self.forget(tid, true));
        }
        self.forget(self.own, false);
        self.listed_at = Some(now);
    }

    fn forget(&mut self, tid: u32, has_ended: bool) {
        if self.watched.remove(&tid).is_some() {
            self.line.retain(|&other| other != tid);
            self.counts.ended += u64::from(has_ended);
        }
    }

    /// Records a sample if no signal is needed; otherwise returns the check.
    fn look(&mut self, question: PendingSignal) -> Option<PendingSignal> {
        let PendingSignal { thread, runs, at } = &question;
        let watched = self.watched.get_mut(&thread.tid)?;
        self.counts.cpu += runs.cpu.saturating_sub(watched.last.cpu);
        self.counts.waited += runs.waited.saturating_sub(watched.last.waited);
        watched.last = *runs;
        watched.asleep.take_if(|asleep| asleep.turns != runs.turns);
        if let Some(SleepingThread { frames, is_cut, .. }) = &watched.asleep {
            let (frames, is_cut) = (Arc::clone(frames), *is_cut);
            self.counts.unmoved += 1;
            self.place(thread, *at, &frames, is_cut, "");
            return None;
        }
        match thread.state {
            'Z' | 'X' => {
                self.place(thread, *at, &[], true, "it has ended");
                return None;
            }
            'R' => {}
            _ if self.from_outside && self.read_from_outside(thread, *runs, *at) => return None,
            // A stopped thread handles the signal only when it continues, which is too late.
            'S' => {}
            _ => {
                self.counts.silent += 1;
                self.place(thread, *at, &[], true, "no answer: signals do not reach it");
                return None;
            }
        }
        let why = match () {
            () if !self.signals => "not signalled",
            () if thread.blocked >> (SIGNAL - 1) & 1 == 1 => "no answer: it blocks SIGURG",
            () => return Some(question),
        };
        self.counts.silent += 1;
        self.place(thread, *at, &[], true, why);
        None
    }

    /// Reads the stack of a sleeping thread through /proc. Returns `false` if that is impossible.
    fn read_from_outside(&mut self, thread: &Thread, runs: SchedStat, at: Moment) -> bool {
        for bytes in [SHALLOW, thread_sampler::STACK_BYTES] {
            let Some(registers) = self.eyes.asleep(thread.tid, runs, bytes, &mut self.stack) else {
                return false;
            };
            let mut frames = [0; MAX_FRAMES];
            let walk = self.walker.walk(registers, &self.stack, false, &mut frames);
            let is_cut = match walk.end {
                WalkEnd::Whole => Some(false),
                WalkEnd::TooDeep => Some(true),
                _ => None,
            };
            if let Some(is_cut) = is_cut {
                let frames = frames.get(..walk.depth).unwrap_or_default();
                self.counts.from_outside += 1;
                self.place(thread, at, frames, is_cut, "");
                self.hold(thread.tid, runs.turns, frames, is_cut);
                return true;
            }
            if walk.end == WalkEnd::Broken {
                return false;
            }
        }
        false
    }

    /// Samples threads by signal.
    fn ask(&mut self, questions: Vec<PendingSignal>) {
        let net = match ThreadSampler::cast() {
            Ok(net) => net,
            Err(why) => {
                self.counts.silent += questions.len() as u64;
                self.counts.no_signals = Some(why);
                for PendingSignal { thread, at, .. } in &questions {
                    self.place(thread, *at, &[], true, "no answer: no handler");
                }
                return;
            }
        };
        self.questions.left -= questions.len() as f64;
        self.counts.signalled += questions.len() as u64;
        let tids = questions.iter().map(|question| question.thread.tid);
        let mut answers: HashMap<u32, (Box<[u64]>, WalkEnd)> = HashMap::new();
        let mut gone = Vec::new();
        let take = |tid, frames: &[u64], end| drop(answers.insert(tid, (frames.into(), end)));
        // Without maps no stack has bounds, and no thread is signalled.
        let _ = net.catch(&SystemClock, tids, &mut self.walker, |tid| gone.push(tid), take);
        drop(net);
        gone.into_iter().for_each(|tid| self.forget(tid, true));
        let until = SystemClock.now() + SETTLE;
        for PendingSignal { thread, runs, at } in questions {
            let Some((frames, end)) = answers.remove(&thread.tid) else {
                if self.watched.contains_key(&thread.tid) {
                    self.counts.silent += 1;
                    self.place(&thread, at, &[], true, "no answer within 100 ms");
                }
                continue;
            };
            let is_cut = end != WalkEnd::Whole;
            self.place(&thread, at, &frames, is_cut, "");
            if thread.state == 'S' && self.sleeps_on(thread.tid, runs, until) {
                self.hold(thread.tid, runs.turns + 1, &frames, is_cut);
            }
        }
    }

    /// Returns `true` if a thread that slept ran exactly once since `runs`, for the handler, and
    /// sleeps again.
    fn sleeps_on(&self, tid: u32, runs: SchedStat, until: Moment) -> bool {
        loop {
            match self.eyes.look(tid) {
                Some((thread, now)) if now.turns == runs.turns + 1 => {
                    if thread.state == 'S' {
                        return true;
                    }
                }
                _ => return false,
            }
            if SystemClock.now() >= until {
                return false;
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn hold(&mut self, tid: u32, turns: u64, frames: &[u64], is_cut: bool) {
        if let Some(watched) = self.watched.get_mut(&tid) {
            watched.asleep = Some(SleepingThread { turns, frames: frames.into(), is_cut });
        }
    }

    /// Records a sample with the time of the thread up to `at`.
    fn place(
        &mut self,
        thread: &Thread,
        at: Moment,
        frames: &[u64],
        is_cut: bool,
        why: &'static str,
    ) {
        let Some(watched) = self.watched.get_mut(&thread.tid) else { return };
        let time = at.since(watched.since);
        watched.since = at;
        let state = match thread.state {
            // It slept and has not run since, so it waits for a core.
            'R' if watched.asleep.is_some() => "runnable",
            'R' => "running",
            'S' => "sleeping",
            'D' => "disk-sleep",
            'T' | 't' => "stopped",
            'I' => "idle",
            'Z' | 'X' => "ended",
            _ => "unknown",
        };
        let standing = ThreadStateKey {
            thread: thread.name.clone(),
            state,
            wait: thread.wait_channel.clone(),
            why,
        };
        let number = self.standings.number(standing);
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.counts.looked += 1;
        self.tally.add(number, frames, micros, is_cut && why.is_empty());
    }
}

#[cfg(test)]
#[path = "wall_tests.rs"]
mod tests;
