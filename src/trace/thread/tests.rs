use super::*;
use crate::trace::epoch::{
    POLL_STARTED, arm_wakeup, disarm_wakeup, is_wakeup_armed, set_recording,
};

/// The recorder is process-wide state, so one test covers all of it.
#[test]
fn first_poll_after_arming_wakes_detector_and_keeps_open_slices() {
    const TASK: TaskKey = TaskKey { site: 0, number: 7 };
    let woken = || POLL_STARTED.consume().is_ok();
    let poll = |tick| begin_slice(RawKind::WrappedPoll, TASK, tick);
    let park = |tick| begin_slice(RawKind::Park, TASK, tick);
    let end_poll =
        || end_slice(RawKind::WrappedPoll, || unreachable!("the slice started in this recording"));
    POLL_STARTED.open().unwrap();
    registry::set_limits(1 << 20, 0);
    cycle_clock::source();
    assert!(is_wakeup_armed(), "the wakeup is armed before the recording starts");
    set_recording(Some(1));
    assert!(woken() && !is_wakeup_armed());

    poll(cycle_clock::now());
    arm_wakeup();
    assert!(is_wakeup_armed() && !woken());
    end_poll();
    assert!(is_wakeup_armed() && !woken(), "the end of a poll does not wake");
    park(cycle_clock::now());
    assert!(is_wakeup_armed() && !woken(), "a park does not wake");
    let before = current_rings().unwrap().slices.next();
    poll(cycle_clock::now());
    assert!(woken() && !is_wakeup_armed());
    poll(cycle_clock::now());
    assert!(!woken(), "only the first poll wakes");
    let open = current_rings().unwrap().open_slices();
    assert_eq!(open.len(), 3, "the park is still open: {open:?}");
    (0..3).for_each(|_| end_poll());
    assert_eq!(current_rings().unwrap().slices.next(), before + 3);

    arm_wakeup();
    assert!(disarm_wakeup() && !disarm_wakeup());
    poll(cycle_clock::now());
    assert!(!woken());
    arm_wakeup();
    set_recording(None);
    assert!(woken() && is_wakeup_armed(), "the end of a recording wakes the detector");
    end_poll();
    arm_wakeup();
    assert_eq!(EPOCH.load(Ordering::Relaxed), 0, "arming the wakeup records nothing");
}
