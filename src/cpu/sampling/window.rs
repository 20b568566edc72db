//! The look-back window: buckets of samples, of which the oldest is dropped as a whole.
//!
//! A window of 30 s has buckets of 5 s, at most seven of them, so it covers at least 30 s and at
//! most 35 s. A bucket is a table of [`NODES`] entries: at most 800 KB, typically 20 KB.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::Moment;
use crate::cpu::sampling::sample_table::SampleTable;

const BUCKETS: u32 = 6;
const NODES: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct WindowBucket {
    pub(super) started: Moment,
    /// CPU time of the process at `started`.
    pub(super) cpu: Duration,
    pub(super) tally: SampleTable,
}

#[derive(Debug)]
pub(super) struct LookbackWindow {
    buckets: VecDeque<WindowBucket>,
    each: Duration,
}

impl LookbackWindow {
    /// Creates a window that covers `span`.
    pub(super) fn new(span: Duration) -> Self {
        Self { buckets: VecDeque::new(), each: span / BUCKETS }
    }

    /// Starts a bucket; `cpu` is the total CPU time of the process.
    pub(super) fn begin(&mut self, now: Moment, cpu: Duration) {
        while self.buckets.len() > BUCKETS as usize {
            self.buckets.pop_front();
        }
        self.buckets.push_back(WindowBucket { started: now, cpu, tally: SampleTable::new(NODES) });
    }

    /// Returns `true` if the next bucket must start. No bucket is shorter than `least`.
    pub(super) fn is_due(&self, now: Moment, least: Duration) -> bool {
        let each = self.each.max(least);
        self.buckets.back().is_some_and(|last| now.since(last.started) >= each)
    }

    /// Returns the current bucket.
    pub(super) fn present(&mut self) -> Option<&mut SampleTable> {
        self.buckets.back_mut().map(|bucket| &mut bucket.tally)
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
    fn it_reaches_back_as_far_as_it_should_and_no_further() {
        let mut window = LookbackWindow::new(Duration::from_secs(30));
        assert!(window.present().is_none());
        window.begin(Moment::from_nanos(0), Duration::ZERO);
        for second in 0..100u64 {
            let now = Moment::from_nanos(second * 1_000_000_000);
            if window.is_due(now, Duration::ZERO) {
                window.begin(now, Duration::from_secs(second));
            }
            let tally = window.present().unwrap();
            tally.add(1, &[second + 1], 1, false);
            let reaches = now.since(window.buckets[0].started).as_secs();
            assert!(reaches == second || (30..35).contains(&reaches), "{reaches} at {second}");
        }
        let buckets = window.take();
        let samples: u64 = buckets.iter().map(|bucket| bucket.tally.all.samples).sum();
        assert_eq!(samples, 100 - buckets[0].started.as_nanos() / 1_000_000_000);
        assert_eq!(buckets[0].cpu.as_nanos() as u64, buckets[0].started.as_nanos());
        assert!(window.take().is_empty());
    }
}
