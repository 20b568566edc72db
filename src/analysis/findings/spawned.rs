//! `task-growth` of tasks that are not in the task dump: the functions that spawned them, from the
//! heap profile.
//!
//! A task dump lists the tasks of `marple::task`. Tasks of plain `tokio::spawn` are only counted,
//! but the heap profile has the stack that allocated each of them.

use std::collections::BTreeMap;

use super::tasks::{TASKS, total_at};
use super::{Candidate, confidence_above_zero};
use crate::analysis::evidence::IncidentEvidence;
use crate::analysis::{ProfileRow, Symbol, application_frame, display_name};
use crate::base::Bytes;
use crate::model::{Confidence, FindingKind};

/// Parts of the names of functions that allocate a task.
const TASK_ALLOCATORS: &[&str] = &[
    "tokio::runtime::task::core::Cell",
    "tokio::runtime::task::raw::RawTask",
    "tokio::runtime::task::new_task",
    "tokio::runtime::task::list::",
    "tokio::task::spawn",
    "tokio::task::join_set::",
];

/// Share of the tasks in the dump from which it shows the cause itself.
const MIN_DUMPED_SHARE: f64 = 0.5;

/// The memory of the tasks that one function spawned.
#[derive(Debug, Default)]
struct SpawnedTasks {
    bytes: i64,
    variance: f64,
    largest: i64,
    stack: Vec<Symbol>,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    main_spawner(evidence).into_iter().collect()
}

fn main_spawner(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    let heap = evidence.tables.heap.last()?;
    let reasons = [TASKS.level_reasons, TASKS.rise_reasons].concat();
    if !evidence.has_reason(&reasons) {
        return None;
    }
    let tasks = TASKS.value_at(evidence, heap.taken)?;
    let listed = evidence.tables.tasks.last().map_or(0.0, |dump| {
        let share = dump.table.total as f64 / total_at(evidence, dump).max(1) as f64;
        share.min(1.0)
    });
    if listed >= MIN_DUMPED_SHARE {
        return None;
    }
    let mut spawned: BTreeMap<&str, SpawnedTasks> = BTreeMap::new();
    for row in heap.table.rows.iter().filter(|row| allocates_task(row)) {
        let Some(function) = application_frame(&row.stack) else { continue };
        let sum = spawned.entry(display_name(function)).or_default();
        sum.bytes += row.value;
        sum.variance += row.variance;
        if row.value > sum.largest {
            sum.largest = row.value;
            sum.stack.clone_from(&row.stack);
        }
    }
    let total: i64 = spawned.values().map(|spawned| spawned.bytes).sum();
    let (subject, top) = spawned.into_iter().max_by_key(|(_, spawned)| spawned.bytes)?;
    // Half of the memory of all tasks would refute "most of the tasks".
    let lead = (2 * top.bytes - total) as f64;
    let confidence = confidence_above_zero(lead, top.variance)?.min(Confidence::Likely);
    let share = top.bytes as f64 / total as f64;
    let bytes = Bytes(top.bytes.unsigned_abs());
    let text = format!(
        "{:.0} % of the memory of all {tasks:.0} tasks, {bytes}, was allocated where {subject} \
         spawns tasks; they are not in the task dump, because they were not spawned by marple::task",
        share * 100.0,
    );
    Some(
        Candidate::new(FindingKind::TaskGrowth, confidence, subject)
            .text(text)
            .number("tasks", tasks)
            .number("bytes", top.bytes as f64)
            .number("standard_error", top.variance.sqrt())
            .share(share)
            .stack(&top.stack)
            .explains_reason(true)
            .evidence(
                &heap.file,
                format!("go tool pprof -top -sample_index=inuse_space {}", heap.file),
            ),
    )
}

/// Returns true if a row is the memory of tasks, not memory that a task allocated: the allocating
/// functions of tokio are further inside than the application.
fn allocates_task(row: &ProfileRow) -> bool {
    let Some(application) = application_frame(&row.stack) else { return false };
    let inner = row.stack.iter().take_while(|name| *name != application);
    let mut inner = inner.map(|name| &**name);
    inner.any(|name| TASK_ALLOCATORS.iter().any(|part| name.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{IncidentFixture, profile_table};
    use super::*;

    const SPAWN: &[&str] = &[
        "alloc::boxed::Box<T>::new",
        "tokio::runtime::task::core::Cell<T,S>::new",
        "tokio::task::spawn::spawn",
    ];

    fn stack_of(spawner: &'static str) -> Vec<&'static str> {
        [SPAWN, &[spawner, "tokio::runtime::task::raw::poll"]].concat()
    }

    #[test]
    fn names_the_function_that_spawned_most_tasks() {
        let leak = stack_of("orders::deliver");
        let other = stack_of("orders::accept");
        // Memory that a task allocated.
        let payload: &[&str] = &["malloc", "orders::load", "tokio::runtime::task::raw::poll"];
        for (rows, subject) in [
            (
                vec![(&leak[..], 60 << 20), (&other[..], 1 << 20), (payload, 99 << 20)],
                Some("orders::deliver"),
            ),
            (vec![(&leak[..], 6 << 20), (&other[..], 6 << 20)], None),
            (vec![(payload, 99 << 20)], None),
        ] {
            for (metric, expected) in [("tasks.rise", subject), ("memory", None)] {
                let fixture = IncidentFixture::new()
                    .reason(metric, 5000.0, 1000.0, "too many")
                    .vitals("tasks", -5, &[100.0, 1000.0, 5000.0, 6000.0, 7000.0, 8000.0])
                    .heap(0, profile_table(1000.0, &rows));
                let found = main_spawner(&fixture.evidence());
                assert_eq!(found.map(|found| found.subject).as_deref(), expected, "{rows:?}");
            }
        }
    }
}
