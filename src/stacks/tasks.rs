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
use super::registry::{self, Slot, SlotCursor, StoredWaker};
use super::slot::SlotView;
use crate::base::{Clock, Moment, SpawnSite, TimeAnchor};
use crate::model::{
    Calibration, Profile, Sample, SpawnLocation, StackHandle, TaskDump, TaskRow, TaskState,
    ValueType,
};
use crate::os::clock::cycle_clock;
use crate::os::images;
use crate::stacks::reply_queue::{REPLY_QUEUE, TaskReply};
use crate::unwind;
use sampling::TaskSampling;

/// Tasks captured at once: 1 ms of work for two workers.
const BATCH_TASKS: usize = 256;

/// Maximum time to wait for a batch before the next is requested. A blocked worker must not keep
/// the other tasks out of the dump.
const BATCH_TIMEOUT: Duration = Duration::from_millis(20);

/// Maximum time to wait, after the last batch, for tasks that did not reply during their batch.
const FINAL_TIMEOUT: Duration = Duration::from_millis(100);

/// Upper bounds and labels of the age classes in a profile.
const AGE_CLASSES: [(Duration, &str); 5] = [
    (Duration::from_millis(10), "< 10ms"),
    (Duration::from_millis(100), "< 100ms"),
    (Duration::from_secs(1), "< 1s"),
    (Duration::from_secs(10), "< 10s"),
    (Duration::from_secs(60), "< 1m"),
];
const OLDEST_CLASS: &str = ">= 1m";

/// Spawn location of a task whose site did not fit into the table.
const UNKNOWN_SITE: SpawnLocation = SpawnLocation { file: "unknown", line: 0 };

/// `tasks` counts a task once; `leaves` counts each of its stacks.
const SAMPLE_TYPES: [ValueType; 2] =
    [ValueType { name: "tasks", unit: "count" }, ValueType { name: "leaves", unit: "count" }];

/// The options of a dump.
#[derive(Clone, Copy, Debug)]
pub struct DumpOptions {
    /// `true` to wake tasks so that their stacks are captured; `false` to only list them.
    pub capture_stacks: bool,
    /// `true` if the threads of running tasks may be signalled to capture their stacks.
    pub allow_signals: bool,
    /// Maximum duration of the whole dump.
    pub timeout: Duration,
}

/// Returns the number of wrapped tasks.
pub fn alive_count() -> usize {
    registry::task_count()
}

/// Returns the maximum number of wrapped tasks that a dump lists.
pub fn max_listed() -> usize {
    alive_count().min(sampling::MAX_ROWS)
}

/// Lists every wrapped task and captures the stack on which it waits. Blocks the caller for at most
/// the plan's deadline; the caller must not be a worker of a captured runtime. Concurrent dumps
/// wait for each other.
///
/// # Errors
///
/// Returns an error if `/proc` cannot be read, without which no stack can be symbolized.
pub fn dump(
    clock: &dyn Clock,
    anchor: TimeAnchor,
    options: DumpOptions,
) -> Result<TaskDump, Error> {
    static DUMP_NUMBER: Mutex<u32> = Mutex::new(0);
    let mut number = DUMP_NUMBER.lock().unwrap_or_else(PoisonError::into_inner);
    *number = number.checked_add(1).unwrap_or(1);
    unwind::refresh()?;
    let mut dump = Dump::new(*number, anchor, options.timeout);
    dump.run(clock, options.capture_stacks);
    let threads =
        if options.allow_signals { dump.sample_running_threads(clock)? } else { BTreeMap::new() };
    dump.finish(clock, threads)
}

/// A dump in progress.
struct Dump {
    number: u32,
    anchor: TimeAnchor,
    deadline: Moment,
    profile: Profile,
    rows: Vec<TaskRow>,
    /// Tasks without a reply yet: row and slot by task number.
    requested: HashMap<u64, (usize, &'static Slot)>,
    /// Rows of tasks that have ended.
    ended_rows: Vec<usize>,
    running_tasks: Vec<RunningTask>,
    incomplete_stacks: u64,
    sampling: TaskSampling,
    without_site: u64,
    calibration: Calibration,
}

/// A task that was being polled when it was listed.
struct RunningTask {
    number: u64,
    slot: &'static Slot,
    /// In ticks.
    poll_start: Option<u64>,
}

impl RunningTask {
    /// Returns the thread that polls the task, if it is still in the same poll.
    fn polling_thread(&self) -> Option<u32> {
        let is_same_poll =
            self.slot.number() == self.number && self.slot.last_poll() == self.poll_start;
        self.slot.polling_thread().filter(|_| is_same_poll)
    }
}

impl Dump {
    fn new(number: u32, anchor: TimeAnchor, timeout: Duration) -> Self {
        Self {
            number,
            anchor,
            deadline: anchor.moment + timeout,
            profile: Profile::new(&SAMPLE_TYPES, SAMPLE_TYPES[0], 1, anchor.wall),
            rows: Vec::new(),
            requested: HashMap::new(),
            ended_rows: Vec::new(),
            running_tasks: Vec::new(),
            incomplete_stacks: 0,
            sampling: TaskSampling::for_tasks(registry::task_count()),
            without_site: 0,
            calibration: registry::calibration(),
        }
    }

    fn run(&mut self, clock: &dyn Clock, capture_stacks: bool) {
        REPLY_QUEUE.open(self.number);
        let mut cursor = Some(SlotCursor::default());
        while let Some(from) = cursor {
            let in_time = capture_stacks && clock.now() < self.deadline;
            let (batch, next) =
                registry::list_batch(from, BATCH_TASKS, if in_time { self.number } else { 0 });
            cursor = next;
            let wakers = self.add_rows(batch, in_time);
            let requested = wakers.len();
            wakers.into_iter().for_each(Waker::wake);
            self.collect_replies(clock, requested, BATCH_TIMEOUT);
        }
        self.collect_replies(clock, self.requested.len(), FINAL_TIMEOUT);
        self.requested.values().for_each(|(_, slot)| slot.withdraw(self.number));
        // Also takes the replies that arrived before the requests were withdrawn.
        REPLY_QUEUE
            .collect(0, Duration::ZERO)
            .into_iter()
            .for_each(|answer| self.apply_reply(answer));
        REPLY_QUEUE.close();
        for (number, (row, slot)) in std::mem::take(&mut self.requested) {
            self.set_unanswered_state(number, row, slot);
        }
    }

    /// Adds the rows of a batch. Returns the wakers of the tasks to wake.
    fn add_rows(
        &mut self,
        batch: Vec<(&'static Slot, SlotView<StoredWaker>)>,
        capture_stacks: bool,
    ) -> Vec<Waker> {
        let mut wakers = Vec::with_capacity(batch.len());
        for (slot, seen) in batch {
            let number = seen.number;
            let id = seen.stored.as_ref().and_then(|kept| kept.id);
            // tokio exposes the number of an id only as text.
            let id = id.and_then(|id| id.to_string().parse().ok());
            let site = SpawnSite::from_number(seen.site);
            let name = site.and_then(|site| site.name).unwrap_or("");
            let spawned = site.map_or(UNKNOWN_SITE, |SpawnSite { location: place, .. }| {
                SpawnLocation { file: place.file(), line: place.line() }
            });
            self.without_site += u64::from(site.is_none());
            if !self.sampling.select(spawned, name, id) {
                slot.withdraw(self.number);
                continue;
            }
            let polled = slot.last_poll();
            let state = match (&seen.stored, slot.polling_thread()) {
                (_, Some(tid)) => TaskState::Running { tid },
                (None, None) => TaskState::NeverPolled,
                (Some(_), None) => TaskState::NotDumped,
            };
            if let (true, Some(kept)) = (capture_stacks, seen.stored) {
                self.requested.insert(number, (self.rows.len(), slot));
                wakers.push(kept.waker);
            } else if capture_stacks && let TaskState::Running { .. } = state {
                // A task in its first poll has no stored waker.
                self.running_tasks.push(RunningTask { number, slot, poll_start: polled });
            }
            self.rows.push(TaskRow {
                number,
                id,
                name,
                location: spawned,
                state,
                time_since_poll: polled.map(|tick| self.age(tick)),
                stacks: Vec::new(),
                omitted_stacks: 0,
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

    /// Takes replies until `expected` have arrived, `timeout` has passed, or the deadline is
    /// reached.
    fn collect_replies(&mut self, clock: &dyn Clock, expected: usize, timeout: Duration) {
        let now = clock.now();
        let deadline = (now + timeout).min(self.deadline.max(now));
        let mut received = 0;
        loop {
            let now = clock.now();
            let replies = REPLY_QUEUE.collect(expected - received, deadline.since(now));
            received += replies.len();
            replies.into_iter().for_each(|answer| self.apply_reply(answer));
            if received >= expected || clock.now() >= deadline {
                return;
            }
        }
    }

    fn apply_reply(&mut self, reply: TaskReply) {
        let Some((row_index, _)) = self.requested.remove(&reply.number) else { return };
        self.incomplete_stacks += u64::from(reply.incomplete_stacks);
        if reply.completed {
            self.ended_rows.push(row_index);
            return;
        }
        let stacks: Vec<StackHandle> =
            reply.stacks.iter().filter_map(|stack| self.profile.intern_stack(stack)).collect();
        let Some(row) = self.rows.get_mut(row_index) else { return };
        row.state =
            if stacks.is_empty() { TaskState::WaitingWithoutWaker } else { TaskState::Waiting };
        row.stacks = stacks;
        row.omitted_stacks = reply.more_stacks;
    }

    /// Sets the state of a task that did not reply.
    fn set_unanswered_state(&mut self, number: u64, row_index: usize, slot: &'static Slot) {
        let running = slot.polling_thread();
        let polled = slot.last_poll();
        let age = polled.map(|tick| self.age(tick));
        let Some(row) = self.rows.get_mut(row_index) else { return };
        if slot.number() != number {
            self.ended_rows.push(row_index);
            return;
        }
        row.state = running.map_or(TaskState::Scheduled, |tid| TaskState::Running { tid });
        if running.is_some() {
            self.running_tasks.push(RunningTask { number, slot, poll_start: polled });
            row.time_since_poll = age;
        }
    }

    /// Returns the stacks of the threads that poll tasks.
    fn sample_running_threads(
        &mut self,
        clock: &dyn Clock,
    ) -> Result<BTreeMap<u32, StackHandle>, Error> {
        let before: Vec<u32> =
            self.running_tasks.iter().filter_map(RunningTask::polling_thread).collect();
        if before.is_empty() {
            return Ok(BTreeMap::new());
        }
        let stacks = super::threads::sample_stacks(clock, &before, &mut self.profile)?;
        // Excludes tasks whose poll ended meanwhile: their thread was sampled in other code.
        let after = self.running_tasks.iter().filter_map(RunningTask::polling_thread);
        Ok(after.filter_map(|tid| Some((tid, *stacks.get(&tid)?))).collect())
    }

    fn finish(
        mut self,
        clock: &dyn Clock,
        threads: BTreeMap<u32, StackHandle>,
    ) -> Result<TaskDump, Error> {
        self.ended_rows.sort_unstable();
        for &at in self.ended_rows.iter().rev() {
            let row = self.rows.swap_remove(at);
            self.sampling.remove_ended(row.location, row.name);
        }
        self.rows.sort_unstable_by_key(|row| row.number);
        self.sampling.set_weights(&mut self.rows);
        self.add_samples();
        self.profile.losses.add("task stacks truncated or not captured", self.incomplete_stacks);
        let places = "tasks without a spawn location: more than 4,096 locations";
        self.profile.losses.add(places, self.without_site);
        self.profile.attach_mappings(images::loaded()?);
        Ok(TaskDump {
            duration: clock.now().since(self.anchor.moment),
            profile: self.profile,
            tasks: self.rows,
            runtime_tasks: self.sampling.runtime_tasks(),
            sites: self.sampling.into_sites(),
            unwrapped_tasks: None,
            threads,
        })
    }

    /// Adds one sample per stack, state, spawn location and age class.
    fn add_samples(&mut self) {
        let mut counts = HashMap::new();
        for row in &self.rows {
            let age = row.time_since_poll.map_or("", age_class);
            let weight = i64::try_from(row.weight).unwrap_or(i64::MAX);
            let mut count = |stack, first: bool| {
                let key = (stack, row.state.name(), row.location, row.name, age);
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
fn age_class(idle: Duration) -> &'static str {
    AGE_CLASSES.iter().find(|(end, _)| idle < *end).map_or(OLDEST_CLASS, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_class_boundaries() {
        let ages = [0, 9, 10, 59_999, 60_000].map(|ms| age_class(Duration::from_millis(ms)));
        assert_eq!(ages, ["< 10ms", "< 10ms", "< 100ms", "< 1m", ">= 1m"]);
    }
}
