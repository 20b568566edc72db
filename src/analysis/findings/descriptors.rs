//! `fd-growth`: the kind and the target of most of the open file descriptors.

use std::collections::BTreeMap;

use super::Candidate;
use super::growth::{
    CountMetric, CountProblem, DumpPair, LargestPart, MIN_SHARE, PartCounts, duration, percent,
};
use crate::analysis::evidence::IncidentEvidence;
use crate::model::{Confidence, DescriptorCount, DescriptorDump, FindingKind};

const DESCRIPTORS: CountMetric = CountMetric {
    name: "fds",
    level_reasons: &["fds", "fds.utilization"],
    rise_reasons: &["fds.rise"],
    min_rise: 1000.0,
};

/// Minimum share of the limit that is reported without a rule: the threshold of the default rule
/// over `fds.utilization`.
const MIN_UTILIZATION: f64 = 0.8;

/// Minimum share of its kind for a target to be named instead of the kind: most of it.
const MIN_TARGET_SHARE: f64 = 0.5;

/// Maximum number of rows of a list of targets. A target that is not in a full list has at most as
/// many descriptors as the last one of the list.
const MAX_LISTED: usize = 50;

/// Kind of the descriptors that marple reserves.
const OWN_KIND: &str = "marple";

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    descriptor_growth(evidence).into_iter().collect()
}

fn descriptor_growth(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    let dumps = DumpPair::new(&evidence.tables.descriptors)?;
    let last = &dumps.last.table;
    let utilization =
        last.limit.filter(|limit| *limit > 0).map(|limit| last.open as f64 / limit as f64);
    let is_near_limit = utilization.is_some_and(|share| share >= MIN_UTILIZATION);
    let at_limit = is_near_limit.then_some(CountProblem { has_rule: false, before: None });
    let problem = DESCRIPTORS.problem(evidence, dumps.last.taken, last.open).or(at_limit)?;
    let first = dumps.first.map(|dump| &dump.table);
    let largest = LargestPart::find(first.map(by_kind).as_ref(), &by_kind(last))?;
    let part = largest_target(first, last, &largest);
    let (count, open, share) = (part.count, part.total, part.share());
    let noun = part.part.noun();
    let mut text = match part.earlier {
        Some(_) => format!(
            "{} more {noun} are open than {} before ({} of the growth), {count} of {open} \
             descriptors in total",
            part.rise(),
            duration(dumps.seconds()),
            percent(share),
        ),
        None => format!("{count} of {open} open descriptors ({}) are {noun}", percent(share)),
    };
    if let Some(limit) = last.limit {
        text += &format!("; the limit is {limit}");
    }
    let confidence = if is_near_limit && !problem.has_rule {
        // The limit itself makes the number a problem, without a rule.
        CountProblem { has_rule: true, before: None }.confidence(&part).min(Confidence::Likely)
    } else {
        problem.confidence(&part)
    };
    let mut candidate = Candidate::new(FindingKind::FdGrowth, confidence, part.part.subject())
        .text(text)
        .number("descriptors", count as f64)
        .number("open", open as f64)
        .number("utilization", utilization.unwrap_or(f64::NAN))
        .label("kind", part.part.kind)
        .share(share)
        .explains_reason(problem.has_rule)
        .evidence(&dumps.last.file, format!("less {}", dumps.last.file));
    if let Some(limit) = last.limit {
        candidate = candidate.number("limit", limit as f64);
    }
    if part.earlier.is_some() {
        candidate = candidate.number("growth", part.rise() as f64);
    }
    Some(candidate)
}

/// Descriptors of one kind, and of one target, pattern or directory if that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target<'a> {
    kind: &'a str,
    target: &'a str,
}

impl Target<'_> {
    fn subject(&self) -> String {
        match (self.kind, self.target) {
            (kind, "") => kind.to_owned(),
            ("file" | "device", path) => path.to_owned(),
            (kind, target) => format!("{kind} {target}"),
        }
    }

    fn noun(&self) -> String {
        match (self.kind, self.target) {
            ("tcp" | "udp" | "unix", "") => format!("{} sockets", self.kind),
            (kind @ ("file" | "socket" | "pipe" | "device"), "") => format!("{kind}s"),
            (kind, "") => format!("of the kind {kind}"),
            ("tcp" | "udp" | "unix", target) => format!("{} sockets {target}", self.kind),
            (kind, target) => format!("{kind}s {target}"),
        }
    }
}

fn by_kind(dump: &DescriptorDump) -> PartCounts<&'static str> {
    let kinds = dump.kinds.iter().filter(|row| row.kind != OWN_KIND);
    PartCounts { total: dump.open, parts: kinds.map(|row| (row.kind, row.count)).collect() }
}

/// Returns the target that is most of the largest kind. If there is none, returns the path pattern,
/// the directory, or the protocol of the sockets; else the kind.
fn largest_target<'a>(
    first: Option<&'a DescriptorDump>,
    last: &'a DescriptorDump,
    kind: &LargestPart<&'static str>,
) -> LargestPart<Target<'a>> {
    let earlier = first.and_then(|first| Some((first, kind.earlier?.count)));
    let of_last = target_lists(last, kind.part);
    let mut of_first = earlier.map(|(first, _)| target_lists(first, kind.part).into_iter());
    for parts in of_last {
        let before = of_first.as_mut().and_then(Iterator::next);
        let last = PartCounts { total: kind.count, parts: parts.counts };
        let first = earlier.zip(before).map(|((_, total), before)| PartCounts {
            total,
            parts: before.counts_of(last.parts.keys()),
        });
        let Some(target) = LargestPart::find(first.as_ref(), &last) else { continue };
        let has_same_base = target.earlier.is_some() == kind.earlier.is_some();
        let is_most = target.share() >= MIN_TARGET_SHARE;
        let target = target.within(kind);
        if has_same_base && is_most && target.share() >= MIN_SHARE {
            return target;
        }
    }
    kind.clone().with_part(Target { kind: kind.part, target: "" })
}

/// Counts of the most frequent targets, patterns or directories.
struct TargetList<'a> {
    counts: BTreeMap<Target<'a>, u64>,
    /// Maximum count of a target that is not listed.
    unlisted: u64,
}

impl<'a> TargetList<'a> {
    fn new(rows: &'a [DescriptorCount], kind: &str) -> Self {
        let of_kind = rows.iter().filter(|row| has_kind(row, kind));
        let counts = of_kind.map(|row| (Target { kind: row.kind, target: &row.target }, row.count));
        let is_full = rows.len() >= MAX_LISTED;
        let least = rows.last().filter(|_| is_full).map_or(0, |row| row.count);
        Self { counts: counts.collect(), unlisted: least }
    }

    /// Returns the counts of these targets; for those that are not listed, the maximum.
    fn counts_of<'k>(
        &self,
        targets: impl Iterator<Item = &'k Target<'a>>,
    ) -> BTreeMap<Target<'a>, u64>
    where
        'a: 'k,
    {
        let count = |target| self.counts.get(target).copied().unwrap_or(self.unlisted);
        targets.map(|target| (*target, count(target))).collect()
    }
}

/// Returns the lists of a kind, the most specific first.
fn target_lists<'a>(dump: &'a DescriptorDump, kind: &str) -> Vec<TargetList<'a>> {
    let targets = TargetList::new(&dump.targets, kind);
    if kind != "socket" {
        let lists = [&dump.patterns, &dump.directories];
        let others = lists.map(|rows| TargetList::new(rows, kind));
        return [targets].into_iter().chain(others).collect();
    }
    let mut protocols = TargetList { counts: BTreeMap::new(), unlisted: 0 };
    for (target, count) in &targets.counts {
        *protocols.counts.entry(Target { target: "", ..*target }).or_default() += count;
    }
    // The sums have the listed targets only, which makes them lower bounds.
    if dump.targets.len() >= MAX_LISTED { vec![targets] } else { vec![targets, protocols] }
}

/// Returns true for the targets of a kind. Those of sockets have the protocol as their kind.
fn has_kind(row: &DescriptorCount, kind: &str) -> bool {
    row.kind == kind || (kind == "socket" && matches!(row.kind, "tcp" | "udp" | "unix"))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::fixture::{IncidentFixture, summaries};
    use super::*;
    use crate::model::Losses;

    type Rows<'a> = &'a [(&'static str, &'a str, u64)];

    fn dump(limit: u64, kinds: &[(&'static str, u64)], targets: Rows<'_>) -> DescriptorDump {
        let row = |&(kind, target, count): &(&'static str, &str, u64)| DescriptorCount {
            kind,
            target: target.to_owned(),
            count,
        };
        DescriptorDump {
            taken_at: Timestamp::UNIX_EPOCH,
            open: kinds.iter().map(|(_, count)| count).sum(),
            limit: Some(limit),
            kinds: kinds.iter().map(|&(kind, count)| row(&(kind, "", count))).collect(),
            targets: targets.iter().map(row).collect(),
            patterns: Vec::new(),
            directories: Vec::new(),
            losses: Losses::default(),
        }
    }

    fn leak(files: u64) -> DescriptorDump {
        dump(
            1024,
            &[("file", files), ("socket", 40), ("marple", 16)],
            &[("file", "/srv/left-open.log", files - 3), ("tcp", "at [::]:80, listening", 1)],
        )
    }

    const PEER: &str = "to 10.0.0.7:5432, established";

    #[test]
    fn names_target_of_most_descriptors() {
        let rule = |metric| IncidentFixture::new().reason(metric, 85.0, 80.0, "");
        let files = "/srv/left-open.log";
        let sockets =
            |to_peer| dump(1024, &[("socket", 600), ("file", 20)], &[("tcp", PEER, to_peer)]);
        let mixed = dump(10_000, &[("socket", 300), ("file", 290), ("pipe", 280)], &[]);
        let spread =
            dump(10_000, &[("socket", 24), ("file", 24), ("pipe", 24), ("x", 24), ("y", 9)], &[]);
        for (fixture, expected) in [
            (rule("fds.utilization").descriptors(0, leak(850)), format!("certain {files}")),
            (rule("fds").descriptors(0, leak(850)), format!("certain {files}")),
            (
                rule("fds").descriptors(0, leak(60)).descriptors(9, leak(850)),
                format!("certain {files}"),
            ),
            (rule("fds.rise").descriptors(0, leak(850)), format!("possible {files}")),
            (rule("fds").descriptors(0, sockets(500)), format!("certain tcp {PEER}")),
            (rule("fds").descriptors(0, sockets(290)), "certain socket".to_owned()),
            (rule("fds").descriptors(0, mixed), "possible socket".to_owned()),
            (rule("fds").descriptors(0, spread), String::new()),
            (rule("memory").descriptors(0, leak(850)), format!("likely {files}")),
            (rule("memory").descriptors(0, leak(700)), String::new()),
            (rule("fds"), String::new()),
            (
                rule("memory")
                    .vitals("fds", -2, &[90.0, 700.0])
                    .descriptors(0, dump(90_000, &[("file", 1100)], &[])),
                "possible file".to_owned(),
            ),
        ] {
            let found = summaries(&find(&fixture.evidence())).join(" ");
            assert_eq!(found.trim_start_matches("fd-growth "), expected);
        }
    }

    #[test]
    fn text_has_counts_growth_and_limit() {
        let rule = IncidentFixture::new().reason("fds.utilization", 85.0, 80.0, "");
        let text = |fixture: &IncidentFixture| find(&fixture.evidence()).remove(0).text;
        assert_eq!(
            text(&rule.clone().descriptors(0, leak(850))),
            "847 of 906 open descriptors (93 %) are files /srv/left-open.log; the limit is 1024"
        );
        assert_eq!(
            text(&rule.descriptors(0, leak(450)).descriptors(60, leak(850))),
            "400 more files /srv/left-open.log are open than 60 s before (100 % of the growth), \
             847 of 906 descriptors in total; the limit is 1024"
        );
    }

    #[test]
    fn pattern_and_protocol_are_named_if_no_target_is_most() {
        let rule = IncidentFixture::new().reason("fds", 85.0, 80.0, "");
        let mut parts = leak(850);
        parts.targets = Vec::new();
        let pattern = |count| DescriptorCount { kind: "file", target: "/tmp/#".into(), count };
        parts.patterns = vec![pattern(800)];
        let found = find(&rule.clone().descriptors(0, parts).evidence()).remove(0);
        assert_eq!(found.subject, "/tmp/#");
        let rows: Vec<String> =
            (0..30).map(|peer| format!("to 10.0.0.{peer}:80, established")).collect();
        let rows: Vec<_> = rows.iter().map(|target| ("tcp", &**target, 20)).collect();
        let sockets = dump(1024, &[("socket", 600), ("file", 20)], &rows);
        let found = find(&rule.descriptors(0, sockets).evidence()).remove(0);
        assert_eq!((&*found.subject, found.labels["kind"].as_str()), ("tcp", "tcp"));
        assert_eq!(found.numbers["descriptors"], 600.0);
    }

    #[test]
    fn target_missing_from_full_list_counts_as_its_last_row() {
        let rows: Vec<_> = (0..50).map(|row| format!("/srv/{row}")).collect();
        let rows: Vec<_> = rows.iter().map(|path| ("file", &**path, 10)).collect();
        let list = dump(1024, &[("file", 600)], &rows);
        let target = Target { kind: "file", target: "/srv/new" };
        let counts = |list| TargetList::new(list, "file").counts_of([target].iter());
        assert_eq!(counts(&list.targets).into_values().next(), Some(10));
        assert_eq!(counts(&list.targets[..49]).into_values().next(), Some(0));
    }
}
