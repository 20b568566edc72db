//! The last seconds, in buckets: when one is full, the oldest goes, all of it.
//!
//! A window of 30 s has buckets of 5 s, at most seven of them, so that it always reaches back 30 s and at
//! most 35. A bucket is a table of [`NODES`]: 800 KB at the very most, some 20 KB mostly.

use std::collections::VecDeque;
use std::time::Duration;

use super::tally::Tally;
use crate::base::Moment;

const BUCKETS: u32 = 6;
const NODES: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) started: Moment,
    /// The process's CPU time then.
    pub(super) cpu: Duration,
    pub(super) tally: Tally,
}

#[derive(Debug)]
pub(super) struct Window {
    buckets: VecDeque<Bucket>,
    each: Duration,
}

impl Window {
    /// One that reaches back `span`.
    pub(super) fn new(span: Duration) -> Self {
        Self { buckets: VecDeque::new(), each: span / BUCKETS }
    }

    /// The bucket of `now`; `cpu` is asked when it is a new one.
    pub(super) fn present(
        &mut self,
        now: Moment,
        cpu: impl FnOnce() -> Duration,
    ) -> Option<&mut Tally> {
        let is_over = |last: &Bucket| now.since(last.started) >= self.each;
        if self.buckets.back().is_none_or(is_over) {
            while self.buckets.len() > BUCKETS as usize {
                self.buckets.pop_front();
            }
            self.buckets.push_back(Bucket { started: now, cpu: cpu(), tally: Tally::new(NODES) });
        }
        self.buckets.back_mut().map(|bucket| &mut bucket.tally)
    }

    /// All of it; it begins again empty.
    pub(super) fn take(&mut self) -> Vec<Bucket> {
        std::mem::take(&mut self.buckets).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reaches_back_as_far_as_it_should_and_no_further() {
        let mut window = Window::new(Duration::from_secs(30));
        for second in 0..100u64 {
            let now = Moment::from_nanos(second * 1_000_000_000);
            let tally = window.present(now, || Duration::from_secs(second)).unwrap();
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
