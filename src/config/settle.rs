//! When a file has changed: a pure judge of what was seen of it.

use std::time::Duration;

use crate::base::Moment;

/// What was reported of a file last, and what may be reported next.
///
/// A change counts once it was seen unchanged over its quiet time, because an editor truncates, writes
/// in pieces, deletes and creates. What is not there (`None`) is no change: the file is about to come
/// back, or the last one stays in force.
#[derive(Debug)]
pub(super) struct Settle<T> {
    reported: Option<T>,
    candidate: Option<(T, Moment)>,
}

impl<T: Clone + PartialEq> Settle<T> {
    /// A file of which `known` is known already.
    pub(super) fn new(known: Option<T>) -> Self {
        Self { reported: known, candidate: None }
    }

    /// Takes what is `seen` of the file; gives it back if that is a change which has been so for
    /// `quiet`.
    pub(super) fn look(&mut self, now: Moment, seen: Option<T>, quiet: Duration) -> Option<T> {
        let seen = seen.filter(|seen| self.reported.as_ref() != Some(seen));
        self.candidate = match (seen, self.candidate.take()) {
            (None, _) => None,
            (Some(seen), Some((same, since))) if seen == same => {
                if now.since(since) >= quiet {
                    self.reported = Some(seen.clone());
                    return Some(seen);
                }
                Some((same, since))
            }
            (Some(seen), _) => Some((seen, now)),
        };
        None
    }

    /// Whether a change waits for its quiet time.
    pub(super) fn is_unsettled(&self) -> bool {
        self.candidate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(100);

    /// What is reported of a file seen like this, at these milliseconds.
    fn reports(looks: &[(u64, Option<&'static str>)]) -> Vec<(u64, &'static str)> {
        let mut settle = Settle::new(Some("old"));
        let look = |&(at, seen): &(u64, Option<&'static str>)| {
            let now = Moment::from_nanos(at * 1_000_000);
            settle.look(now, seen, QUIET).map(|report| (at, report))
        };
        looks.iter().filter_map(look).collect()
    }

    #[test]
    fn a_change_is_reported_once_after_its_quiet_time() {
        let new = Some("new");
        assert_eq!(reports(&[(0, new), (99, new)]), []);
        assert_eq!(reports(&[(0, new), (100, new), (101, new), (900, new)]), [(100, "new")]);
    }

    #[test]
    fn a_half_written_file_is_not_reported() {
        let (half, whole) = (Some("ha"), Some("half"));
        assert_eq!(reports(&[(0, half), (99, half), (120, whole), (220, whole)]), [(220, "half")]);
    }

    #[test]
    fn what_comes_back_as_it_was_is_no_change() {
        let (old, new) = (Some("old"), Some("new"));
        assert_eq!(reports(&[(0, None), (500, None), (600, old), (900, old)]), []);
        assert_eq!(reports(&[(0, new), (50, old), (150, new), (200, new)]), []);
    }

    #[test]
    fn a_file_that_vanishes_and_returns_otherwise_is_one_change() {
        let new = Some("new");
        assert_eq!(reports(&[(0, new), (10, None), (20, new), (119, new)]), []);
        assert_eq!(reports(&[(0, new), (10, None), (20, new), (120, new)]), [(120, "new")]);
    }
}
