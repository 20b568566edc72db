//! `thread-growth`: the function of most of the threads, if their number is the problem.

use std::collections::BTreeMap;

use super::Candidate;
use super::growth::{CountMetric, DumpPair, LargestPart, PartCounts, duration, percent};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::{ThreadGroup, ThreadTable, application_frame, display_name};
use crate::model::FindingKind;

const THREADS: CountMetric = CountMetric {
    name: "threads",
    level_reasons: &["threads"],
    rise_reasons: &["threads.rise"],
    min_rise: 100.0,
};

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    thread_growth(evidence).into_iter().collect()
}

fn thread_growth(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    let dumps = DumpPair::new(&evidence.tables.threads)?;
    let first = dumps.first.map(place_counts);
    let last = place_counts(dumps.last);
    let problem = THREADS.problem(evidence, dumps.last.taken, last.total)?;
    let largest = LargestPart::find(first.as_ref(), &last)?;
    let place = &largest.part;
    let is_there = |group: &&ThreadGroup| place_of(group).as_ref() == Some(place);
    let groups = dumps.last.table.groups.iter().filter(is_there);
    let group = groups.max_by_key(|group| group.threads)?;
    let names = group.names.join(", ");
    let (count, total, share) = (largest.count, largest.total, largest.share());
    let subject = place.subject();
    let what = match place {
        ThreadPlace::Function(function) => format!("in {function}"),
        ThreadPlace::Name(pattern) => format!("without a stack and with names like {pattern}"),
    };
    let text = match largest.earlier {
        Some(_) => format!(
            "{} more threads are {what} than {} before ({} of the growth), {count} of {total} in \
             total",
            largest.rise(),
            duration(dumps.seconds()),
            percent(share),
        ),
        None => format!("{count} of {total} threads ({}) are {what}", percent(share)),
    };
    let mut candidate =
        Candidate::new(FindingKind::ThreadGrowth, problem.confidence(&largest), subject)
            .text(text)
            .number("threads", count as f64)
            .number("total", total as f64)
            .label("thread", names)
            .stack(&group.stack)
            .share(share)
            .explains_reason(problem.has_rule)
            .evidence(&dumps.last.file, format!("less {}", dumps.last.file));
    if largest.earlier.is_some() {
        candidate = candidate.number("growth", largest.rise() as f64);
    }
    Some(candidate)
}

/// A set of threads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ThreadPlace {
    /// Innermost function of the application.
    Function(String),
    /// First name without a known stack, with each run of digits replaced by `#`.
    Name(String),
}

impl ThreadPlace {
    fn subject(&self) -> &str {
        match self {
            Self::Function(text) | Self::Name(text) => text,
        }
    }
}

/// Returns `None` for threads without a stack if their names have different patterns.
fn place_of(group: &ThreadGroup) -> Option<ThreadPlace> {
    if let Some(function) = application_frame(&group.stack) {
        return Some(ThreadPlace::Function(display_name(function).to_owned()));
    }
    let mut patterns = group.names.iter().map(|name| mask_digits(name));
    let first = patterns.next()?;
    patterns.all(|pattern| pattern == first).then_some(ThreadPlace::Name(first))
}

fn mask_digits(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for character in name.chars() {
        if !character.is_ascii_digit() {
            pattern.push(character);
        } else if !pattern.ends_with('#') {
            pattern.push('#');
        }
    }
    pattern
}

fn place_counts(dump: &Tabulated<ThreadTable>) -> PartCounts<ThreadPlace> {
    let mut parts = BTreeMap::new();
    for group in &dump.table.groups {
        if let Some(place) = place_of(group) {
            *parts.entry(place).or_default() += group.threads;
        }
    }
    PartCounts { total: dump.table.total, parts }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{IncidentFixture, summaries, thread_table};
    use super::*;

    const IDLE: &[&str] = &["epoll_wait", "tokio::runtime::io::driver::Driver::turn"];
    const PARSE: &[&str] = &["read", "std::fs::File::read", "orders::parse", "orders::start"];
    const MAIN: &[&str] = &["orders::main"];

    #[test]
    fn names_function_of_most_threads() {
        let dump = || thread_table(&[(400, PARSE), (8, IDLE), (1, MAIN)]);
        let small = || thread_table(&[(3, PARSE), (8, IDLE), (1, MAIN)]);
        let mixed = || thread_table(&[(60, PARSE), (55, IDLE), (50, MAIN)]);
        let spread = || thread_table(&[(20, PARSE), (20, IDLE), (20, MAIN), (40, &["orders::x"])]);
        let rule = |metric| IncidentFixture::new().reason(metric, 390.0, 100.0, "");
        let doubled = IncidentFixture::new().vitals("threads", -3, &[20.0, 100.0, 300.0, 420.0]);
        for (fixture, expected) in [
            (rule("threads").threads(0, None, dump()), "certain orders::parse"),
            (rule("threads.rise").threads(0, None, dump()), "possible orders::parse"),
            (
                rule("threads.rise").vitals("threads", 0, &[409.0]).threads(0, None, dump()),
                "certain orders::parse",
            ),
            (
                rule("threads.rise").threads(0, None, small()).threads(9, None, dump()),
                "certain orders::parse",
            ),
            (rule("threads").threads(0, None, mixed()), "possible orders::parse"),
            (rule("threads").threads(0, None, spread()), "possible orders::x"),
            (rule("threads").threads(0, Some("stall"), dump()), ""),
            (rule("threads"), ""),
            (rule("memory").threads(0, None, dump()), ""),
            (rule("memory").threads(0, None, small()).threads(9, None, dump()), ""),
            (doubled.threads(0, None, dump()), "possible orders::parse"),
        ] {
            let found = summaries(&find(&fixture.evidence())).join(" ");
            assert_eq!(found.trim_start_matches("thread-growth "), expected);
        }
    }

    #[test]
    fn text_has_numbers_of_growth() {
        let fixture = IncidentFixture::new()
            .reason("threads.rise", 400.0, 100.0, "")
            .threads(0, None, thread_table(&[(3, PARSE), (8, IDLE)]))
            .threads(30, None, thread_table(&[(403, PARSE), (9, IDLE)]));
        let [found] = &find(&fixture.evidence())[..] else { panic!("no finding") };
        assert_eq!(
            found.text,
            "400 more threads are in orders::parse than 30 s before (100 % of the growth), 403 of \
             412 in total"
        );
        assert!(found.explains_reason);
        assert_eq!(found.numbers["growth"], 400.0);
        assert_eq!(found.evidence[0].command, "less orders_eu-1.002.threads.txt");
    }

    #[test]
    fn threads_without_stack_are_named_by_their_name() {
        let found = |names: &[&str]| {
            let mut table = thread_table(&[(300, &[]), (4, IDLE)]);
            table.groups[0].names = names.iter().map(|&name| name.to_owned()).collect();
            let fixture =
                IncidentFixture::new().reason("threads", 304.0, 100.0, "").threads(0, None, table);
            find(&fixture.evidence()).pop()
        };
        let pool = found(&["db-pool-1", "db-pool-17"]).unwrap();
        assert_eq!(pool.subject, "db-pool-#");
        assert_eq!(
            pool.text,
            "300 of 304 threads (99 %) are without a stack and with names like db-pool-#"
        );
        assert!(found(&["db-pool-1", "http-1"]).is_none(), "different threads in one group");
    }
}
