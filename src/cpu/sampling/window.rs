//! The look-back window: buckets of samples, of which the oldest is dropped as a whole.
//!
//! A window of 30 s has buckets of 5 s, at most seven of them, so it covers at least 30 s and at
//! most 35 s. A bucket is a table of [`MAX_BUCKET_ENTRIES`] entries: at most 800 KB, typically 20
//! KB.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::Moment;
use crate::cpu::sampling::sample_table::SampleTable;

const BUCKETS: u32 = 6;
const MAX_BUCKET_ENTRIES: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct WindowBucket {
    pub(super) started: Moment,
    /// CPU time of the process at `started`.
    pub(super) cpu_at_start: Duration,
    pub(super) table: SampleTable,
}

#[derive(Debug)]
pub(super) struct LookbackWindow {
    buckets: VecDeque<WindowBucket>,
    bucket_span: Duration,
}

impl LookbackWindow {
    /// Creates a window that covers `span`.
    pub(super) fn new(span: Duration) -> Self {
        Self { buckets: VecDeque::new(), bucket_span: span / BUCKETS }
    }

    /// Starts a bucket; `cpu_at_start` is the total CPU time of the process.
    pub(super) fn begin_bucket(&mut self, now: Moment, cpu_at_start: Duration) {
        while self.buckets.len() > BUCKETS as usize {
            self.buckets.pop_front();
        }
        self.buckets.push_back(WindowBucket {
            started: now,
            cpu_at_start,
            table: SampleTable::new(MAX_BUCKET_ENTRIES),
        });
    }

    /// Returns `true` if the next bucket must start. No bucket is shorter than `min_span`.
    pub(super) fn needs_rotation(&self, now: Moment, min_span: Duration) -> bool {
        let bucket_span = self.bucket_span.max(min_span);
        self.buckets.back().is_some_and(|last| now.since(last.started) >= bucket_span)
    }

    /// Returns the current bucket.
    pub(super) fn current(&mut self) -> Option<&mut SampleTable> {
        self.buckets.back_mut().map(|bucket| &mut bucket.table)
    }

    /// Takes all buckets. The window stays inactive until the next bucket starts.
    pub(super) fn take(&mut self) -> Vec<WindowBucket> {
        std::mem::take(&mut self.buckets).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_covers_its_span_plus_at_most_one_bucket() {
        let mut window = LookbackWindow::new(Duration::from_secs(30));
        assert!(window.current().is_none());
        window.begin_bucket(Moment::from_nanos(0), Duration::ZERO);
        for second in 0..100u64 {
            let now = Moment::from_nanos(second * 1_000_000_000);
            if window.needs_rotation(now, Duration::ZERO) {
                window.begin_bucket(now, Duration::from_secs(second));
            }
            let table = window.current().unwrap();
            table.add(1, &[second + 1], 1, false);
            let reaches = now.since(window.buckets[0].started).as_secs();
            assert!(reaches == second || (30..35).contains(&reaches), "{reaches} at {second}");
        }
        let buckets = window.take();
        let samples: u64 = buckets.iter().map(|bucket| bucket.table.total.samples).sum();
        assert_eq!(samples, 100 - buckets[0].started.as_nanos() / 1_000_000_000);
        assert_eq!(buckets[0].cpu_at_start.as_nanos() as u64, buckets[0].started.as_nanos());
        assert!(window.take().is_empty());
    }
}
