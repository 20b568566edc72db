//! Sampling of tasks for a dump of very many.
//!
//! 150,000 tasks take 22 MB of JSON and most of a second of the workers' time, and nearly all wait
//! at the same place. So of more than 10,000 tasks only a sample is listed. The first 64 tasks of
//! each spawn site are always listed, so that rare tasks are included: in a pile-up the two tasks
//! that hold the lock are the interesting ones. Of the others, one in `ceil(tasks / 10,000)` is
//! listed. All tasks are counted by site. The weight of a row is its share of the site's tasks, so
//! the weights add up to the number of tasks.

use std::collections::HashMap;

use crate::model::{SiteCount, SpawnLocation, TaskRow};

/// Maximum number of tasks that are all listed.
const MAX_UNSAMPLED_TASKS: usize = 10_000;

/// Number of tasks of a spawn site that are always listed.
const MIN_LISTED_PER_SITE: u64 = 64;

/// Maximum number of rows of a dump: 3 MiB with repeated stacks, and as much JSON.
pub(super) const MAX_ROWS: usize = 20_000;

/// A spawn site and the name given to its tasks.
type SiteKey = (SpawnLocation, &'static str);

/// Selects and counts the tasks of a dump.
#[derive(Debug)]
pub(super) struct TaskSampling {
    one_in: u64,
    rows: usize,
    sites: HashMap<SiteKey, u64>,
    /// Task ids of the runtimes, with repetitions.
    task_ids: Vec<u64>,
}

impl TaskSampling {
    /// Creates a sampling of about `tasks` tasks.
    pub(super) fn for_tasks(tasks: usize) -> Self {
        let one_in = tasks.div_ceil(MAX_UNSAMPLED_TASKS).max(1) as u64;
        Self { one_in, rows: 0, sites: HashMap::new(), task_ids: Vec::new() }
    }

    /// Counts a task. Returns `true` if it is listed.
    pub(super) fn select(
        &mut self,
        spawned: SpawnLocation,
        name: &'static str,
        id: Option<u64>,
    ) -> bool {
        self.task_ids.extend(id);
        let count = self.sites.entry((spawned, name)).or_default();
        let is_due =
            self.one_in == 1 || *count < MIN_LISTED_PER_SITE || count.is_multiple_of(self.one_in);
        *count += 1;
        // The first task of a site is always listed: there are at most 4,096 sites.
        let is_listed = is_due && (self.rows < MAX_ROWS || *count == 1);
        self.rows += usize::from(is_listed);
        is_listed
    }

    /// Removes a task that was listed and has ended.
    pub(super) fn remove_ended(&mut self, spawned: SpawnLocation, name: &'static str) {
        if let Some(count) = self.sites.get_mut(&(spawned, name)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Sets the weight of each row to its share of its site's tasks.
    pub(super) fn set_weights(&self, rows: &mut [TaskRow]) {
        let mut remaining: HashMap<SiteKey, SampleShare> = HashMap::new();
        for row in rows.iter() {
            remaining.entry((row.location, row.name)).or_default().rows += 1;
        }
        for (key, share) in &mut remaining {
            share.tasks = self.sites.get(key).copied().unwrap_or(share.rows);
        }
        for row in rows {
            let Some(share) = remaining.get_mut(&(row.location, row.name)) else { continue };
            row.weight = share.tasks.div_ceil(share.rows.max(1));
            share.tasks -= row.weight.min(share.tasks);
            share.rows -= 1;
        }
    }

    /// Returns the number of runtime tasks counted. Futures wrapped inside of a task share its id.
    pub(super) fn runtime_tasks(&mut self) -> u64 {
        self.task_ids.sort_unstable();
        self.task_ids.dedup();
        self.task_ids.len() as u64
    }

    /// Returns the number of tasks of each site, largest first.
    pub(super) fn into_sites(self) -> Vec<SiteCount> {
        let site = |((spawned, name), tasks)| SiteCount { location: spawned, name, tasks };
        let mut sites: Vec<SiteCount> = self.sites.into_iter().map(site).collect();
        sites.retain(|site| site.tasks > 0);
        let sort_key = |site: &SiteCount| {
            (std::cmp::Reverse(site.tasks), site.location.file, site.location.line, site.name)
        };
        sites.sort_by_key(sort_key);
        sites
    }
}

/// The tasks and rows of a site that are still to be distributed.
#[derive(Clone, Copy, Debug, Default)]
struct SampleShare {
    tasks: u64,
    rows: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TaskState;

    fn row(spawned: SpawnLocation) -> TaskRow {
        TaskRow {
            number: 0,
            id: None,
            name: "",
            location: spawned,
            state: TaskState::NotDumped,
            time_since_poll: None,
            stacks: Vec::new(),
            omitted_stacks: 0,
            weight: 1,
        }
    }

    #[test]
    fn more_than_10000_tasks_are_sampled_and_rare_sites_listed() {
        for (tasks, listed) in [(10_000, 10_000..=10_000), (150_000, 9_900..=10_200)] {
            let many = SpawnLocation { file: "src/pile.rs", line: 1 };
            let few = SpawnLocation { file: "src/locks.rs", line: 2 };
            let mut sampling = TaskSampling::for_tasks(tasks);
            let mut rows = Vec::new();
            for n in 0..tasks as u64 {
                let spawned = if n == 777 || n == 140_001 { few } else { many };
                if sampling.select(spawned, "", Some(n / 2)) {
                    rows.push(row(spawned));
                }
            }
            assert!(listed.contains(&rows.len()), "{tasks}: {}", rows.len());
            let of_few = if tasks > 140_000 { 2 } else { 1 };
            assert_eq!(rows.iter().filter(|row| row.location == few).count(), of_few);
            sampling.set_weights(&mut rows);
            assert_eq!(rows.iter().map(|row| row.weight).sum::<u64>(), tasks as u64);
            let max_weight = rows.iter().map(|row| row.weight).max();
            assert!(
                max_weight.is_some_and(|most| most <= tasks as u64 / 9_900 + 1),
                "{max_weight:?}"
            );
            assert_eq!(sampling.runtime_tasks(), tasks as u64 / 2);
            sampling.remove_ended(many, "");
            let sites = sampling.into_sites();
            assert_eq!(sites[0].tasks, (tasks - of_few - 1) as u64);
            assert_eq!((sites[1].location, sites[1].tasks), (few, of_few as u64));
        }
    }

    #[test]
    fn row_count_is_bounded_for_many_sites() {
        let mut sampling = TaskSampling::for_tasks(1_000_000);
        let site = |n: u32| SpawnLocation { file: "src/many.rs", line: n % 4000 };
        let listed = (0..1_000_000).filter(|&n| sampling.select(site(n), "", None)).count();
        assert!((20_000..=24_100).contains(&listed), "{listed}");
    }
}
