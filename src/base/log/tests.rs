use super::*;

fn event(text: &str) -> LogEvent {
    LogEvent::new(LogLevel::Warn, text)
}

#[test]
fn number_and_size_of_waiting_events_are_bounded_and_the_rest_is_counted() {
    let mut state = LogState::default();
    let taken = (0..2 * MAX_EVENTS).filter(|_| state.push(event("x"))).count();
    assert_eq!((taken, state.status.dropped), (MAX_EVENTS, MAX_EVENTS as u64));

    let mut state = LogState::default();
    let large = "x".repeat(4000);
    let taken = (0..MAX_EVENTS).filter(|_| state.push(event(&large))).count();
    assert_eq!(taken, MAX_BYTES / 4000);
    while state.pop().is_some() {}
    assert_eq!(state.bytes, 0);
    assert!(state.push(event(&large)));
}

#[test]
fn a_subscriber_that_does_not_take_events_is_a_problem_until_it_does() {
    let (mut state, now) = (LogState { has_thread: true, ..LogState::default() }, Instant::now());
    assert_eq!(state.check(now), (LogStatus::default(), None));
    state.delivering = Some(now);
    assert_eq!(state.check(now + STUCK - Duration::from_nanos(1)).1, None);
    let problem = state.check(now + STUCK).1.unwrap();
    assert!(problem.contains("does not take them"), "{problem}");
    // The text is the same while the numbers change, because each text is logged once.
    for _ in 0..MAX_EVENTS * 2 {
        state.push(event("x"));
    }
    let (status, again) = state.check(now + STUCK * 2);
    assert_eq!((status.queued, again.unwrap()), (MAX_EVENTS, problem));
    state.delivering = None;
    state.events.clear();
    assert_eq!(state.check(now).1, None);
    state.last_panic = Some("no disk".into());
    assert!(state.check(now).1.unwrap().contains("panicked: no disk"));
}

#[test]
fn texts_of_an_event_are_escaped() {
    let event = LogEvent::new(LogLevel::Warn, "thread `a\nERROR b`").name("\u{1b}[2J").dir("/x\ny");
    let shown = format!("{event:?}");
    assert!(!shown.contains("\\n") || shown.contains(r"\\n"), "{shown}");
    assert!(shown.contains(r"a\\nERROR b") && shown.contains(r"\\u{1b}[2J"), "{shown}");
}

#[test]
fn a_thread_takes_what_is_queued() {
    let taken = existing().map_or(0, |queue| queue.lock().status.delivered);
    for _ in 0..10 {
        warn("x");
    }
    assert!(flush(Duration::from_secs(60)));
    assert!(existing().unwrap().lock().status.delivered >= taken + 10);
}
