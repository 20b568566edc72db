//! Models of the ring, the open slice and the epoch of the trace.

#[path = "../../src/trace/epoch_word.rs"]
mod epoch_word;
#[path = "../../src/trace/ring.rs"]
mod ring;

use loom::sync::Arc;
use loom::thread;

use epoch_word::{RecordingEpoch, WAKE_DETECTOR_BIT};
use ring::{EventRing, OpenSliceCell};

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::Relaxed;

struct Memory(Vec<AtomicU64>);

impl AsRef<[AtomicU64]> for Memory {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn ring(capacity: usize) -> EventRing<Memory> {
    EventRing::new(Memory((0..2 * capacity).map(|_| AtomicU64::new(0)).collect()))
}

/// Pushes record `n` as `[n + 1, !(n + 1)]`; a mix of two records fails the check.
fn push(ring: &EventRing<Memory>, n: u64) {
    ring.push([n + 1, !(n + 1)]);
}

#[test]
fn read_records_were_written_and_others_are_counted() {
    loom::model(|| {
        let ring = Arc::new(ring(2));
        push(&ring, 0);
        let writer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || (1..4).for_each(|n| push(&ring, n)))
        };
        let copied = ring.copy(0, |_| true);
        for (slot, words) in copied.records.iter().enumerate() {
            let number = copied.overwritten + slot as u64;
            assert_eq!(*words, [number + 1, !(number + 1)]);
        }
        assert_eq!(copied.overwritten + copied.records.len() as u64, copied.next);
        writer.join().unwrap();
        let copied = ring.copy(0, |_| true);
        assert_eq!((copied.records, copied.next, copied.overwritten), (vec![[4, !4]], 4, 3));
    });
}

/// The reader is the spawned thread: only then does loom show a head without its record.
#[test]
fn counted_record_is_readable() {
    loom::model(|| {
        let ring = Arc::new(ring(4));
        let reader = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.copy(0, |_| true))
        };
        (0..2).for_each(|n| push(&ring, n));
        let copied = reader.join().unwrap();
        assert_eq!((copied.records.len() as u64, copied.overwritten), (copied.next, 0));
        for (number, words) in (0..).zip(copied.records) {
            assert_eq!(words, [number + 1, !(number + 1)]);
        }
    });
}

#[test]
fn open_slice_is_read_completely_or_not_at_all() {
    loom::model(|| {
        let open = Arc::new(OpenSliceCell::new());
        let writer = {
            let open = Arc::clone(&open);
            thread::spawn(move || {
                open.begin(1, 10);
                assert_eq!(open.end(), (1, 10));
                open.begin(2, 20);
            })
        };
        if let Some((start, tag)) = open.read() {
            assert_eq!(tag, start * 10);
        }
        writer.join().unwrap();
        assert_eq!(open.read(), Some((2, 20)));
    });
}

#[test]
fn replaced_open_slice_reads_as_old_or_new() {
    loom::model(|| {
        let open = Arc::new(OpenSliceCell::new());
        open.begin(1, 10);
        let writer = {
            let open = Arc::clone(&open);
            thread::spawn(move || open.begin(2, 20))
        };
        if let Some((start, tag)) = open.read() {
            assert_eq!(tag, start * 10);
        }
        writer.join().unwrap();
        assert_eq!(open.read(), Some((2, 20)));
    });
}

/// A recording, and the open slices of two threads.
struct Recording {
    epoch: RecordingEpoch,
    slices: [AtomicU64; 2],
}

impl Recording {
    fn new() -> Self {
        let word = || AtomicU64::new(0);
        let epoch = RecordingEpoch::new(word());
        epoch.set_recording(Some(1));
        Self { epoch, slices: [word(), word()] }
    }

    /// Starts a poll as `ThreadRings::begin` does. Returns `true` if it wakes the detector.
    fn poll(&self, thread: usize) -> bool {
        let is_wakeup_armed = self.epoch.load(Relaxed) & WAKE_DETECTOR_BIT != 0;
        self.slices[thread].store(1, Relaxed);
        is_wakeup_armed && self.epoch.disarm_wakeup()
    }
}

/// The detector is the spawned thread, like the reader above.
#[test]
fn poll_that_disarms_wakeup_is_visible() {
    loom::model(|| {
        let recording = Arc::new(Recording::new());
        recording.epoch.arm_wakeup();
        let detector = {
            let recording = Arc::clone(&recording);
            thread::spawn(move || {
                let is_over = !recording.epoch.is_wakeup_armed();
                (is_over, recording.slices[0].load(Relaxed))
            })
        };
        assert!(recording.poll(0));
        let (is_over, slice) = detector.join().unwrap();
        assert!(!is_over || slice == 1, "the rest is over, and no poll is seen");
    });
}

#[test]
fn only_one_of_two_polls_wakes_detector() {
    loom::model(|| {
        let recording = Arc::new(Recording::new());
        recording.epoch.arm_wakeup();
        let other = {
            let recording = Arc::clone(&recording);
            thread::spawn(move || recording.poll(1))
        };
        let woke = [recording.poll(0), other.join().unwrap()];
        assert_eq!(woke.iter().filter(|&&woke| woke).count(), 1);
        assert!(!recording.epoch.is_wakeup_armed());
    });
}

#[test]
fn armed_wakeup_belongs_to_current_recording_or_none() {
    loom::model(|| {
        let recording = Arc::new(Recording::new());
        let detector = {
            let recording = Arc::clone(&recording);
            thread::spawn(move || recording.epoch.arm_wakeup())
        };
        recording.epoch.set_recording(Some(2));
        let word = recording.epoch.load(Relaxed);
        assert_eq!(word >> 1, 2, "a rest brings no older recording back");
        recording.epoch.set_recording(None);
        detector.join().unwrap();
        assert_eq!(recording.epoch.load(Relaxed), 0, "nothing is recorded by resting");
        assert!(recording.epoch.is_wakeup_armed());
    });
}
