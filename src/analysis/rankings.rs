//! The largest parts of profiles and dumps, a few rows each.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::evidence::Tabulated;
use super::profile_table::{ProfileTable, SubjectTotal};
use super::symbol::{Symbol, application_frame, display_name};
use super::task_table::TaskTable;
use super::thread_table::ThreadTable;
use crate::model::TaskState;

/// Number of rows: what a person compares at a glance. The files have the others.
const MAX_ROWS: usize = 5;

/// Maximum number of thread names of a row.
const MAX_NAMES: usize = 3;

/// Phase of the dump of a single, stalled thread, which says nothing about the others.
const STALL_PHASE: &str = "stall";

/// The file behind a ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RankingSource<'a> {
    pub(crate) file: &'a str,
    /// Wall-clock time at which the evidence was taken.
    pub(crate) taken: Timestamp,
}

/// The functions of the application with the largest values of a profile.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FunctionRanking<'a> {
    pub(crate) source: RankingSource<'a>,
    /// The earlier profile whose values are subtracted, or `None` for the values themselves.
    pub(crate) base: Option<RankingSource<'a>>,
    /// Sum of all functions, in bytes or nanoseconds.
    pub(crate) total: i64,
    pub(crate) rows: Vec<FunctionValue>,
}

/// The value of one function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FunctionValue {
    pub(crate) function: String,
    /// Bytes or nanoseconds.
    pub(crate) value: i64,
    pub(crate) standard_error: f64,
    /// Part of the total, between 0 and 1. `None` for a difference, in which the other functions
    /// can be negative.
    pub(crate) share: Option<f64>,
}

/// The places at which most threads wait.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ThreadRanking<'a> {
    pub(crate) source: RankingSource<'a>,
    /// Number of threads, including those that run.
    pub(crate) total: u64,
    pub(crate) rows: Vec<ThreadWait>,
}

/// Threads that wait at one place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ThreadWait {
    pub(crate) threads: u64,
    /// Innermost function of the application. Empty if the stack is unknown.
    pub(crate) function: String,
    /// Kernel function in which they wait. Empty if unknown.
    pub(crate) wait_channel: String,
    /// Different names, at most three.
    pub(crate) names: Vec<String>,
}

/// The places at which most tasks wait.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskRanking<'a> {
    pub(crate) source: RankingSource<'a>,
    pub(crate) total: u64,
    /// True if the numbers of the rows are estimates, because only some tasks were dumped.
    pub(crate) is_estimate: bool,
    pub(crate) rows: Vec<TaskWait>,
}

/// Tasks that wait at one place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskWait {
    pub(crate) tasks: u64,
    /// `FILE:LINE` of the spawn site.
    pub(crate) site: String,
    /// Task name. Empty if the tasks are unnamed.
    pub(crate) name: String,
    /// [`TaskState::name`]
    pub(crate) state: &'static str,
    /// Innermost function of the application. Empty if the stack is unknown.
    pub(crate) function: String,
}

impl<'a> RankingSource<'a> {
    fn of<T>(tabulated: &'a Tabulated<T>) -> Self {
        Self { file: &tabulated.file, taken: tabulated.taken }
    }
}

impl<'a> FunctionRanking<'a> {
    /// Ranks the growth between the first and the last heap profile. Ranks the last profile itself
    /// if it is the only one, or if the heap did not grow.
    pub(super) fn of_heap(tables: &'a [Tabulated<ProfileTable>]) -> Option<Self> {
        let (first, last) = (tables.first()?, tables.last()?);
        let total = last.table.total - first.table.total;
        if tables.len() < 2 || total <= 0 {
            return Self::of_level(last);
        }
        let mut growth = last.table.growth_since(&first.table);
        growth.retain(|function| function.value > 0);
        let base = Some(RankingSource::of(first));
        Some(Self { source: RankingSource::of(last), base, total, rows: rows(growth, None) })
    }

    /// Ranks the last CPU profile of a capture, or the look-back profile if there is none.
    pub(super) fn of_cpu(tables: &'a [Tabulated<ProfileTable>]) -> Option<Self> {
        let capture = tables.iter().rfind(|tabulated| tabulated.phase.is_none());
        Self::of_level(capture.or(tables.last())?)
    }

    fn of_level(tabulated: &'a Tabulated<ProfileTable>) -> Option<Self> {
        let table = &tabulated.table;
        let source = RankingSource::of(tabulated);
        let rows = rows(table.by_subject(), Some(table.total));
        (!rows.is_empty()).then_some(Self { source, base: None, total: table.total, rows })
    }
}

fn rows(functions: Vec<SubjectTotal>, whole: Option<i64>) -> Vec<FunctionValue> {
    let row = |function: SubjectTotal| FunctionValue {
        share: whole.filter(|&whole| whole > 0).map(|whole| function.value as f64 / whole as f64),
        function: function.subject,
        value: function.value,
        standard_error: function.variance.max(0.0).sqrt(),
    };
    functions.into_iter().take(MAX_ROWS).map(row).collect()
}

impl<'a> ThreadRanking<'a> {
    pub(super) fn new(tables: &'a [Tabulated<ThreadTable>]) -> Option<Self> {
        let of_all =
            |tabulated: &&Tabulated<ThreadTable>| tabulated.phase.as_deref() != Some(STALL_PHASE);
        let tabulated = tables.iter().rfind(of_all)?;
        let mut waits: BTreeMap<(&str, &str), ThreadWait> = BTreeMap::new();
        for group in &tabulated.table.groups {
            let waiting = group.threads.saturating_sub(group.running);
            if waiting == 0 {
                continue;
            }
            let key = (place_of(&group.stack), &*group.wait_channel);
            let wait = waits.entry(key).or_insert_with_key(|key| ThreadWait {
                threads: 0,
                function: key.0.to_owned(),
                wait_channel: key.1.to_owned(),
                names: Vec::new(),
            });
            wait.threads += waiting;
            for name in &group.names {
                if wait.names.len() < MAX_NAMES && !wait.names.contains(name) {
                    wait.names.push(name.clone());
                }
            }
        }
        let mut rows: Vec<ThreadWait> = waits.into_values().collect();
        rows.sort_by_key(|wait| std::cmp::Reverse(wait.threads));
        rows.truncate(MAX_ROWS);
        let source = RankingSource::of(tabulated);
        (!rows.is_empty()).then_some(Self { source, total: tabulated.table.total, rows })
    }
}

impl<'a> TaskRanking<'a> {
    pub(super) fn new(tables: &'a [Tabulated<TaskTable>]) -> Option<Self> {
        let tabulated = tables.last()?;
        let table = &tabulated.table;
        let mut waits: BTreeMap<_, TaskWait> = BTreeMap::new();
        for group in &table.groups {
            if matches!(group.state, TaskState::Running { .. }) {
                continue;
            }
            let function = place_of(&group.stack);
            let key = (&*group.location, &*group.name, group.state.name(), function);
            let wait = waits.entry(key).or_insert_with(|| TaskWait {
                tasks: 0,
                site: group.location.clone(),
                name: group.name.clone(),
                state: group.state.name(),
                function: function.to_owned(),
            });
            wait.tasks += group.tasks;
        }
        let mut rows: Vec<TaskWait> = waits.into_values().collect();
        rows.sort_by_key(|wait| std::cmp::Reverse(wait.tasks));
        rows.truncate(MAX_ROWS);
        let source = RankingSource::of(tabulated);
        let is_estimate = table.is_sample;
        (!rows.is_empty()).then_some(Self { source, total: table.total, is_estimate, rows })
    }
}

/// Returns the name under which the innermost function of the application is shown. Empty for an
/// empty stack.
fn place_of(stack: &[Symbol]) -> &str {
    application_frame(stack).map_or("", |name| display_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{ProfileRow, TaskGroup, ThreadGroup};

    fn tabulated<T>(file: &str, phase: Option<&str>, table: T) -> Tabulated<T> {
        let phase = phase.map(str::to_owned);
        Tabulated { file: file.to_owned(), phase, taken: Timestamp::UNIX_EPOCH, table }
    }

    fn stack(names: &[&str]) -> Vec<Symbol> {
        names.iter().map(|&name| name.into()).collect()
    }

    fn profile(rows: &[(&str, i64)]) -> ProfileTable {
        let row = |&(name, value): &(&str, i64)| ProfileRow {
            stack: stack(&["malloc", name]),
            value,
            variance: 4.0,
        };
        let rows: Vec<ProfileRow> = rows.iter().map(row).collect();
        let total = rows.iter().map(|row| row.value).sum();
        ProfileTable { total, rows, ..ProfileTable::default() }
    }

    #[test]
    fn heap_is_ranked_by_growth_if_it_grew() {
        let first = profile(&[("orders::a", 10), ("orders::b", 50)]);
        let last = profile(&[("orders::a", 90), ("orders::b", 40)]);
        let tables = [tabulated("1", None, first), tabulated("2", None, last)];
        let growth = FunctionRanking::of_heap(&tables).unwrap();
        assert_eq!((growth.total, growth.base.map(|base| base.file)), (70, Some("1")));
        assert_eq!(growth.rows.len(), 1, "{growth:?}");
        let row = &growth.rows[0];
        assert_eq!((&*row.function, row.value, row.share), ("orders::a", 80, None));
        assert_eq!(row.standard_error, 8.0_f64.sqrt());

        for tables in [&tables[1..], &[tables[1].clone(), tables[0].clone()]] {
            let level = FunctionRanking::of_heap(tables).unwrap();
            assert_eq!(level.base, None);
            assert!(level.rows[0].share.is_some(), "{level:?}");
        }
        assert_eq!(FunctionRanking::of_heap(&[]), None);
    }

    #[test]
    fn cpu_is_ranked_from_capture_before_lookback() {
        let table = profile(&[("orders::a", 30), ("orders::b", 10)]);
        let lookback = tabulated("1", Some("lookback"), table.clone());
        let tables = [lookback, tabulated("2", None, table)];
        let ranking = FunctionRanking::of_cpu(&tables).unwrap();
        assert_eq!((ranking.source.file, ranking.rows[0].share), ("2", Some(0.75)));
        assert_eq!(FunctionRanking::of_cpu(&tables[..1]).unwrap().source.file, "1");
        assert_eq!(FunctionRanking::of_cpu(&[]), None);
    }

    #[test]
    fn threads_are_ranked_by_place_without_those_that_run() {
        let group = |threads, running, names: &[&str]| ThreadGroup {
            threads,
            running,
            names: vec![format!("t{threads}")],
            wait_channel: "futex".to_owned(),
            cpu_time: Default::default(),
            stack: stack(names),
        };
        let groups = vec![
            group(9, 9, &["orders::spin"]),
            group(5, 1, &["futex_wait", "orders::lock"]),
            group(3, 0, &["syscall", "orders::lock"]),
            group(1, 0, &[]),
        ];
        let all = tabulated("1", None, ThreadTable { total: 18, groups });
        let stall = tabulated("2", Some("stall"), ThreadTable::default());
        let tables = [all, stall];
        let ranking = ThreadRanking::new(&tables).unwrap();
        assert_eq!((ranking.source.file, ranking.total), ("1", 18));
        let rows: Vec<_> = ranking.rows.iter().map(|row| (row.threads, &*row.function)).collect();
        assert_eq!(rows, [(7, "orders::lock"), (1, "")]);
        assert_eq!(ranking.rows[0].names, ["t5", "t3"]);
    }

    #[test]
    fn tasks_are_ranked_by_spawn_site_and_place() {
        let group = |tasks, state, names: &[&str]| TaskGroup {
            location: "src/main.rs:7".to_owned(),
            name: "conn".to_owned(),
            state,
            tasks,
            longest_since_poll: None,
            stack: stack(names),
        };
        let groups = vec![
            group(9, TaskState::Running { tid: 1 }, &["orders::spin"]),
            group(5, TaskState::Waiting, &["tokio::read", "orders::read"]),
            group(2, TaskState::Waiting, &["tokio::peek", "orders::read"]),
            group(1, TaskState::Scheduled, &[]),
        ];
        let table = TaskTable { total: 17, is_sample: true, sites: Vec::new(), groups };
        let tables = [tabulated("1", None, table)];
        let ranking = TaskRanking::new(&tables).unwrap();
        assert_eq!((ranking.total, ranking.is_estimate), (17, true));
        let rows: Vec<_> =
            ranking.rows.iter().map(|row| (row.tasks, row.state, &*row.function)).collect();
        assert_eq!(rows, [(7, "waiting", "orders::read"), (1, "scheduled", "")]);
    }
}
