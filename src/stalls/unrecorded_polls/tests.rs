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
fn beat(worker: usize, polls: &[Poll], now: u64) -> WorkerProgress {
    let (mut parks, mut batch, mut told) = (1, 0, 0);
    let mut last = 0;
    for poll in polls.iter().take_while(|poll| poll.start <= now) {
        if poll.start > last {
            (parks, batch, told) = (parks + 2, 0, told + 1);
        }
        last = poll.end;
        batch += 1;
        told += u64::from(batch % 61 == 0);
    }
    let parked = last <= now && !polls.iter().any(|poll| poll.start == last);
    WorkerProgress {
        worker: (1, worker as u32),
        parked,
        mark: (parks - u64::from(!parked), told),
        driver: None,
    }
}

fn poll_at(polls: &[Poll], now: u64) -> Option<(usize, Poll)> {
    let found = polls.iter().enumerate().find(|(_, poll)| poll.start <= now && now < poll.end);
    found.map(|(number, poll)| (number, *poll))
}

/// Returns the CPU time used by `now`: all of a poll that computes, 3 us of one that sleeps.
fn cpu(polls: &[Poll], now: u64) -> Duration {
    let begun = polls.iter().take_while(|poll| poll.start <= now);
    let used = begun.map(|poll| {
        let lasted = poll.end.min(now) - poll.start;
        if poll.sleeps { lasted.min(3) } else { lasted }
    });
    Duration::from_micros(used.sum())
}

/// Runs checks until `end`; a round takes 300 us. Returns the reports with their times.
fn watch(threads: &[Vec<Poll>], workers: usize, end: u64) -> Vec<(SuspectedStall, u64)> {
    let (found, used) = watch_and_charge(threads, workers, end, Duration::from_micros(300));
    assert!(used <= Duration::from_micros(end / 1000) + Duration::from_millis(20), "{used:?}");
    found
}

fn watch_and_charge(
    threads: &[Vec<Poll>],
    workers: usize,
    end: u64,
    cost: Duration,
) -> (Vec<(SuspectedStall, u64)>, Duration) {
    const DEBUG: u32 = if cfg!(debug_assertions) { 8 } else { 1 };
    let mut suspects = UnrecordedPollDetector::new(THRESHOLD);
    let (mut now, mut all, mut used) = (0, Vec::new(), Duration::ZERO);
    while now < end {
        let beats = |now| -> Vec<WorkerProgress> {
            threads[..workers].iter().enumerate().map(|(n, polls)| beat(n, polls, now)).collect()
        };
        let clocks = |now| -> Vec<WorkerThread> {
            let all = threads.iter().enumerate();
            let thread = |(n, polls): (usize, &Vec<Poll>)| WorkerThread {
                tid: n as u32,
                cpu: cpu(polls, now),
                recorded: poll_at(polls, now).is_some_and(|(_, poll)| poll.recorded),
            };
            all.map(thread).collect()
        };
        let (ask, next) = suspects.look(at(now), &beats(now), &clocks(now));
        assert!(next >= PERIOD && next <= THRESHOLD * 5 / 2);
        let asked = now;
        if let Some(ask) = ask {
            now += 300;
            used += cost;
            suspects.charge(cost * DEBUG, false);
            let mut samples = Vec::new();
            for (n, polls) in threads.iter().enumerate() {
                let tid = n as u32;
                let still = ask.still.iter().find(|still| still.tid == tid);
                if still.is_some()
                    || [&ask.follow, &ask.search].iter().any(|asked| asked.contains(&tid))
                {
                    let poll = poll_at(polls, now).map(|(_, poll)| poll);
                    let poll = poll.filter(|poll| !poll.recorded).map(|poll| poll.task);
                    let still = still.filter(|still| still.cpu == cpu(polls, now));
                    let still = still.map(|still| still.since);
                    let is_worker = true;
                    samples.push(PollSample {
                        tid,
                        poll,
                        is_worker,
                        still,
                        waited: Duration::ZERO,
                    });
                }
            }
            suspects.look(at(now), &beats(now), &clocks(now));
            let verdict = suspects.hear(at(now), at(asked), &samples, !ask.search.is_empty());
            let found = verdict.map(|verdict| suspects.settle(verdict, |tid| tid != 9));
            let found = found.into_iter().flatten();
            all.extend(found.map(|found| (found, now)));
        }
        now = asked + next.as_micros() as u64;
    }
    (all, used)
}

/// Returns polls of `length` ms, `apart` us apart, with a poll of `stall` ms every 900 ms.
fn polls(length: u64, apart: u64, stall: (u64, bool), tasks: u64, end: u64) -> Vec<Poll> {
    let (mut polls, mut now, mut stalled) = (Vec::new(), 1, 0);
    while now < end {
        let is_stall = now - stalled > 900_000;
        let length = if is_stall { stall.0 } else { length } * 1000;
        stalled = if is_stall { now } else { stalled };
        let task = if is_stall { 1000 } else { polls.len() as u64 % tasks };
        let (end, sleeps) = (now + length, is_stall && stall.1);
        polls.push(Poll { start: now, end, task, sleeps, recorded: false });
        now += length + apart;
    }
    polls
}

fn long(polls: &[Poll], least: u64) -> Vec<Poll> {
    polls.iter().copied().filter(|poll| poll.end - poll.start >= least).collect()
}

#[test]
fn who_sleeps_beyond_the_threshold_is_found_and_dated_and_nobody_else_is() {
    const END: u64 = 5_000_000;
    for stall in [20, 40, 49, 150, 200, 400] {
        for (length, apart, workers) in
            [(5, 97_003, 1), (5, 97_003, 2), (1, 3_001, 2), (5, 0, 1), (5, 0, 2)]
        {
            let threads: Vec<Vec<Poll>> = (0..workers)
                .map(|n| polls(length, apart, (stall, true), 7, END - 300_000 * n))
                .collect();
            let found = watch(&threads, workers as usize, END + 1_000_000);
            let expected: usize = threads.iter().map(|polls| long(polls, 50_000).len()).sum();
            let case = format!("{stall} ms, polls of {length} {apart} apart, {workers}");
            assert_eq!(found.len(), expected, "{case}");
            for (found, now) in found {
                let polls = long(&threads[found.tid as usize], 50_000);
                let poll = polls.iter().rfind(|poll| at(poll.start) <= found.since).unwrap();
                assert!(at(poll.end) > found.since, "{case}");
                assert!(found.lasted >= THRESHOLD && now < poll.end + 300, "{case}");
            }
        }
    }
}

#[test]
fn between_recorded_polls_that_never_end_every_plain_stall_is_found() {
    const END: u64 = 10_000_000;
    for (stall, workers) in [(120, 1), (120, 2), (150, 1), (150, 2), (400, 1), (400, 2)] {
        // Start offsets that meet the searches at any point.
        let recorded = |n: u64| -> Vec<Poll> {
            let all = polls(5, 0, (stall, true), 7, END - 333_000 * n).into_iter();
            let is_short = |poll: &Poll| poll.end - poll.start < 50_000;
            all.map(|poll| Poll { recorded: is_short(&poll), ..poll }).collect()
        };
        let threads: Vec<Vec<Poll>> = (0..workers).map(recorded).collect();
        let found = watch(&threads, workers as usize, END + 1_000_000);
        let expected: usize = threads.iter().map(|polls| long(polls, 50_000).len()).sum();
        assert_eq!(found.len(), expected, "{stall} ms, {workers}");
    }
}

#[test]
fn who_computes_is_found_when_no_61_short_polls_could_be_it() {
    for workers in [1, 2] {
        let idle = |n: u64| polls(1, 97_003 + n, (600, false), 3, 10_000_000);
        let threads: Vec<Vec<Poll>> = (0..workers).map(idle).collect();
        // One such stall takes 9 rounds, and they recur every 1.5 s.
        let cost = Duration::from_micros(100);
        let (found, _) = watch_and_charge(&threads, workers as usize, 11_000_000, cost);
        let expected: usize = threads.iter().map(|polls| long(polls, 50_000).len()).sum();
        assert_eq!(found.len(), expected);
        assert!(found.iter().all(|(found, _)| found.lasted >= BATCH));
    }
}

#[test]
fn polls_of_5_ms_are_no_stall_even_if_all_are_one_tasks() {
    for (tasks, workers) in [(1, 1), (1, 2), (2, 1), (20, 2)] {
        let hot = || polls(5, 0, (5, false), tasks, 6_000_000);
        let mut threads: Vec<Vec<Poll>> = (0..workers).map(|_| hot()).collect();
        assert_eq!(watch(&threads, workers, 6_000_000), [], "{tasks} tasks");
        // Also if the other worker is idle.
        threads.push(Vec::new());
        assert_eq!(watch(&threads, workers + 1, 6_000_000), [], "{tasks} tasks");
    }
}

#[test]
fn blocking_polls_that_recur_at_equal_length_and_distance_are_found() {
    const END: u64 = 20_000_000;
    // `least`: minimum percentage found. Polls that exceed the threshold by less than the check
    // interval can be missed.
    for (length, least) in [(60, 10), (70, 10), (80, 30), (100, 80), (200, 100)] {
        for apart in [1, 3_001, 50_003, 400_007] {
            let starts = (1..END).step_by((length * 1000 + apart) as usize);
            let poll = |start| {
                let end = start + length * 1000;
                Poll { start, end, task: 1, sleeps: true, recorded: false }
            };
            let polls: Vec<Poll> = starts.map(poll).collect();
            let (found, _) =
                watch_and_charge(std::slice::from_ref(&polls), 1, END, Duration::from_micros(100));
            let case = format!("{length} ms, {apart} us apart: {}", found.len());
            assert!(found.len() * 100 >= (polls.len() - 1) * least, "{case} of {}", polls.len());
            for (found, now) in found {
                let poll = polls.iter().rfind(|poll| at(poll.start) <= found.since).unwrap();
                assert!(found.lasted >= THRESHOLD && now < poll.end + 300, "{case}");
            }
        }
    }
}

#[test]
fn a_thread_that_holds_up_no_worker_is_not_told() {
    // One thread handed its worker to another, and its stack does not show that. Which one is
    // stalled is unknown.
    let poll = |end, task| vec![Poll { start: 1, end, task, sleeps: true, recorded: false }];
    let threads = [poll(5_000_000, 6), Vec::new(), poll(9_000_000, 5)];
    assert_eq!(watch(&threads, 2, 9_000_000), []);
}

#[test]
fn nobody_is_asked_while_workers_get_on() {
    let mut suspects = UnrecordedPollDetector::new(THRESHOLD);
    let beat =
        |parked, count| WorkerProgress { worker: (1, 0), parked, mark: (count, 0), driver: None };
    for step in 0..100 {
        let (ask, next) = suspects.look(at(step * 10_000), &[beat(false, 2 * step)], &[]);
        assert_eq!(ask, None);
        assert!(next >= PERIOD);
    }
    for now in [2_000_000, 2_050_000] {
        let (ask, next) = suspects.look(at(now), &[beat(true, 999)], &[]);
        assert_eq!(ask, None);
        assert!(next >= REST * 3 / 4 && next < REST * 5 / 4, "{next:?}");
    }
}
