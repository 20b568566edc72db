//! The numbers that a report shows in addition to the findings.

use std::time::Duration;

use super::evidence::IncidentEvidence;
use super::rankings::{FunctionRanking, TaskRanking, ThreadRanking};
use super::symbol::display_name;
use super::vitals_window::VitalsWindow;
use crate::model::{Loss, Losses};
use crate::symbols::is_application;

/// Maximum number of functions of a short stack. Six lines show the way from the cause to its
/// caller; the whole stack is in the finding.
const MAX_SHORT_STACK: usize = 6;

/// The vitals around the trigger, and the largest parts of the profiles and dumps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IncidentOverview<'a> {
    /// Time from the opening to the end. `None` while the incident is open.
    pub(crate) duration: Option<Duration>,
    /// `None` if there are no vitals.
    pub(crate) vitals: Option<VitalsWindow>,
    /// Growth of the heap by function, or its size by function if it did not grow.
    pub(crate) heap: Option<FunctionRanking<'a>>,
    /// CPU time by function.
    pub(crate) cpu: Option<FunctionRanking<'a>>,
    /// Places where threads wait.
    pub(crate) threads: Option<ThreadRanking<'a>>,
    /// Places where tasks wait.
    pub(crate) tasks: Option<TaskRanking<'a>>,
}

impl<'a> IncidentOverview<'a> {
    /// Computes the overview of an incident.
    pub(crate) fn new(evidence: &IncidentEvidence<'a>) -> Self {
        let IncidentEvidence { manifest, tables } = *evidence;
        let duration = manifest.closed.map(|closed| closed.duration_since(manifest.opened));
        Self {
            duration: duration.and_then(|duration| duration.try_into().ok()),
            vitals: VitalsWindow::new(manifest),
            heap: FunctionRanking::of_heap(&tables.heap),
            cpu: FunctionRanking::of_cpu(&tables.cpu),
            threads: ThreadRanking::new(&tables.threads),
            tasks: TaskRanking::new(&tables.tasks),
        }
    }
}

/// Losses with few causes: the largest ones, and the sum of the others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LossSummary<'a> {
    /// The largest first.
    pub(crate) largest: Vec<&'a Loss>,
    /// Number of other causes.
    pub(crate) other_causes: usize,
    /// Number of their losses.
    pub(crate) other_count: u64,
}

impl<'a> LossSummary<'a> {
    /// Summarizes `losses`, naming at most `max_causes` causes.
    pub(crate) fn new(losses: &'a Losses, max_causes: usize) -> Self {
        let mut largest: Vec<&Loss> = losses.iter().collect();
        largest.sort_by_key(|loss| std::cmp::Reverse(loss.count));
        let others = largest.split_off(max_causes.min(largest.len()));
        let other_count = others.iter().fold(0_u64, |sum, loss| sum.saturating_add(loss.count));
        Self { largest, other_causes: others.len(), other_count }
    }
}

/// Returns the innermost functions of the application in a stack, as shown, at most six. Repeated
/// names are shown once. Without a function of the application, returns the innermost functions.
pub(crate) fn short_stack(stack: &[String]) -> Vec<&str> {
    let names = |only_application: bool| {
        let names = stack.iter().filter(|name| !only_application || is_application(name));
        let mut names: Vec<&str> = names.map(|name| display_name(name)).collect();
        names.dedup();
        names.truncate(MAX_SHORT_STACK);
        names
    };
    let application = names(true);
    if application.is_empty() { names(false) } else { application }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_stack_has_innermost_functions_of_application() {
        let stack = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<String>>();
        let deep: Vec<String> = (0..20).map(|level| format!("orders::level{level}")).collect();
        for (names, expected) in [
            (
                stack(&["malloc", "orders::a::{{closure}}", "tokio::x", "orders::a", "orders::b"]),
                vec!["orders::a", "orders::b"],
            ),
            (stack(&["malloc", "std::x"]), vec!["malloc", "std::x"]),
            (stack(&[]), vec![]),
            (deep.clone(), deep[..6].iter().map(|name| &**name).collect()),
        ] {
            assert_eq!(short_stack(&names), expected);
        }
    }

    #[test]
    fn loss_summary_adds_up_small_causes() {
        let mut losses = Losses::default();
        for (cause, count) in [("a", 1), ("b", 9), ("c", 3), ("d", u64::MAX)] {
            losses.add(cause, count);
        }
        let summary = LossSummary::new(&losses, 2);
        let causes: Vec<&str> = summary.largest.iter().map(|loss| &*loss.cause).collect();
        assert_eq!(causes, ["d", "b"]);
        assert_eq!((summary.other_causes, summary.other_count), (2, 4));
        assert_eq!(LossSummary::new(&losses, 9).other_causes, 0);
        assert_eq!(LossSummary::new(&losses, 0).other_count, u64::MAX, "does not overflow");
    }
}
