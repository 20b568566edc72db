//! The count of all bytes ever allocated in a heap profile: a number, and a bound on the bytes not
//! counted yet.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;

use crate::support::counting::ALLOCATED_BYTES;

/// Returns the bytes allocated so far, and from the profile's comment the bytes counted and the
/// bound on those not counted.
fn byte_counts() -> [u64; 3] {
    /// Bytes allocated by snapshots, which the profile excludes.
    static SNAPSHOT_BYTES: AtomicU64 = AtomicU64::new(0);
    let before = ALLOCATED_BYTES.load(SeqCst) as u64;
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    let requested =
        before - SNAPSHOT_BYTES.fetch_add(ALLOCATED_BYTES.load(SeqCst) as u64 - before, SeqCst);
    let comment = profile.comments.iter().find_map(|line| {
        let rest = line.strip_prefix("heap: counted, not sampled: ")?;
        let mut numbers = rest.split(' ').filter_map(|word| word.parse().ok());
        Some([requested, numbers.next()?, numbers.next()?])
    });
    comment.unwrap()
}

/// Runs `count` threads one after the other, each of which allocates `bytes` in small blocks.
fn run_threads(count: usize, bytes: usize) {
    for _ in 0..count {
        let work = move || (0..bytes / 48).for_each(|_| drop(black_box(Box::new([0u8; 48]))));
        std::thread::spawn(work).join().unwrap();
    }
}

#[test]
fn allocated_bytes_of_ended_threads_are_within_stated_bound() {
    const THREADS: usize = 1000;
    let default_rate = 512 << 10;
    for (bytes, rate) in [
        (500, default_rate),
        (3 << 10, default_rate),
        (200 << 10, default_rate),
        (3 << 10, 0),
        (3 << 10, 1),
    ] {
        heap::set_rate(Bytes(rate));
        let [_, _, more_before] = byte_counts();
        run_threads(THREADS, bytes);
        let [asked, counted, more] = byte_counts();
        println!(
            "{bytes} bytes each at {rate}: asked {asked}, counted {counted}, up to {more} more"
        );
        assert!((counted..=counted + more).contains(&asked), "{asked}: {counted} and {more}");
        // The thread that starts them has its own uncounted bytes.
        let bytes_per_thread = more.saturating_sub(more_before + (64 << 10)) / THREADS as u64;
        // A recorded allocation is counted at once.
        let max_bytes = if rate == 1 { 0 } else { (bytes as u64 / 4).max(1 << 10) };
        assert!(
            bytes_per_thread <= max_bytes,
            "{bytes_per_thread} more for each thread that asked for {bytes}"
        );
    }
}
