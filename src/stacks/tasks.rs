//! Stack dumps of wrapped tasks.
//!
//! ```text
//! dump (capture thread)                       worker of the host's runtime
//!   list a batch, request stacks ─> wake ────> poll: requested? poll with a CaptureWaker
//!   <──────────────── ReplyQueue: stacks <── and queue the captured stacks
//!   next batch when all have replied, or after 20 ms
//! ```
//!
//! Spurious wake-ups are always allowed: futures must tolerate a poll without progress. The host
//! pays one such poll per task, 5 to 10 us including the unwinding. Batches prevent a hundred
//! thousand of these polls from queueing up before the next request: between two batches the
//! runtime's queue contains none of them. The obvious alternative, `tokio::runtime::Handle::dump`,
//! stops all workers at a barrier and leaves the runtime deadlocked if one of them is blocked.
//!
//! No lock is held while a task is woken or polled. At the end of the dump, requests without a
//! reply are withdrawn, and late replies are dropped.
//!
//! Of more than 10,000 tasks a sample is captured and listed; all are counted by spawn site.
//!
//! The list is not a snapshot of one instant: tasks created behind the cursor are not listed.

mod sampling;

use crate::base::sync::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;
use std::task::Waker;
use std::time::Duration;

use super::Error;
use super::registry::{self, Kept, Slot, SlotCursor};
use super::slot::SlotView;
use crate::base::{Clock, Moment, SpawnSite, TimeAnchor};
use crate::model::{
    Calibration, Profile, Sample, Spawned, StackHandle, TaskDump, TaskRow, TaskState, ValueType,
};
use crate::os::clock::cycle_clock;
use crate::os::images;
use crate::stacks::reply_queue::{DESK, TaskReply};
use crate::unwind;
use sampling::TaskSampling;

/// Tasks captured at once: 1 ms of work for two workers.
const BATCH: usize = 256;

/// Maximum time to wait for a batch before the next is requested. A blocked worker must not keep
/// the other tasks out of the dump.
const BATCH_WAIT: Duration = Duration::from_millis(20);

/// Maximum time to wait, after the last batch, for tasks that did not reply during their batch.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// Upper bounds and labels of the age classes in a profile.
const AGES: [(Duration, &str); 5] = [
    (Duration::from_millis(10), "< 10ms"),
    (Duration::from_millis(100), "< 100ms"),
    (Duration::from_secs(1), "< 1s"),
    (Duration::from_secs(10), "< 10s"),
    (Duration::from_secs(60), "< 1m"),
];
const OLDEST: &str = ">= 1m";

/// Spawn location of a task whose site did not fit into the table.
const NOWHERE: Spawned = Spawned { file: "unknown", line: 0 };

/// `tasks` counts a task once; `leaves` counts each of its stacks.
const SAMPLE_TYPES: [ValueType; 2] =
    [ValueType { name: "tasks", unit: "count" }, ValueType { name: "leaves", unit: "count" }];

/// The options of a dump.
#[derive(Clone, Copy, Debug)]
pub struct DumpOptions {
    /// `true` to wake tasks so that their stacks are captured; `false` to only list them.
    pub ask: bool,
    /// `true` if the threads of running tasks may be signalled to capture their stacks.
    pub signals: bool,
    /// Maximum duration of the whole dump.
    pub deadline: Duration,
}

/// Returns the number of wrapped tasks.
pub fn alive() -> usize {
    registry::len()
}

/// Returns the maximum number of wrapped tasks that a dump lists.
pub fn most_listed() -> usize {
    alive().min(sampling::MAX_ROWS)
}

/// Lists every wrapped task and captures the stack on which it waits. Blocks the caller for at most
/// the plan's deadline; the caller must not be a worker of a captured runtime. Concurrent dumps
/// wait for each other.
///
/// # Errors
///
/// Returns an error if `/proc` cannot be read, without which no stack can be symbolized.
pub fn dump(clock: &dyn Clock, anchor: TimeAnchor, plan: DumpOptions) -> Result<TaskDump, Error> {
    static ONE: Mutex<u32> = Mutex::new(0);
    let mut number = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    *number = number.checked_add(1).unwrap_or(1);
    unwind::refresh()?;
    let mut dump = Dump::new(*number, anchor, plan.deadline);
    dump.run(clock, plan.ask);
    let threads = if plan.signals { dump.running_threads(clock)? } else { BTreeMap::new() };
    dump.finish(clock, threads)
}

/// A dump in progress.
struct Dump {
    number: u32,
    anchor: TimeAnchor,
    until: Moment,
    profile: Profile,
    rows: Vec<TaskRow>,
    /// Tasks without a reply yet: row and slot by task number.
    asked: HashMap<u64, (usize, &'static Slot)>,
    /// Rows of tasks that have ended.
    ended: Vec<usize>,
    running: Vec<RunningDump>,
    broken: u64,
    sampling: TaskSampling,
    nameless: u64,
    calibration: Calibration,
}

/// A task that was being polled when it was listed.
struct RunningDump {
    number: u64,
    slot: &'static Slot,
    /// In ticks.
    since: Option<u64>,
}

impl RunningDump {
    /// Returns the thread that polls the task, if it is still in the same poll.
    fn thread(&self) -> Option<u32> {
        let same = self.slot.number() == self.number && self.slot.polled() == self.since;
        self.slot.running().filter(|_| same)
    }
}

impl Dump {
    fn new(number: u32, anchor: TimeAnchor, deadline: Duration) -> Self {
        Self {
            number,
            anchor,
            until: anchor.moment + deadline,
            profile: Profile::new(&SAMPLE_TYPES, SAMPLE_TYPES[0], 1, anchor.wall),
            rows: Vec::new(),
            asked: HashMap::new(),
            ended: Vec::new(),
            running: Vec::new(),
            broken: 0,
            sampling: TaskSampling::of(registry::len()),
            nameless: 0,
            calibration: registry::calibration(),
        }
    }

    fn run(&mut self, clock: &dyn Clock, ask: bool) {
        DESK.open(self.number);
        let mut cursor = Some(SlotCursor::default());
        while let Some(from) = cursor {
            let in_time = ask && clock.now() < self.until;
            let (batch, next) = registry::batch(from, BATCH, if in_time { self.number } else { 0 });
            cursor = next;
            let wakers = self.list(batch, in_time);
            let asked = wakers.len();
            wakers.into_iter().for_each(Waker::wake);
            self.collect(clock, asked, BATCH_WAIT);
        }
        self.collect(clock, self.asked.len(), LAST_WAIT);
        self.asked.values().for_each(|(_, slot)| slot.withdraw(self.number));
        // Also takes the replies that arrived before the requests were withdrawn.
        DESK.collect(0, Duration::ZERO).into_iter().for_each(|answer| self.take(answer));
        DESK.close();
        for (number, (row, slot)) in std::mem::take(&mut self.asked) {
            self.settle(number, row, slot);
        }
    }

    /// Adds the rows of a batch. Returns the wakers of the tasks to wake.
    fn list(&mut self, batch: Vec<(&'static Slot, SlotView<Kept>)>, ask: bool) -> Vec<Waker> {
        let mut wakers = Vec::with_capacity(batch.len());
        for (slot, seen) in batch {
            let (number, id) = (seen.number, seen.held.as_ref().and_then(|kept| kept.id));
            // tokio exposes the number of an id only as text.
            let id = id.and_then(|id| id.to_string().parse().ok());
            let site = SpawnSite::of(seen.site);
            let name = site.and_then(|site| site.name).unwrap_or("");
            let spawned = site.map_or(NOWHERE, |SpawnSite { place, .. }| Spawned {
                file: place.file(),
                line: place.line(),
            });
            self.nameless += u64::from(site.is_none());
            if !self.sampling.takes(spawned, name, id) {
                slot.withdraw(self.number);
                continue;
            }
            let polled = slot.polled();
            let state = match (&seen.held, slot.running()) {
                (_, Some(tid)) => TaskState::Running { tid },
                (None, None) => TaskState::Fresh,
                (Some(_), None) => TaskState::NotAsked,
            };
            if let (true, Some(kept)) = (ask, seen.held) {
                self.asked.insert(number, (self.rows.len(), slot));
                wakers.push(kept.waker);
            } else if ask && let TaskState::Running { .. } = state {
                // A task in its first poll has no stored waker.
                self.running.push(RunningDump { number, slot, since: polled });
            }
            self.rows.push(TaskRow {
                number,
                id,
                name,
                spawned,
                state,
                since_poll: polled.map(|tick| self.age(tick)),
                stacks: Vec::new(),
                more_stacks: 0,
                weight: 1,
            });
        }
        wakers
    }

    /// Returns the time since `tick`.
    fn age(&self, tick: u64) -> Duration {
        let moment = |tick| self.calibration.moment(tick);
        moment(cycle_clock::now()).since(moment(tick))
    }

    /// Takes replies until `wanted` have arrived, `most` has passed, or the deadline is reached.
    fn collect(&mut self, clock: &dyn Clock, wanted: usize, most: Duration) {
        let now = clock.now();
        let until = (now + most).min(self.until.max(now));
        let mut got = 0;
        loop {
            let now = clock.now();
            let answers = DESK.collect(wanted - got, until.since(now));
            got += answers.len();
            answers.into_iter().for_each(|answer| self.take(answer));
            if got >= wanted || clock.now() >= until {
                return;
            }
        }
    }

    fn take(&mut self, answer: TaskReply) {
        let Some((at, _)) = self.asked.remove(&answer.number) else { return };
        self.broken += u64::from(answer.broken);
        if answer.ended {
            self.ended.push(at);
            return;
        }
        let stacks: Vec<StackHandle> =
            answer.stacks.iter().filter_map(|stack| self.profile.intern_stack(stack)).collect();
        let Some(row) = self.rows.get_mut(at) else { return };
        row.state = if stacks.is_empty() { TaskState::WaitingUnseen } else { TaskState::Waiting };
        row.stacks = stacks;
        row.more_stacks = answer.more;
    }

    /// Sets the state of a task that did not reply.
    fn settle(&mut self, number: u64, at: usize, slot: &'static Slot) {
        let (running, polled) = (slot.running(), slot.polled());
        let age = polled.map(|tick| self.age(tick));
        let Some(row) = self.rows.get_mut(at) else { return };
        if slot.number() != number {
            self.ended.push(at);
            return;
        }
        row.state = running.map_or(TaskState::Scheduled, |tid| TaskState::Running { tid });
        if running.is_some() {
            self.running.push(RunningDump { number, slot, since: polled });
            row.since_poll = age;
        }
    }

    /// Returns the stacks of the threads that poll tasks.
    fn running_threads(&mut self, clock: &dyn Clock) -> Result<BTreeMap<u32, StackHandle>, Error> {
        let before: Vec<u32> = self.running.iter().filter_map(RunningDump::thread).collect();
        if before.is_empty() {
            return Ok(BTreeMap::new());
        }
        let stacks = super::threads::stacks_of(clock, &before, &mut self.profile)?;
        // Excludes tasks whose poll ended meanwhile: their thread was sampled in other code.
        let after = self.running.iter().filter_map(RunningDump::thread);
        Ok(after.filter_map(|tid| Some((tid, *stacks.get(&tid)?))).collect())
    }

    fn finish(
        mut self,
        clock: &dyn Clock,
        threads: BTreeMap<u32, StackHandle>,
    ) -> Result<TaskDump, Error> {
        self.ended.sort_unstable();
        for &at in self.ended.iter().rev() {
            let row = self.rows.swap_remove(at);
            self.sampling.ended(row.spawned, row.name);
        }
        self.rows.sort_unstable_by_key(|row| row.number);
        self.sampling.weigh(&mut self.rows);
        self.count();
        self.profile.losses.add("task stacks cut or not walked", self.broken);
        let places = "task places beyond the 4,096 that are told apart";
        self.profile.losses.add(places, self.nameless);
        self.profile.attach_mappings(images::loaded()?);
        Ok(TaskDump {
            took: clock.now().since(self.anchor.moment),
            profile: self.profile,
            tasks: self.rows,
            runtime_tasks: self.sampling.runtime_tasks(),
            sites: self.sampling.into_sites(),
            unwrapped: None,
            threads,
        })
    }

    /// Adds one sample per stack, state, spawn location and age class.
    fn count(&mut self) {
        let mut counts = HashMap::new();
        for row in &self.rows {
            let age = row.since_poll.map_or("", age);
            let weight = i64::try_from(row.weight).unwrap_or(i64::MAX);
            let mut count = |stack, first: bool| {
                let key = (stack, row.state.name(), row.spawned, row.name, age);
                let sum: &mut [i64; 2] = counts.entry(key).or_default();
                sum[0] += if first { weight } else { 0 };
                sum[1] += weight;
            };
            match row.stacks.split_first() {
                None => count(None, true),
                Some((first, others)) => {
                    count(Some(*first), true);
                    others.iter().for_each(|stack| count(Some(*stack), false));
                }
            }
        }
        let profile = &mut self.profile;
        for ((stack, state, spawned, name, age), values) in counts {
            let place = format!("{}:{}", spawned.file, spawned.line);
            let mut labels =
                vec![profile.text_label("state", state), profile.text_label("spawned", &place)];
            if !name.is_empty() {
                labels.push(profile.text_label("task", name));
            }
            if !age.is_empty() {
                labels.push(profile.text_label("idle", age));
            }
            profile.samples.push(Sample { stack, values: values.to_vec(), labels });
        }
    }
}

/// Returns the class of an age.
fn age(idle: Duration) -> &'static str {
    AGES.iter().find(|(end, _)| idle < *end).map_or(OLDEST, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_classes() {
        let ages = [0, 9, 10, 59_999, 60_000].map(|ms| age(Duration::from_millis(ms)));
        assert_eq!(ages, ["< 10ms", "< 10ms", "< 100ms", "< 1m", ">= 1m"]);
    }
}
