//! Suspected stalls: what workers tell, and which threads they may be.
//!
//! What is decided stands in `trace::stalls`; here threads are asked, on one of the threads for files. Candidates
//! are those called like a thread that ran a task of an observed runtime. Who is found to be none of its workers
//! is left alone for a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::base::{Clock, Moment, SystemClock};
use crate::model::{Beat, Profile, ValueType};
use crate::os::{images, threads};
use crate::stacks::polls::{Onlooker, Stand};
use crate::symbols;
use crate::trace::stalls::{Ask, MAX_FOLLOWED, Sample, Suspects, Suspicion, Verdict, is_recorded};
use crate::vitals::Runtimes;

/// How long a thread that is no worker is left alone.
const PLAIN: Duration = Duration::from_secs(10);

/// The addresses whose functions are remembered: more than a service has in tokio's code.
const MAX_ROLES: usize = 4096;

/// The lessons that searches need not wait for. To read the names of tokio's functions takes ten times the CPU of
/// the search itself, 40 ms in a debug build, which by the share that one may take is half a second without another:
/// longer than most stalls.
/// They are read once, at the first searches, so those are not held to it.
const FREE_LESSONS: u32 = 8;

/// What a frame tells of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The loop of a worker.
    Worker,
    /// A task is polled here.
    Poll,
    /// The worker was left to another thread.
    InPlace,
    Other,
}

/// Whoever suspects.
pub(super) struct Suspicions {
    runtimes: Runtimes,
    suspects: Suspects,
    beats: Vec<Beat>,
    /// At rest; else in the round.
    examiner: Option<Box<Examiner>>,
    round: Option<JoinHandle<Round>>,
    /// Whether the machine lets nobody be asked.
    refused: bool,
}

/// What came of asking.
struct Round {
    examiner: Box<Examiner>,
    asked: Moment,
    samples: Vec<Sample>,
    search: Option<Duration>,
}

impl Suspicions {
    pub(super) fn new(runtimes: Runtimes, threshold: Duration) -> Self {
        Self {
            runtimes,
            suspects: Suspects::new(threshold),
            beats: Vec::new(),
            examiner: None,
            round: None,
            refused: false,
        }
    }

    /// Looks at the workers and has threads asked if need be; how long until the next look.
    pub(super) fn look(&mut self) -> Duration {
        self.runtimes.beats(&mut self.beats);
        let (ask, next) = self.suspects.look(SystemClock.now(), &self.beats);
        let Some(ask) = ask.filter(|_| !self.refused && self.round.is_none()) else { return next };
        let workers = if ask.search { self.runtimes.threads() } else { Vec::new() };
        let examiner = match self.examiner.take() {
            Some(examiner) => Ok(examiner),
            None => Onlooker::new().map(|onlooker| Box::new(Examiner::new(onlooker))),
        };
        match examiner {
            Ok(examiner) => {
                self.round = Some(spawn_blocking(move || examiner.round(&ask, &workers)));
            }
            Err(why) => {
                self.refused = true;
                tracing::info!(target: "marple", "stalls of tasks that are not recorded are not seen: {why}");
            }
        }
        next
    }

    /// What the threads that were asked said, if it makes a suspicion. Never, while none are asked.
    pub(super) async fn heard(&mut self) -> Option<Verdict> {
        let Some(round) = &mut self.round else { return std::future::pending().await };
        let round = round.await;
        self.round = None;
        let Round { examiner, asked, samples, search } = round.ok()?;
        self.examiner = Some(examiner);
        let now = SystemClock.now();
        self.runtimes.beats(&mut self.beats);
        self.suspects.look(now, &self.beats);
        self.suspects.hear(now, asked, &samples, search)
    }

    /// Which of the suspicions hold, after `is_stuck` was found out.
    pub(super) fn settle(
        &mut self,
        verdict: Verdict,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<Suspicion> {
        self.suspects.settle(verdict, is_stuck)
    }

    /// Whether there is a worker that would be suspected.
    pub(super) fn sees_workers(&self) -> bool {
        !self.refused && !self.beats.is_empty()
    }

    /// Since when the oldest of those that were told goes on.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.suspects.oldest()
    }
}

/// Asks threads, and knows what it has seen.
struct Examiner {
    onlooker: Onlooker,
    roles: HashMap<u64, Role>,
    /// How often functions were read.
    lessons: u32,
    /// Of threads that are followed: the poll they are in, and how often they had been given a core.
    last: HashMap<u32, (u64, u64)>,
    /// Threads that are no workers, and until when.
    plain: HashMap<u32, Moment>,
}

impl Examiner {
    fn new(onlooker: Onlooker) -> Self {
        Self {
            onlooker,
            roles: HashMap::new(),
            lessons: 0,
            last: HashMap::new(),
            plain: HashMap::new(),
        }
    }

    fn round(mut self: Box<Self>, ask: &Ask, workers: &[u32]) -> Round {
        let (asked, before) = (SystemClock.now(), threads::cpu_time());
        self.last.retain(|tid, _| ask.follow.contains(tid));
        let mut samples = Vec::new();
        let mut open: Vec<u32> = Vec::new();
        for &tid in &ask.follow {
            let slept = self.last.get(&tid).copied().filter(|&(_, turns)| self.sleeps(tid, turns));
            match slept {
                Some((poll, _)) => {
                    let waited = Duration::ZERO;
                    samples.push(Sample { tid, poll: Some(poll), slept: true, waited });
                }
                None => open.push(tid),
            }
        }
        if ask.search {
            let room = MAX_FOLLOWED.saturating_sub(open.len());
            open.extend(self.candidates(asked, &ask.follow, workers).into_iter().take(room));
        }
        let (recorded, open): (Vec<u32>, Vec<u32>) =
            open.into_iter().partition(|&tid| is_recorded(tid));
        let left_out = |tid| Sample { tid, poll: None, slept: false, waited: Duration::ZERO };
        samples.extend(recorded.into_iter().map(left_out));
        let stands = self.onlooker.ask(&SystemClock, &open);
        let learning = threads::cpu_time();
        self.learn(&stands);
        let learning = threads::cpu_time().saturating_sub(learning);
        let free = if self.lessons <= FREE_LESSONS { learning } else { Duration::ZERO };
        samples.extend(open.into_iter().map(|tid| {
            let stand = stands.iter().find(|stand| stand.tid == tid);
            let poll = stand.and_then(|stand| self.poll_of(stand));
            match (stand, poll) {
                (Some(stand), Some(poll)) => drop(self.last.insert(tid, (poll, stand.runs.turns))),
                (Some(stand), None) if !self.is_worker(stand) => {
                    self.plain.insert(tid, asked + PLAIN);
                }
                _ => drop(self.last.remove(&tid)),
            }
            let waited = stand.map_or(Duration::ZERO, |stand| stand.runs.waited);
            Sample { tid, poll, slept: false, waited }
        }));
        let search = ask.search.then(|| threads::cpu_time().saturating_sub(before + free));
        Round { examiner: self, asked, samples, search }
    }

    /// Whether a thread sleeps and has not run since it had been given a core `turns` times.
    fn sleeps(&self, tid: u32, turns: u64) -> bool {
        let looked = self.onlooker.look(tid);
        looked
            .is_some_and(|(thread, runs)| runs.turns == turns && matches!(thread.state, 'S' | 'D'))
    }

    /// The threads that are called like one of `workers`.
    fn candidates(&mut self, now: Moment, followed: &[u32], workers: &[u32]) -> Vec<u32> {
        self.plain.retain(|_, until| *until > now);
        let names: Vec<String> = workers.iter().filter_map(|&tid| self.stem(tid)).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let mut tids = self.onlooker.list();
        tids.retain(|tid| !followed.contains(tid) && !self.plain.contains_key(tid));
        let (like, others) = tids
            .into_iter()
            .partition(|&tid| self.stem(tid).is_some_and(|name| names.contains(&name)));
        let others: Vec<u32> = others;
        self.plain.extend(others.into_iter().map(|tid| (tid, now + PLAIN)));
        like
    }

    /// A thread's name without its number.
    fn stem(&self, tid: u32) -> Option<String> {
        let name = self.onlooker.name(tid)?;
        Some(name.trim_end_matches(|end: char| end.is_ascii_digit()).to_owned())
    }

    /// Finds out the functions of stacks that cannot be read without.
    fn learn(&mut self, stands: &[Stand]) {
        let unread: Vec<&Stand> =
            stands.iter().filter(|stand| self.read(stand).is_none()).collect();
        if unread.is_empty() {
            return;
        }
        self.lessons = self.lessons.saturating_add(1);
        if self.roles.len() > MAX_ROLES {
            self.roles.clear();
        }
        let kind = ValueType { name: "threads", unit: "count" };
        let mut profile = Profile::new(&[kind], kind, 1, SystemClock.wall());
        for address in unread.iter().flat_map(|stand| stand.frames.iter()) {
            profile.frames.intern(*address);
        }
        let Ok(loaded) = images::loaded() else { return };
        profile.attach_mappings(loaded);
        symbols::name_functions(&mut profile);
        for frame in profile.frames.iter() {
            let function = frame.lines.first().map(|line| line.function.index());
            let function = function.and_then(|function| profile.functions.get(function));
            let name = function.map_or("", |function| profile.strings.get(function.name));
            self.roles.insert(frame.address, role(name));
        }
    }

    /// The poll that a worker is in, as a number.
    fn poll_of(&self, stand: &Stand) -> Option<u64> {
        let at = self.read(stand)??;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(*stand.marks.get(at)?);
        stand.frames.get(at..)?.iter().for_each(|&frame| hasher.write_u64(frame));
        Some(hasher.finish())
    }

    fn is_worker(&self, stand: &Stand) -> bool {
        stand.frames.iter().any(|frame| self.roles.get(frame) == Some(&Role::Worker))
    }

    /// Where in its stack a worker polls a task, if it does; none at all where frames are not known.
    fn read(&self, stand: &Stand) -> Option<Option<usize>> {
        let role = |at: usize| self.roles.get(stand.frames.get(at)?).copied();
        poll_in(role, stand.frames.len())
    }
}

/// Whether a thread with these functions, innermost first, holds a worker up.
pub(super) fn holds_up<'n>(names: impl DoubleEndedIterator<Item = &'n str> + Clone) -> bool {
    let mut outermost_first = names.clone().rev().map(role);
    outermost_first.any(|role| role == Role::Worker)
        && outermost_first.any(|role| role == Role::Poll)
        && !names.map(role).any(|role| role == Role::InPlace)
}

/// The place of the poll inside of a worker's loop among `depth` frames, innermost first.
fn poll_in(mut role: impl FnMut(usize) -> Option<Role>, depth: usize) -> Option<Option<usize>> {
    let mut is_worker = false;
    for at in (0..depth).rev() {
        match role(at)? {
            Role::Worker => is_worker = true,
            Role::Poll if is_worker => return Some(Some(at)),
            _ => {}
        }
    }
    Some(None)
}

fn role(name: &str) -> Role {
    const WORKER: &str = "tokio::runtime::scheduler::multi_thread::worker::";
    // The first jumps to the second where the compiler optimizes.
    const POLLS: [&str; 2] =
        ["tokio::runtime::task::raw::poll", "tokio::runtime::task::harness::Harness"];
    if name.contains("block_in_place") || name.contains("runtime_mt::exit_runtime") {
        Role::InPlace
    } else if POLLS.iter().any(|poll| name.starts_with(poll)) {
        Role::Poll
    } else if name.contains(WORKER) {
        Role::Worker
    } else {
        Role::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_in_a_poll_is_told_from_what_looks_like_one() {
        const POLL: &str = "tokio::runtime::task::raw::poll";
        const LOOP: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
        let blocking = ["tokio::runtime::blocking::pool::Inner::run", "start_thread"];
        for (inner, stuck) in [
            (&["orders::wait", POLL, LOOP, POLL][..], true),
            (&["orders::wait", "tokio::runtime::task::raw::poll::<T, S>", LOOP, POLL], true),
            (
                &[
                    "orders::wait",
                    "tokio::runtime::task::core::Core<T,S>::poll",
                    "tokio::runtime::task::harness::Harness<T,S>::poll",
                    "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
                ],
                true,
            ),
            (&["orders::wait", POLL], false),
            (&["epoll_wait", LOOP, POLL], false),
            (&["orders::wait", "tokio::task::blocking::block_in_place", POLL, LOOP, POLL], false),
            (
                &[
                    "orders::wait",
                    POLL,
                    "tokio::runtime::scheduler::current_thread::Context::run_task",
                    "main",
                ],
                false,
            ),
        ] {
            let names = inner.iter().chain(&blocking).copied();
            assert_eq!(holds_up(names), stuck, "{inner:?}");
        }
    }

    #[test]
    fn a_worker_is_found_in_its_poll_and_functions_are_read_once_for_that() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("examined").build().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            tell.send(threads::current()).unwrap();
            let _ = released.recv();
        });
        let worker = told.recv().unwrap();
        let ask = Ask { follow: Vec::new(), search: true };
        let mut examiner = Box::new(Examiner::new(Onlooker::new().unwrap()));
        for _ in 0..3 {
            let round = examiner.round(&ask, &[worker]);
            let sample = round.samples.iter().find(|sample| sample.tid == worker).unwrap();
            assert!(sample.poll.is_some(), "{sample:?}");
            examiner = round.examiner;
        }
        assert_eq!(examiner.lessons, 1);
        drop(release);
    }

    #[test]
    fn of_two_polls_the_task_is_the_one_inside_of_the_loop() {
        use Role::{Other, Poll, Worker};
        let place = |roles: &[Option<Role>]| poll_in(|at| roles[at], roles.len());
        let some = |roles: &[Role]| place(&roles.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(some(&[Other, Poll, Other, Worker, Worker, Other, Poll, Other]), Some(Some(1)));
        assert_eq!(some(&[Other, Worker, Poll]), Some(None));
        // Nothing further in matters.
        assert_eq!(place(&[None, Some(Poll), Some(Worker)]), Some(Some(1)));
        assert_eq!(place(&[None, Some(Worker)]), None);
    }
}
