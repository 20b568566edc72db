use super::*;

const THRESHOLD: Duration = Duration::from_millis(50);

/// A poll of one thread; times in microseconds.
#[derive(Clone, Copy, Debug)]
struct Poll {
    start: u64,
    end: u64,
    task: u64,
    /// `true` if the thread sleeps in it, `false` if it computes.
    sleeps: bool,
    /// `true` if the poll is recorded and therefore ignored by the inference.
    recorded: bool,
}

fn at(micros: u64) -> Moment {
    Moment::from_nanos(micros * 1000)
}

/// Returns the worker's counters at `now`. The worker parks between polls that are apart, and
/// updates its counters then, else every 61 polls.
fn progress(worker: usize, polls: &[Poll], now: u64) -> WorkerProgress {
    let mut parks = 1;
    let mut batch = 0;
    let mut updates = 0;
    let mut last = 0;
    for poll in polls.iter().take_while(|poll| poll.start <= now) {
        if poll.start > last {
            parks += 2;
            batch = 0;
            updates += 1;
        }
        last = poll.end;
        batch += 1;
        updates += u64::from(batch % 61 == 0);
    }
    let parked = last <= now && !polls.iter().any(|poll| poll.start == last);
    WorkerProgress {
        worker: (1, worker as u32),
        is_parked: parked,
        counters: (parks - u64::from(!parked), updates),
        driver_tid: None,
    }
}

fn poll_at(polls: &[Poll], now: u64) -> Option<(usize, Poll)> {
    let found = polls.iter().enumerate().find(|(_, poll)| poll.start <= now && now < poll.end);
    found.map(|(number, poll)| (number, *poll))
}

/// Returns the CPU time used by `now`: all of a poll that computes, 3 us of one that sleeps.
fn cpu_time(polls: &[Poll], now: u64) -> Duration {
    let started = polls.iter().take_while(|poll| poll.start <= now);
    let used = started.map(|poll| {
        let lasted = poll.end.min(now) - poll.start;
        if poll.sleeps { lasted.min(3) } else { lasted }
    });
    Duration::from_micros(used.sum())
}

/// Runs checks until `end`; a round takes 300 us. Returns the reports with their times.
fn run_checks(threads: &[Vec<Poll>], workers: usize, end: u64) -> Vec<(SuspectedStall, u64)> {
    let (found, used) = run_checks_with_cost(threads, workers, end, Duration::from_micros(300));
    assert!(used <= Duration::from_micros(end / 1000) + Duration::from_millis(20), "{used:?}");
    found
}

fn run_checks_with_cost(
    threads: &[Vec<Poll>],
    workers: usize,
    end: u64,
    cost: Duration,
) -> (Vec<(SuspectedStall, u64)>, Duration) {
    const DEBUG_SLOWDOWN: u32 = if cfg!(debug_assertions) { 8 } else { 1 };
    let mut detector = UnrecordedPollDetector::new(THRESHOLD);
    let mut now = 0;
    let mut all = Vec::new();
    let mut used = Duration::ZERO;
    while now < end {
        let progress_at = |now| -> Vec<WorkerProgress> {
            threads[..workers]
                .iter()
                .enumerate()
                .map(|(n, polls)| progress(n, polls, now))
                .collect()
        };
        let clocks = |now| -> Vec<WorkerThread> {
            let all = threads.iter().enumerate();
            let thread = |(n, polls): (usize, &Vec<Poll>)| WorkerThread {
                tid: n as u32,
                cpu_time: cpu_time(polls, now),
                in_recorded_poll: poll_at(polls, now).is_some_and(|(_, poll)| poll.recorded),
            };
            all.map(thread).collect()
        };
        let (request, next) = detector.check(at(now), &progress_at(now), &clocks(now));
        assert!(next >= CHECK_INTERVAL && next <= THRESHOLD * 5 / 2);
        let started_at = now;
        if let Some(request) = request {
            now += 300;
            used += cost;
            detector.charge(cost * DEBUG_SLOWDOWN, false);
            let mut samples = Vec::new();
            for (n, polls) in threads.iter().enumerate() {
                let tid = n as u32;
                let still = request.sleeping.iter().find(|still| still.tid == tid);
                if still.is_some()
                    || [&request.tracked, &request.search].iter().any(|asked| asked.contains(&tid))
                {
                    let poll = poll_at(polls, now).map(|(_, poll)| poll);
                    let poll = poll.filter(|poll| !poll.recorded).map(|poll| poll.task);
                    let still = still.filter(|still| still.cpu_time == cpu_time(polls, now));
                    let still = still.map(|still| still.asleep_since);
                    let is_worker = true;
                    samples.push(PollSample {
                        tid,
                        poll_hash: poll,
                        is_worker,
                        asleep_since: still,
                        run_delay: Duration::ZERO,
                    });
                }
            }
            detector.check(at(now), &progress_at(now), &clocks(now));
            let candidates =
                detector.ingest(at(now), at(started_at), &samples, !request.search.is_empty());
            let found = candidates.map(|verdict| detector.confirm(verdict, |tid| tid != 9));
            let found = found.into_iter().flatten();
            all.extend(found.map(|found| (found, now)));
        }
        now = started_at + next.as_micros() as u64;
    }
    (all, used)
}

/// The stall that [`polls`] repeats.
#[derive(Clone, Copy)]
struct RecurringStall {
    millis: u64,
    sleeps: bool,
}

/// Returns polls of `length` ms, `apart` us apart, with a poll of `stall` every 900 ms.
fn polls(length: u64, apart: u64, stall: RecurringStall, tasks: u64, end: u64) -> Vec<Poll> {
    let mut polls = Vec::new();
    let mut now = 1;
    let mut stalled = 0;
    while now < end {
        let is_stall = now - stalled > 900_000;
        let length = if is_stall { stall.millis } else { length } * 1000;
        stalled = if is_stall { now } else { stalled };
        let task = if is_stall { 1000 } else { polls.len() as u64 % tasks };
        let end = now + length;
        let sleeps = is_stall && stall.sleeps;
        polls.push(Poll { start: now, end, task, sleeps, recorded: false });
        now += length + apart;
    }
    polls
}

fn long_polls(polls: &[Poll], min_micros: u64) -> Vec<Poll> {
    polls.iter().copied().filter(|poll| poll.end - poll.start >= min_micros).collect()
}

#[test]
fn sleeping_polls_beyond_threshold_are_found_with_start() {
    const END: u64 = 5_000_000;
    for stall in [20, 40, 49, 150, 200, 400] {
        for (length, apart, workers) in
            [(5, 97_003, 1), (5, 97_003, 2), (1, 3_001, 2), (5, 0, 1), (5, 0, 2)]
        {
            let threads: Vec<Vec<Poll>> = (0..workers)
                .map(|n| {
                    let stall = RecurringStall { millis: stall, sleeps: true };
                    polls(length, apart, stall, 7, END - 300_000 * n)
                })
                .collect();
            let found = run_checks(&threads, workers as usize, END + 1_000_000);
            let expected: usize = threads.iter().map(|polls| long_polls(polls, 50_000).len()).sum();
            let case = format!("{stall} ms, polls of {length} {apart} apart, {workers}");
            assert_eq!(found.len(), expected, "{case}");
            for (found, now) in found {
                let polls = long_polls(&threads[found.tid as usize], 50_000);
                let poll = polls.iter().rfind(|poll| at(poll.start) <= found.first_seen).unwrap();
                assert!(at(poll.end) > found.first_seen, "{case}");
                assert!(found.duration >= THRESHOLD && now < poll.end + 300, "{case}");
            }
        }
    }
}

#[test]
fn unrecorded_stalls_between_recorded_polls_are_found() {
    const END: u64 = 10_000_000;
    for (stall, workers) in [(120, 1), (120, 2), (150, 1), (150, 2), (400, 1), (400, 2)] {
        // Start offsets that meet the searches at any point.
        let recorded = |n: u64| -> Vec<Poll> {
            let stall = RecurringStall { millis: stall, sleeps: true };
            let all = polls(5, 0, stall, 7, END - 333_000 * n).into_iter();
            let is_short = |poll: &Poll| poll.end - poll.start < 50_000;
            all.map(|poll| Poll { recorded: is_short(&poll), ..poll }).collect()
        };
        let threads: Vec<Vec<Poll>> = (0..workers).map(recorded).collect();
        let found = run_checks(&threads, workers as usize, END + 1_000_000);
        let expected: usize = threads.iter().map(|polls| long_polls(polls, 50_000).len()).sum();
        assert_eq!(found.len(), expected, "{stall} ms, {workers}");
    }
}

#[test]
fn computing_poll_longer_than_a_batch_is_found() {
    for workers in [1, 2] {
        let stall = RecurringStall { millis: 600, sleeps: false };
        let idle = |n: u64| polls(1, 97_003 + n, stall, 3, 10_000_000);
        let threads: Vec<Vec<Poll>> = (0..workers).map(idle).collect();
        // One such stall takes 9 rounds, and they recur every 1.5 s.
        let cost = Duration::from_micros(100);
        let (found, _) = run_checks_with_cost(&threads, workers as usize, 11_000_000, cost);
        let expected: usize = threads.iter().map(|polls| long_polls(polls, 50_000).len()).sum();
        assert_eq!(found.len(), expected);
        assert!(found.iter().all(|(found, _)| found.duration >= MAX_BATCH_DURATION));
    }
}

#[test]
fn polls_of_5_ms_of_one_task_are_not_reported() {
    for (tasks, workers) in [(1, 1), (1, 2), (2, 1), (20, 2)] {
        let stall = RecurringStall { millis: 5, sleeps: false };
        let hot = || polls(5, 0, stall, tasks, 6_000_000);
        let mut threads: Vec<Vec<Poll>> = (0..workers).map(|_| hot()).collect();
        assert_eq!(run_checks(&threads, workers, 6_000_000), [], "{tasks} tasks");
        // Also if the other worker is idle.
        threads.push(Vec::new());
        assert_eq!(run_checks(&threads, workers + 1, 6_000_000), [], "{tasks} tasks");
    }
}

#[test]
fn periodic_blocking_polls_are_found() {
    const END: u64 = 20_000_000;
    // `least`: minimum percentage found. Polls that exceed the threshold by less than the check
    // interval can be missed.
    for (length, min_percent) in [(60, 10), (70, 10), (80, 30), (100, 80), (200, 100)] {
        for apart in [1, 3_001, 50_003, 400_007] {
            let starts = (1..END).step_by((length * 1000 + apart) as usize);
            let poll = |start| {
                let end = start + length * 1000;
                Poll { start, end, task: 1, sleeps: true, recorded: false }
            };
            let polls: Vec<Poll> = starts.map(poll).collect();
            let (found, _) = run_checks_with_cost(
                std::slice::from_ref(&polls),
                1,
                END,
                Duration::from_micros(100),
            );
            let case = format!("{length} ms, {apart} us apart: {}", found.len());
            assert!(
                found.len() * 100 >= (polls.len() - 1) * min_percent,
                "{case} of {}",
                polls.len()
            );
            for (found, now) in found {
                let poll = polls.iter().rfind(|poll| at(poll.start) <= found.first_seen).unwrap();
                assert!(found.duration >= THRESHOLD && now < poll.end + 300, "{case}");
            }
        }
    }
}

#[test]
fn ambiguous_stalled_threads_are_not_reported() {
    // One thread handed its worker to another, and its stack does not show that. Which one is
    // stalled is unknown.
    let poll = |end, task| vec![Poll { start: 1, end, task, sleeps: true, recorded: false }];
    let threads = [poll(5_000_000, 6), Vec::new(), poll(9_000_000, 5)];
    assert_eq!(run_checks(&threads, 2, 9_000_000), []);
}

#[test]
fn no_thread_is_sampled_while_workers_make_progress() {
    let mut detector = UnrecordedPollDetector::new(THRESHOLD);
    let progress = |parked, count| WorkerProgress {
        worker: (1, 0),
        is_parked: parked,
        counters: (count, 0),
        driver_tid: None,
    };
    for step in 0..100 {
        let (request, next) = detector.check(at(step * 10_000), &[progress(false, 2 * step)], &[]);
        assert_eq!(request, None);
        assert!(next >= CHECK_INTERVAL);
    }
    for now in [2_000_000, 2_050_000] {
        let (request, next) = detector.check(at(now), &[progress(true, 999)], &[]);
        assert_eq!(request, None);
        assert!(
            next >= IDLE_CHECK_INTERVAL * 3 / 4 && next < IDLE_CHECK_INTERVAL * 5 / 4,
            "{next:?}"
        );
    }
}
