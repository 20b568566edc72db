//! A thread dump reduced to groups of threads with the same stack.

use std::collections::BTreeMap;
use std::time::Duration;

use super::symbol::{FrameNames, Symbol};
use crate::model::ThreadDump;

/// Maximum number of groups, the largest first.
const MAX_GROUPS: usize = 200;

/// Maximum number of thread names of a group.
const MAX_NAMES: usize = 4;

/// The threads of a dump by stack, the largest group first. Without marple's own threads.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ThreadTable {
    /// Number of threads.
    pub(crate) total: u64,
    pub(crate) groups: Vec<ThreadGroup>,
}

/// Threads with the same stack and wait channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ThreadGroup {
    pub(crate) threads: u64,
    /// Number of them that the kernel was running.
    pub(crate) running: u64,
    /// Different names, at most four.
    pub(crate) names: Vec<String>,
    /// Kernel function in which they wait. Empty if unknown.
    pub(crate) wait_channel: String,
    /// CPU time since their start.
    pub(crate) cpu_time: Duration,
    /// Function names, innermost first. Empty if the stack was not read.
    pub(crate) stack: Vec<Symbol>,
}

impl ThreadTable {
    /// Reduces a dump with symbolized stacks.
    pub(crate) fn new(dump: &ThreadDump) -> Self {
        let mut names = FrameNames::new(&dump.profile);
        let mut groups: BTreeMap<(Vec<Symbol>, &str), ThreadGroup> = BTreeMap::new();
        let mut total = 0;
        for thread in &dump.threads {
            if thread.name.starts_with("marple") {
                continue;
            }
            total += 1;
            let stack = names.stack(thread.stack);
            let group =
                groups.entry((stack, &thread.wait_channel)).or_insert_with_key(|key| ThreadGroup {
                    threads: 0,
                    running: 0,
                    names: Vec::new(),
                    wait_channel: key.1.to_owned(),
                    cpu_time: Duration::ZERO,
                    stack: key.0.clone(),
                });
            group.threads += 1;
            group.running += u64::from(thread.state == 'R');
            group.cpu_time += thread.cpu_time;
            if group.names.len() < MAX_NAMES && !group.names.contains(&thread.name) {
                group.names.push(thread.name.clone());
            }
        }
        let mut groups: Vec<ThreadGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.threads));
        groups.truncate(MAX_GROUPS);
        Self { total, groups }
    }
}
