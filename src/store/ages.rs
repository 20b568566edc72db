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
//!   advanced by more than [`MAX_STEP`], because the clock was probably set.
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
use super::names::AGES;
use crate::base::{Bytes, ClockReading, Elapsed, IncidentId, TimeAnchor, warnings};

/// The longest time between two boots that is accepted.
const MAX_STEP: Duration = Duration::from_secs(24 * 60 * 60);
/// `ages.json` is written when incidents were added or evicted, and otherwise at this interval.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// 100,000 incidents with 40 bytes each. A larger file is not from this store.
const MAX_FILE: Bytes = Bytes::mib(4);

/// The ages of the incidents in a directory, as of the last scan.
#[derive(Debug, Default)]
pub(super) struct IncidentAges {
    seen: AgeRecord,
    /// `true` once `ages.json` was read.
    is_read: bool,
    /// Time since `ages.json` was last written.
    unwritten: Duration,
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
    /// Updates the ages. `held` are the present incidents with the wall times in their names.
    pub(super) fn look(&mut self, root: &Dir, now: TimeAnchor, held: &[(IncidentId, Timestamp)]) {
        if !std::mem::replace(&mut self.is_read, true) {
            // An unreadable file is replaced: the ages restart at 0, so no incident expires early.
            self.seen = root
                .read(AGES, MAX_FILE)
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default();
        }
        let reading = ClockReading::new(now);
        let passed = match self.seen.clock.as_ref().map(|last| reading.elapsed_since(last)) {
            None => Duration::ZERO,
            Some(Elapsed::Exact(passed)) => passed,
            Some(Elapsed::ByWall(passed)) if passed <= MAX_STEP => passed,
            Some(Elapsed::ByWall(_)) => Duration::ZERO,
        };
        self.seen.clock = Some(reading);
        let known = std::mem::take(&mut self.seen.ages_ms);
        let mut changed = known.len() != held.len();
        for &(id, opened) in held {
            let age = match known.get(&id) {
                Some(&age) => age.saturating_add(millis(passed)),
                // Opened since the last scan.
                None => {
                    changed = true;
                    let by_wall = Duration::try_from(now.wall.duration_since(opened));
                    millis(by_wall.unwrap_or_default().min(passed))
                }
            };
            self.seen.ages_ms.insert(id, age);
        }
        self.unwritten = self.unwritten.saturating_add(passed);
        if changed || !held.is_empty() && self.unwritten >= WRITE_INTERVAL {
            self.write(root);
        }
    }

    /// Returns the age of the incident `id` at the last scan.
    pub(super) fn of(&self, id: IncidentId) -> Duration {
        Duration::from_millis(self.seen.ages_ms.get(&id).copied().unwrap_or(0))
    }

    fn write(&mut self, root: &Dir) {
        let written = serde_json::to_vec(&self.seen)
            .map_err(|source| Error::State { path: root.at(AGES), source })
            .and_then(|text| root.replace(AGES, &text));
        match written {
            Ok(()) => {
                self.unwritten = Duration::ZERO;
                warnings::clear("store.max_age");
            }
            Err(error) => warnings::set(
                "store.max_age",
                format!("{error}; after a restart incidents stay longer than max_age"),
            ),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
