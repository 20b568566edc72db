//! Debouncing of file changes, as a pure state machine.

use std::time::Duration;

use crate::base::Moment;

/// A debouncer for the versions of one file.
///
/// A version is reported once it has been unchanged for its quiet time, because an editor
/// truncates, writes in pieces, deletes and creates. A missing file (`None`) is not a change: the
/// file is about to reappear, or its last version stays in force.
#[derive(Debug)]
pub(super) struct Debouncer<T> {
    reported: Option<T>,
    candidate: Option<(T, Moment)>,
}

impl<T: Clone + PartialEq> Debouncer<T> {
    /// Returns a debouncer that does not report the version `known`.
    pub(super) fn new(known: Option<T>) -> Self {
        Self { reported: known, candidate: None }
    }

    /// Processes `version`. Returns it if it differs from the reported one and has been
    /// unchanged for `quiet`.
    pub(super) fn update(&mut self, now: Moment, version: Option<T>, quiet: Duration) -> Option<T> {
        let version = version.filter(|seen| self.reported.as_ref() != Some(seen));
        self.candidate = match (version, self.candidate.take()) {
            (None, _) => None,
            (Some(version), Some((same, first_seen))) if version == same => {
                if now.since(first_seen) >= quiet {
                    self.reported = Some(version.clone());
                    return Some(version);
                }
                Some((same, first_seen))
            }
            (Some(version), _) => Some((version, now)),
        };
        None
    }

    /// Returns `true` if a change waits for its quiet time.
    pub(super) fn is_pending(&self) -> bool {
        self.candidate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(100);

    /// Returns the versions reported for a file with these versions at these milliseconds.
    fn reports(versions: &[(u64, Option<&'static str>)]) -> Vec<(u64, &'static str)> {
        let mut debouncer = Debouncer::new(Some("old"));
        let update = |&(at, version): &(u64, Option<&'static str>)| {
            let now = Moment::from_nanos(at * 1_000_000);
            debouncer.update(now, version, QUIET).map(|report| (at, report))
        };
        versions.iter().filter_map(update).collect()
    }

    #[test]
    fn a_change_is_reported_once_after_its_quiet_time() {
        let new = Some("new");
        assert_eq!(reports(&[(0, new), (99, new)]), []);
        assert_eq!(reports(&[(0, new), (100, new), (101, new), (900, new)]), [(100, "new")]);
    }

    #[test]
    fn a_half_written_file_is_not_reported() {
        let half = Some("ha");
        let whole = Some("half");
        assert_eq!(reports(&[(0, half), (99, half), (120, whole), (220, whole)]), [(220, "half")]);
    }

    #[test]
    fn restored_version_is_not_reported() {
        let old = Some("old");
        let new = Some("new");
        assert_eq!(reports(&[(0, None), (500, None), (600, old), (900, old)]), []);
        assert_eq!(reports(&[(0, new), (50, old), (150, new), (200, new)]), []);
    }

    #[test]
    fn file_recreated_with_new_content_is_one_change() {
        let new = Some("new");
        assert_eq!(reports(&[(0, new), (10, None), (20, new), (119, new)]), []);
        assert_eq!(reports(&[(0, new), (10, None), (20, new), (120, new)]), [(120, "new")]);
    }
}
