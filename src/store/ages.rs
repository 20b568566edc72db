//! How old incidents are.
//!
//! The name of an incident holds the wall time at which it opened, and the wall clock may have been wrong then
//! or be wrong now: one step ahead would make everything too old at once. So the age of an incident is not the
//! difference of two wall times, but the time that was seen to pass since it opened, added up at every look at
//! the directory and kept in `ages.json`:
//!
//! - within one boot of the machine the time between two looks is exact, whichever processes make them;
//! - between two boots it is the difference of the wall times, zero if the clock went back, and zero if it is
//!   more than [`MAX_STEP`], as a clock that was set looks like.
//!
//! An incident without an age, from an earlier version or of a lost `ages.json`, starts at zero. An incident
//! may thus stay longer than `max_age`, never shorter; the other bounds hold regardless.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::dir::Dir;
use super::error::Error;
use super::names::AGES;
use crate::base::{Anchor, Bytes, ClockReading, Elapsed, IncidentId, warnings};

/// The longest time between two boots that is believed.
const MAX_STEP: Duration = Duration::from_secs(24 * 60 * 60);
/// `ages.json` is written when incidents came or went, and else this long after the last time.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// An incident is 40 bytes; a directory with more than 100,000 of them is not ours.
const MAX_FILE: Bytes = Bytes::mib(4);

/// The ages of the incidents in one directory, as of the last look.
#[derive(Debug, Default)]
pub(super) struct Ages {
    seen: Seen,
    /// Whether `ages.json` was read.
    is_read: bool,
    /// The time since it was written.
    unwritten: Duration,
}

/// Contents of `ages.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    /// The clocks at the last look; `None` before the first.
    clock: Option<ClockReading>,
    /// Milliseconds since each incident opened.
    ages_ms: BTreeMap<IncidentId, u64>,
}

impl Ages {
    /// Brings the ages up to date. `held` are the incidents that are there and the wall times in their names.
    pub(super) fn look(&mut self, root: &Dir, now: Anchor, held: &[(IncidentId, Timestamp)]) {
        if !std::mem::replace(&mut self.is_read, true) {
            // What cannot be read is made anew: no age is lost that a wall clock could not take too.
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
                // It opened since the last look.
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

    /// The age of the incident `id` at the last look.
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
