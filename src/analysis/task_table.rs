//! A task dump reduced to spawn sites and groups of tasks that wait at the same place.

use std::collections::BTreeMap;
use std::time::Duration;

use super::symbol::{FrameNames, Symbol};
use crate::model::{TaskDump, TaskState};

/// Maximum number of spawn sites and of groups, the largest first.
const MAX_ROWS: usize = 200;

/// The tasks of a dump, the largest number first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TaskTable {
    /// Number of tasks.
    pub(crate) total: u64,
    /// True if only some of the tasks were dumped: numbers by spawn site are exact, numbers of
    /// groups are estimates.
    pub(crate) is_sample: bool,
    pub(crate) sites: Vec<SpawnSite>,
    pub(crate) groups: Vec<TaskGroup>,
}

/// The tasks of one spawn site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SpawnSite {
    /// `FILE:LINE`
    pub(crate) location: String,
    /// Task name. Empty if the tasks are unnamed.
    pub(crate) name: String,
    pub(crate) tasks: u64,
}

/// Tasks of one spawn site that are in the same state and wait at the same place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskGroup {
    /// `FILE:LINE` of the spawn site.
    pub(crate) location: String,
    /// Task name. Empty if the tasks are unnamed.
    pub(crate) name: String,
    pub(crate) state: TaskState,
    pub(crate) tasks: u64,
    /// Longest time since the start of the last poll.
    pub(crate) longest_since_poll: Option<Duration>,
    /// Stack of the first leaf future, innermost function first. Empty if there is none.
    pub(crate) stack: Vec<Symbol>,
}

impl TaskTable {
    /// Reduces a dump with symbolized stacks.
    pub(crate) fn new(dump: &TaskDump) -> Self {
        let location = |at: crate::model::SpawnLocation| format!("{}:{}", at.file, at.line);
        let mut names = FrameNames::new(&dump.profile);
        let mut groups: BTreeMap<_, TaskGroup> = BTreeMap::new();
        for task in &dump.tasks {
            let stack = names.stack(task.stacks.first().copied());
            // The thread of a running task makes no group of its own.
            let key = (task.location.file, task.location.line, task.name, task.state.name(), stack);
            let group = groups.entry(key).or_insert_with_key(|key| TaskGroup {
                location: location(task.location),
                name: task.name.to_owned(),
                state: task.state,
                tasks: 0,
                longest_since_poll: None,
                stack: key.4.clone(),
            });
            group.tasks += task.weight;
            group.longest_since_poll = group.longest_since_poll.max(task.time_since_poll);
        }
        let mut groups: Vec<TaskGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.tasks));
        groups.truncate(MAX_ROWS);
        let mut sites: Vec<SpawnSite> = dump
            .sites
            .iter()
            .map(|site| SpawnSite {
                location: location(site.location),
                name: site.name.to_owned(),
                tasks: site.tasks,
            })
            .collect();
        sites.truncate(MAX_ROWS);
        Self { total: dump.total(), is_sample: dump.is_sample(), sites, groups }
    }
}
