//! `panics`: the source locations of the panics.
//!
//! A list of panics counts from the start of the agent. Of two lists, the difference counts. Of
//! one, a location counts if its last panic was shortly before the incident or later.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::Candidate;
use super::growth::{DumpPair, MIN_SHARE, percent};
use crate::analysis::evidence::IncidentEvidence;
use crate::base::PanicLocation;
use crate::model::{Confidence, FindingKind, PanicDump};

/// Minimum number of panics of a location. A single one is a failed request.
const MIN_PANICS: u64 = 2;

/// Time before the start of the incident in which a panic belongs to it: three times the duration
/// for which the condition of the default rule over `panics` must hold.
const MAX_TIME_BEFORE: SignedDuration = SignedDuration::from_secs(15);

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let Some(dumps) = DumpPair::new(&evidence.tables.panics) else { return Vec::new() };
    let since = evidence.manifest.opened - MAX_TIME_BEFORE;
    let panics = RecentPanics::of(dumps.first.map(|dump| &dump.table), &dumps.last.table, since);
    // Panics that no rule reported are no sign of an unhealthy service.
    let has_rule = evidence.has_reason(&["panics"]);
    let confidence = if has_rule { Confidence::Certain } else { Confidence::Possible };
    let recent = panics.locations.iter().filter(|recent| recent.count >= MIN_PANICS);
    let candidates = recent.filter_map(|recent| {
        let RecentPanic { location, count, .. } = *recent;
        let share = count as f64 / panics.total.max(1) as f64;
        if share < MIN_SHARE {
            return None;
        }
        let subject = format!("{}:{}", location.file, location.line);
        // Without the message, which can contain data of a request.
        let text = format!(
            "{count} panics ({} of all) at {subject} {}, last at {}",
            percent(share),
            recent.period(),
            location.last_at
        );
        let mut candidate = Candidate::new(FindingKind::Panics, confidence, subject)
            .text(text)
            .number("panics", count as f64)
            .label("thread", &*location.thread)
            .share(share)
            .explains_reason(has_rule);
        if let Some(task) = &location.task {
            candidate = candidate.label("task", &**task);
        }
        let file = &dumps.last.file;
        Some(candidate.evidence(file, format!("less {file}")))
    });
    candidates.collect()
}

/// The panics that belong to an incident.
struct RecentPanics<'a> {
    total: u64,
    /// In the order of the dump: the most frequent first.
    locations: Vec<RecentPanic<'a>>,
}

#[derive(Clone, Copy)]
struct RecentPanic<'a> {
    location: &'a PanicLocation,
    /// Number in the incident, or since the first panic if there is one dump only.
    count: u64,
    is_since_first_dump: bool,
}

impl<'a> RecentPanics<'a> {
    fn of(first: Option<&PanicDump>, last: &'a PanicDump, since: Timestamp) -> Self {
        let earlier: BTreeMap<_, u64> = first
            .into_iter()
            .flat_map(|first| &first.locations)
            .map(|location| (place_of(location), location.count))
            .collect();
        let recent = |count_before: &dyn Fn(&PanicLocation) -> u64, is_since_first_dump| {
            let locations = last.locations.iter().filter(|location| location.last_at >= since);
            let locations = locations.map(|location| RecentPanic {
                location,
                count: location.count.saturating_sub(count_before(location)),
                is_since_first_dump,
            });
            locations.filter(|recent| recent.count > 0).collect::<Vec<_>>()
        };
        let between =
            recent(&|location| earlier.get(&place_of(location)).copied().unwrap_or(0), true);
        if let Some(first) = first.filter(|_| !between.is_empty()) {
            return Self { total: last.total.saturating_sub(first.total), locations: between };
        }
        let locations = recent(&|_| 0, false);
        let without_location: u64 = last.losses.iter().map(|loss| loss.count).sum();
        let located: u64 = locations.iter().map(|recent| recent.count).sum();
        Self { total: located + without_location, locations }
    }
}

fn place_of(location: &PanicLocation) -> (&str, u32, u32) {
    (&location.file, location.line, location.column)
}

impl RecentPanic<'_> {
    fn period(&self) -> String {
        if self.is_since_first_dump {
            "since the first list".to_owned()
        } else {
            format!("since {}", self.location.first_at)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{IncidentFixture, summaries, time};
    use super::*;
    use crate::base::RecordedPanics;

    /// Panics at lines of `orders.rs`: line, number, second of the last one.
    fn dump(lines: &[(u32, u64, i64)], without_location: u64) -> PanicDump {
        let location = |&(line, count, last): &(u32, u64, i64)| PanicLocation {
            file: "src/orders.rs".into(),
            line,
            column: 9,
            count,
            first_at: time(-60),
            last_at: time(last),
            first_message: "order 1 is empty".into(),
            message: format!("order {count}\nis empty"),
            thread: "tokio-rt-worker".into(),
            task: Some("12".into()),
        };
        let located: u64 = lines.iter().map(|(_, count, _)| count).sum();
        let recorded = RecordedPanics {
            total: located + without_location,
            without_location,
            locations: lines.iter().map(location).collect(),
        };
        PanicDump::new(time(0), recorded)
    }

    #[test]
    fn names_locations_of_recent_panics() {
        let rule = || IncidentFixture::new().reason("panics", 90.0, 0.0, "");
        let other = || IncidentFixture::new().reason("memory", 90.0, 80.0, "");
        for (fixture, expected) in [
            (rule().panics(0, dump(&[(17, 500, 0)], 0)), "panics certain src/orders.rs:17"),
            (
                rule().panics(0, dump(&[(17, 500, 0), (9, 300, 0), (4, 10, 0)], 0)),
                "panics certain src/orders.rs:17, panics certain src/orders.rs:9",
            ),
            // The frequent one is over.
            (
                rule().panics(0, dump(&[(17, 500, -16), (9, 3, -15)], 0)),
                "panics certain src/orders.rs:9",
            ),
            (
                rule()
                    .panics(0, dump(&[(17, 500, 0), (9, 3, 0)], 0))
                    .panics(30, dump(&[(17, 501, 30), (9, 400, 30)], 0)),
                "panics certain src/orders.rs:9",
            ),
            (
                rule().panics(0, dump(&[(17, 500, 0)], 0)).panics(30, dump(&[(17, 500, 0)], 0)),
                "panics certain src/orders.rs:17",
            ),
            (other().panics(0, dump(&[(17, 500, 0)], 0)), "panics possible src/orders.rs:17"),
            (rule().panics(0, dump(&[(17, 1, 0)], 0)), ""),
            (rule().panics(0, dump(&[(17, 24, 0)], 76)), ""),
            (other().panics(0, dump(&[(17, 500, -600)], 0)), ""),
            (rule(), ""),
        ] {
            assert_eq!(summaries(&find(&fixture.evidence())).join(", "), expected);
        }
    }

    #[test]
    fn text_has_number_and_time_but_no_message() {
        let fixture = IncidentFixture::new()
            .reason("panics", 90.0, 0.0, "")
            .panics(0, dump(&[(17, 30, 0)], 10));
        let found = find(&fixture.evidence()).remove(0);
        assert_eq!(
            found.text,
            "30 panics (75 % of all) at src/orders.rs:17 since 2026-11-23T02:56:33Z, last at \
             2026-11-23T02:57:33Z"
        );
        assert!(found.explains_reason);
        assert_eq!(found.labels["task"], "12");
    }
}
