//! Comparison of a heap profile with the counts of the blocks in a range of sizes that only the
//! tests use. The profile must match them to the byte.

use std::sync::atomic::Ordering::SeqCst;

use jiff::Timestamp;
use marple::internals::heap;
use marple::internals::model::{LabelValue, Profile};

use crate::support::counting::{ALLOCATED, BLOCKS, COUNTED_SIZES, LIVE};

/// Returns one of the four values of a profile, summed over samples of watched sizes.
pub(crate) fn sum_of_counted_sizes(profile: &Profile, value: usize) -> i64 {
    let is_watched =
        |value| matches!(value, LabelValue::Number(n, _) if COUNTED_SIZES.contains(&(n as usize)));
    profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_watched(label.value)))
        .map(|sample| sample.values[value])
        .sum()
}

/// Takes a heap profile. Its own allocations appear in no profile and are subtracted from the
/// count.
pub(crate) fn snapshot() -> Profile {
    let allocated = ALLOCATED.load(SeqCst);
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    ALLOCATED.store(allocated, SeqCst);
    profile
}

#[track_caller]
pub(crate) fn assert_exact() {
    let account = (BLOCKS.load(SeqCst), LIVE.load(SeqCst), ALLOCATED.load(SeqCst));
    let profile = snapshot();
    let (blocks, live, ever) = account;
    println!(
        "the account: {blocks} blocks, {live} bytes in use, {ever} ever; the profile must agree"
    );
    assert_eq!(
        (
            sum_of_counted_sizes(&profile, 2),
            sum_of_counted_sizes(&profile, 3),
            sum_of_counted_sizes(&profile, 1)
        ),
        account
    );
    let dropped = profile.losses.iter().find(|loss| loss.cause.contains("dropped"));
    assert_eq!(dropped, None);
}

pub(crate) fn block(n: usize) -> Vec<u8> {
    Vec::with_capacity(COUNTED_SIZES.start + n * 7919 % COUNTED_SIZES.len())
}
