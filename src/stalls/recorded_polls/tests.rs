use super::*;

const MILLI: u64 = 1_000_000;
const THRESHOLD: Duration = Duration::from_millis(50);

fn no_exclusion(_: u64, _: Moment, _: Moment) -> ExcludedTime {
    ExcludedTime::default()
}

fn at(micros: u64) -> Moment {
    Moment::from_nanos(micros * 1000)
}

/// A thread that polls from `poll.0` to `poll.1`, in microseconds.
type Thread = Vec<(u64, u64)>;

fn task(number: usize) -> TaskKey {
    TaskKey { site: 1, number: number as u64 }
}

fn seen(threads: &[Thread], now: u64) -> Vec<ThreadPollState> {
    let thread = |(thread, polls): (usize, &Thread)| {
        let next = polls.iter().filter(|poll| poll.1 <= now).count();
        let running = polls.iter().position(|poll| poll.0 <= now && now < poll.1);
        ThreadPollState {
            thread: thread as u64,
            next_record: next as u64,
            open_poll: running.map(|poll| (at(polls[poll].0), task(poll), polls[poll].0)),
        }
    };
    threads.iter().enumerate().map(thread).collect()
}

/// Runs checks until `end`. `late` returns the delay of each check.
fn run_checks(
    threads: &[Thread],
    end: u64,
    mut late: impl FnMut() -> u64,
) -> Vec<(FoundStall, u64)> {
    let mut detector = RecordedPollDetector::new(THRESHOLD);
    let mut now = 0;
    let mut all = Vec::new();
    let mut checks = 0;
    while now < end {
        let ended = |thread: u64, from: u64| {
            let polls = threads[thread as usize].iter().enumerate();
            let polls = polls.filter(|(_, poll)| poll.1 <= now).skip(from as usize);
            polls.map(|(n, poll)| (at(poll.0), at(poll.1), task(n))).collect()
        };
        let (found, next) =
            detector.check(at(now), &seen(threads, now), false, ended, no_exclusion);
        assert!(next >= MIN_CHECK_INTERVAL && next <= THRESHOLD + START_TOLERANCE, "{next:?}");
        all.extend(found.into_iter().map(|found| (found, now)));
        now += next.as_micros() as u64 + late();
        checks += 1;
    }
    assert!(checks as u64 <= end / 5_000 + 1);
    all
}

/// Returns back-to-back polls of 5 ms, with a poll of `stall` ms every 700 ms. Pauses between
/// polls if `idle`.
fn polls(stall: u64, idle: bool, shift: u64, end: u64) -> Thread {
    let mut polls = Vec::new();
    let mut now = shift;
    let mut stalled = 0;
    while now < end {
        let length = if now - stalled > 700_000 {
            stalled = now;
            stall * 1000
        } else {
            5_000
        };
        polls.push((now, now + length));
        now += length + if idle { 97_003 } else { 3 };
    }
    polls
}

#[test]
fn long_polls_are_found_with_task_and_start() {
    const END: u64 = 20_000_000;
    for stall in [20, 40, 49, 61, 100, 200, 400] {
        for (idle, workers, lateness) in [
            (false, 1, 0),
            (false, 2, 0),
            (true, 1, 0),
            (true, 2, 0),
            (false, 2, 9_000),
            (true, 2, 300_000),
            (false, 1, 1_000_000),
        ] {
            let threads: Vec<Thread> =
                (0..workers).map(|n| polls(stall, idle, 1 + n * 41_117, END)).collect();
            let mut step = 0;
            let late = || {
                step += 1;
                (step * 7919) % (lateness + 1)
            };
            let found = run_checks(&threads, END + 3_000_000, late);
            let mut reported: Vec<(u64, u64)> =
                found.iter().map(|(found, _)| (found.thread, found.task.number)).collect();
            reported.sort_unstable();
            let expected: Vec<(u64, u64)> = (0..workers)
                .flat_map(|thread| {
                    let polls = threads[thread as usize].iter().enumerate();
                    let long = polls.filter(|(_, poll)| poll.1 - poll.0 >= 50_000);
                    long.map(move |(n, _)| (thread, n as u64)).collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(reported, expected, "{stall} ms, idle {idle}, {workers}, late {lateness}");
            // Polls that ended before a late check are read from the rings.
            for (found, now) in found {
                let poll = threads[found.thread as usize][found.task.number as usize];
                assert_eq!(found.start, at(poll.0));
                assert!(found.duration >= THRESHOLD);
                if lateness == 0 {
                    assert!(now - poll.0 <= 61_000 && found.start_tick == Some(poll.0), "{now}");
                }
            }
        }
    }
}

#[test]
fn idle_process_is_checked_at_idle_interval() {
    let mut detector = RecordedPollDetector::new(Duration::from_millis(10));
    let seen = [ThreadPollState { thread: 1, next_record: 7, open_poll: None }];
    for step in 0..5 {
        let now = Moment::from_nanos(step * 50 * MILLI);
        assert_eq!(
            detector.check(now, &seen, false, |_, _| Vec::new(), no_exclusion),
            (Vec::new(), IDLE_CHECK_INTERVAL)
        );
    }
}

#[test]
fn armed_detector_sleeps_until_a_poll_starts() {
    let mut detector = RecordedPollDetector::new(THRESHOLD);
    let mut check = |millis: u64, next, told, running: Option<u64>| {
        let running = running.map(|start| (at(start * 1000), task(1), start));
        let seen = [ThreadPollState { thread: 1, next_record: next, open_poll: running }];
        let (found, next) =
            detector.check(at(millis * 1000), &seen, told, |_, _| Vec::new(), no_exclusion);
        (found.len(), next.as_millis(), detector.is_quiet(at(millis * 1000)))
    };
    // The detector sleeps only after 500 ms without a poll, and not at the first check after
    // that.
    assert_eq!(check(0, 7, false, None), (0, 50, false));
    assert_eq!(check(450, 7, false, None), (0, 50, false));
    assert_eq!(check(500, 7, false, None), (0, 50, true));
    assert_eq!(check(550, 7, true, None), (0, 2000, true));
    // Woken by a poll: the usual intervals apply until 500 ms after it.
    assert_eq!(check(1000, 7, false, Some(1000)), (0, 50, false));
    assert_eq!(check(1051, 7, false, Some(1000)), (1, 50, false));
    assert_eq!(check(1100, 8, false, None), (0, 50, false));
    assert_eq!(check(1150, 8, false, None), (0, 50, false));
    assert_eq!(check(1649, 8, true, None), (0, 50, false));
    assert_eq!(check(1650, 8, true, None), (0, 2000, true));
    // A poll that triggered no wake-up is found late.
    assert_eq!(check(3650, 8, true, Some(1700)), (1, 50, false));
}

/// Checks a thread in a poll of 200 ms. `excluded` returns the excluded time up to a moment.
#[test]
fn run_delay_and_standstill_do_not_count_as_stall() {
    let check_until_found = |excluded: &dyn Fn(u64) -> ExcludedTime| {
        let mut detector = RecordedPollDetector::new(THRESHOLD);
        for millis in (0..200).step_by(5) {
            let running = Some((at(0), task(1), 0));
            let seen = [ThreadPollState { thread: 1, next_record: 7, open_poll: running }];
            let exclude = |_, _, until: Moment| excluded(until.as_nanos() / MILLI);
            let (found, _) =
                detector.check(at(millis * 1000), &seen, false, |_, _| Vec::new(), exclude);
            if let Some(found) = found.first() {
                return (Some((millis, found.duration.as_millis())), detector.take_starved().polls);
            }
        }
        (None, detector.take_starved().polls)
    };
    let millis = Duration::from_millis;
    assert_eq!(check_until_found(&|_| ExcludedTime::default()), (Some((50, 50)), 0));
    // On a core for half of the time.
    let half = |now: u64| ExcludedTime { run_delay: millis(now / 2), ..ExcludedTime::default() };
    assert_eq!(check_until_found(&half), (Some((100, 50)), 1));
    let mostly =
        |now: u64| ExcludedTime { run_delay: millis(now * 9 / 10), ..ExcludedTime::default() };
    assert_eq!(check_until_found(&mostly), (None, 1));
    // Process stopped: the time is excluded, but the poll is not starved.
    let still =
        |now: u64| ExcludedTime { standstill: millis(now.min(120)), ..ExcludedTime::default() };
    assert_eq!(check_until_found(&still), (Some((170, 50)), 0));
}

#[test]
fn nested_poll_is_not_reported_separately() {
    let poll = |start, end, n| (at(start), at(end), task(n));
    let ended = [poll(110_000, 170_000, 1), poll(100_000, 180_000, 2), poll(200_000, 290_000, 3)];
    let numbers = |running| {
        let long = outermost_long_polls(&ended, THRESHOLD, running).into_iter();
        long.map(|(.., task)| task.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(None), [2, 3]);
    assert_eq!(numbers(Some(at(190_000))), [2]);
}
