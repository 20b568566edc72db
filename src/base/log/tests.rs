use super::*;

fn event(text: &str) -> LogEvent {
    LogEvent::new(LogLevel::Warn, text)
}

#[test]
fn full_queue_drops_and_counts_events() {
    let mut state = LogState::default();
    let accepted = (0..2 * MAX_QUEUED_EVENTS).filter(|_| state.push(event("x"))).count();
    assert_eq!((accepted, state.status.dropped), (MAX_QUEUED_EVENTS, MAX_QUEUED_EVENTS as u64));

    let mut state = LogState::default();
    let large = "x".repeat(4000);
    let accepted = (0..MAX_QUEUED_EVENTS).filter(|_| state.push(event(&large))).count();
    assert_eq!(accepted, MAX_QUEUED_BYTES / 4000);
    while state.pop().is_some() {}
    assert_eq!(state.bytes, 0);
    assert!(state.push(event(&large)));
}

#[test]
fn stuck_subscriber_is_reported_until_it_recovers() {
    let mut state = LogState { has_thread: true, ..LogState::default() };
    let now = Instant::now();
    assert_eq!(state.check(now), (LogStatus::default(), None));
    state.delivery_start = Some(now);
    assert_eq!(state.check(now + STUCK_TIMEOUT - Duration::from_nanos(1)).1, None);
    let problem = state.check(now + STUCK_TIMEOUT).1.unwrap();
    assert!(problem.contains("does not accept them in time"), "{problem}");
    // The text is the same while the numbers change, because each text is logged once.
    for _ in 0..MAX_QUEUED_EVENTS * 2 {
        state.push(event("x"));
    }
    let (status, repeated) = state.check(now + STUCK_TIMEOUT * 2);
    assert_eq!((status.queued, repeated.unwrap()), (MAX_QUEUED_EVENTS, problem));
    state.delivery_start = None;
    state.events.clear();
    assert_eq!(state.check(now).1, None);
    state.last_panic = Some("no disk".into());
    assert!(state.check(now).1.unwrap().contains("panicked: no disk"));
}

#[test]
fn event_texts_are_escaped() {
    let event = LogEvent::new(LogLevel::Warn, "thread `a\nERROR b`").name("\u{1b}[2J").dir("/x\ny");
    let shown = format!("{event:?}");
    assert!(!shown.contains("\\n") || shown.contains(r"\\n"), "{shown}");
    assert!(shown.contains(r"a\\nERROR b") && shown.contains(r"\\u{1b}[2J"), "{shown}");
}

#[test]
fn log_thread_delivers_queued_events() {
    let delivered = existing_queue().map_or(0, |queue| queue.lock().status.delivered);
    for _ in 0..10 {
        warn("x");
    }
    assert!(flush(Duration::from_secs(60)));
    assert!(existing_queue().unwrap().lock().status.delivered >= delivered + 10);
}
