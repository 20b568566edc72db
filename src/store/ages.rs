//! Ages of incidents.
//!
//! The name of an incident contains the wall time at which it opened. The wall clock may have been
//! wrong then or be wrong at present: one step ahead would expire all incidents at once. So the age
//! of an incident is not the difference of two wall times. It is the sum of the time observed
//! between scans of the directory, stored in `ages.json`:
//!
//! - Within one boot of the machine, the time between two scans is exact, even if different
//!   processes make them.
//! - Between two boots, it is the difference of the wall times. It is 0 if the clock went back or
//!   advanced by more than [`MAX_BOOT_GAP`], because the clock was probably set.
//!
//! An incident without a stored age, from an earlier version or after `ages.json` was lost, starts
//! at 0. So an incident may stay longer than `max_age`, never shorter. The other limits hold
//! regardless.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::dir::Dir;
use super::error::Error;
use super::names::AGES_FILE;
use crate::base::{Bytes, ClockReading, Elapsed, IncidentId, TimeAnchor, warnings};

/// The longest time between two boots that is accepted.
const MAX_BOOT_GAP: Duration = Duration::from_secs(24 * 60 * 60);
/// `ages.json` is written when incidents were added or evicted, and otherwise at this interval.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// 100,000 incidents with 40 bytes each. A larger file is not from this store.
const MAX_FILE_BYTES: Bytes = Bytes::mib(4);

/// The ages of the incidents in a directory, as of the last scan.
#[derive(Debug, Default)]
pub(super) struct IncidentAges {
    record: AgeRecord,
    /// `true` once `ages.json` was read.
    is_read: bool,
    /// Time since `ages.json` was last written.
    since_last_write: Duration,
}

/// Contents of `ages.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct AgeRecord {
    /// The clocks at the last scan, or `None` before the first.
    clock: Option<ClockReading>,
    /// Milliseconds since each incident opened.
    ages_ms: BTreeMap<IncidentId, u64>,
}

impl IncidentAges {
    /// Updates the ages. `incidents` are the present incidents with the wall times in their names.
    pub(super) fn update(
        &mut self,
        root: &Dir,
        now: TimeAnchor,
        incidents: &[(IncidentId, Timestamp)],
    ) {
        if !std::mem::replace(&mut self.is_read, true) {
            // An unreadable file is replaced: the ages restart at 0, so no incident expires early.
            self.record = root
                .read(AGES_FILE, MAX_FILE_BYTES)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default();
        }
        let reading = ClockReading::new(now);
        let passed = match self.record.clock.as_ref().map(|last| reading.elapsed_since(last)) {
            None => Duration::ZERO,
            Some(Elapsed::Exact(passed)) => passed,
            Some(Elapsed::WallClock(passed)) if passed <= MAX_BOOT_GAP => passed,
            Some(Elapsed::WallClock(_)) => Duration::ZERO,
        };
        self.record.clock = Some(reading);
        let known = std::mem::take(&mut self.record.ages_ms);
        let mut changed = known.len() != incidents.len();
        for &(id, opened) in incidents {
            let age = match known.get(&id) {
                Some(&age) => age.saturating_add(millis(passed)),
                // Opened since the last scan.
                None => {
                    changed = true;
                    let by_wall = Duration::try_from(now.wall.duration_since(opened));
                    millis(by_wall.unwrap_or_default().min(passed))
                }
            };
            self.record.ages_ms.insert(id, age);
        }
        self.since_last_write = self.since_last_write.saturating_add(passed);
        if changed || !incidents.is_empty() && self.since_last_write >= WRITE_INTERVAL {
            self.write(root);
        }
    }

    /// Returns the age of the incident `id` at the last scan.
    pub(super) fn age(&self, id: IncidentId) -> Duration {
        Duration::from_millis(self.record.ages_ms.get(&id).copied().unwrap_or(0))
    }

    fn write(&mut self, root: &Dir) {
        let written = serde_json::to_vec(&self.record)
            .map_err(|source| Error::State { path: root.path_of(AGES_FILE), source })
            .and_then(|text| root.replace(AGES_FILE, &text));
        match written {
            Ok(()) => {
                self.since_last_write = Duration::ZERO;
                warnings::clear("store.max_age");
            }
            Err(error) => warnings::set(
                "store.max_age",
                format!("{error}; after a restart, incidents are kept longer than max_age"),
            ),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
