use super::*;

/// The recorder is process-wide state, so one test covers all of it.
#[test]
fn the_first_poll_after_a_rest_wakes_who_rested_and_keeps_what_was_open() {
    const NOBODYS: TaskKey = TaskKey { site: 0, number: 7 };
    let heard = || BEGAN.hear().is_ok();
    let poll = |tick| begin(RawKind::WrappedPoll, NOBODYS, tick);
    let park = |tick| begin(RawKind::Park, NOBODYS, tick);
    let over = || end(RawKind::WrappedPoll, || unreachable!("it began in this recording"));
    BEGAN.open().unwrap();
    registry::limit(1 << 20, 0);
    cycle_clock::source();
    assert!(rests(), "a recording that begins tells, too");
    record(Some(1));
    assert!(heard() && !rests());

    poll(cycle_clock::now());
    rest();
    assert!(rests() && !heard());
    over();
    assert!(rests() && !heard(), "an end tells nothing");
    park(cycle_clock::now());
    assert!(rests() && !heard(), "nor does a park");
    let before = here().unwrap().slices.next();
    poll(cycle_clock::now());
    assert!(heard() && !rests());
    poll(cycle_clock::now());
    assert!(!heard(), "only the first does");
    let open = here().unwrap().open();
    assert_eq!(open.len(), 3, "the park is open still: {open:?}");
    (0..3).for_each(|_| over());
    assert_eq!(here().unwrap().slices.next(), before + 3);

    rest();
    assert!(stir() && !stir());
    poll(cycle_clock::now());
    assert!(!heard());
    rest();
    record(None);
    assert!(heard() && rests(), "who rested has to rest anew");
    over();
    rest();
    assert_eq!(EPOCH.load(Ordering::Relaxed), 0, "nothing is recorded by resting");
}
