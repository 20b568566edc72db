//! Eviction of incidents and pruning of their files when a limit is exceeded.
//!
//! An incident is judged by its name, its age and the sizes of its files. Its manifest must exist
//! but need not be readable. Its age is the observed time since it opened (`ages`), so a wall clock
//! that is set ahead expires nothing.
//!
//! Expired incidents are evicted first, oldest first, except the first and the last of each rule.
//! The order for the other limits:
//!
//! 1. Open incidents are never evicted.
//! 2. If bytes are short, files between the first and the last of their form are pruned first
//!    (`prune`).
//! 3. Then the oldest incident of the rule with the highest usage is evicted. Usage is counted in
//!    incidents or in bytes, as the limit is.
//! 4. The first and the last incident of each rule are evicted last.
//!
//! The alternative is to evict the oldest incident of all rules. A rule that fires twice an hour
//! would then displace the one incident of last week.
//!
//! A limit of a rule evicts incidents of that rule only.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use super::dir::{Dir, is_dir};
use super::error::{Error, StoreLimit};
use super::evicted::EvictedIncident;
use super::names::{
    EVICTED_PREFIX, IncidentName, MANIFEST_FILE, is_silly_renamed, sanitize_incident_name,
};
use crate::base::{Bytes, IncidentId};
use crate::store::entries::{finished_files, foreign_entry};
use crate::store::prune::{prune_artifacts, removable_files};
use crate::store::space::{BlockedRemoval, PrunedArtifacts, RetentionReport, SpaceRequest};
use crate::store::usage::{LimitExceeded, SpaceUsage, StoreInner};

/// A limit on the evicted incidents waiting to be logged, far above what one command evicts.
const MAX_UNREPORTED: usize = 1000;

struct StoredIncident {
    file_name: String,
    name: IncidentName,
    bytes: u64,
    /// Files that can be pruned, in the order of pruning.
    removable: Vec<(String, u64)>,
}

enum RetentionStep {
    Evict(usize, StoreLimit),
    /// Prune files of the incident until this many bytes are freed or no prunable file is left.
    Prune(usize, StoreLimit, u64),
}

impl StoreInner {
    /// Prunes and evicts closed incidents, the least valuable first, until every limit holds with
    /// `request` added. If bytes are short and evicting all of them would not free enough, it
    /// deletes nothing.
    pub(super) fn free_space(
        &self,
        usage: &mut SpaceUsage,
        request: SpaceRequest,
    ) -> RetentionReport {
        let mut report = RetentionReport::default();
        let mut incidents = match scan_incidents(&self.root) {
            Ok(incidents) => incidents,
            Err(error) => {
                report.errors.push(error);
                return report;
            }
        };
        self.recount(usage, &incidents);
        let anchor = self.clock.anchor();
        let now = anchor.wall;
        let known: Vec<_> =
            incidents.iter().map(|incident| (incident.name.id, incident.name.opened)).collect();
        usage.ages.update(&self.root, anchor, &known);
        // Sorted by age, not by name: an incident opened while the clock was ahead would count as
        // the last of its rule for years.
        incidents.sort_by_key(|incident| Reverse(usage.ages.age(incident.name.id)));
        let mut blocked = HashSet::new();
        while let Some(step) = self.next_step(usage, &incidents, &blocked, request) {
            match step {
                RetentionStep::Evict(at, limit) => {
                    match evict(&self.root, &incidents[at].file_name) {
                        Ok(None) => {
                            let StoredIncident { name, bytes, .. } = incidents.remove(at);
                            usage.evicted_count += 1;
                            let id = name.id;
                            let age = usage.ages.age(name.id);
                            let bytes = Bytes(bytes);
                            let evicted =
                                EvictedIncident { id, bytes, limit, rule: name.name, age };
                            if usage.unreported_evictions.len() >= MAX_UNREPORTED {
                                usage.unreported_evictions.remove(0);
                            }
                            usage.unreported_evictions.push(evicted.clone());
                            report.evicted.push(evicted);
                        }
                        Ok(Some(path)) => {
                            blocked.insert(incidents[at].name.id);
                            report.blocked.push(BlockedRemoval { path });
                        }
                        Err(error) => {
                            blocked.insert(incidents[at].name.id);
                            report.errors.push(error);
                        }
                    }
                }
                RetentionStep::Prune(at, limit, missing) => {
                    let incident = &mut incidents[at];
                    let removable = std::mem::take(&mut incident.removable);
                    match prune_artifacts(
                        &self.root,
                        &incident.file_name,
                        &removable,
                        limit,
                        missing,
                        now,
                    ) {
                        Ok(Some((files, bytes))) => {
                            incident.bytes = bytes;
                            incident.removable = removable;
                            incident.removable.retain(|(name, _)| !files.contains(name));
                            let id = incident.name.id;
                            usage.pruned_count += files.len() as u64;
                            report.pruned.push(PrunedArtifacts { id, files, limit });
                        }
                        // The incident itself can still be evicted; if not, `evict` reports the
                        // foreign file.
                        Ok(None) => {}
                        Err(error) => report.errors.push(error),
                    }
                }
            }
            let stored_before = usage.stored_bytes;
            self.recount(usage, &incidents);
            let freed = stored_before.saturating_sub(usage.stored_bytes);
            usage.memory_left = usage.memory_left.map(|left| left.saturating_add(freed));
        }
        report.incidents = incidents.len();
        report.bytes = Bytes(usage.stored_bytes);
        report
    }

    /// Returns the bytes that can still be written to the open incident `id` after every possible
    /// eviction, and the tightest limit.
    pub(super) fn available_space(&self, id: IncidentId) -> Result<(StoreLimit, Bytes), Error> {
        let mut usage = self.lock_usage();
        let incidents = scan_incidents(&self.root)?;
        self.recount(&mut usage, &incidents);
        let Some(open) = usage.open_incidents.get(&id) else {
            return Ok((StoreLimit::IncidentBytes, Bytes(0)));
        };
        let own = incidents.iter().find(|incident| incident.name.id == id);
        let removable_bytes: u64 =
            own.map_or(0, |incident| incident.removable.iter().map(|(_, bytes)| bytes).sum());
        let settings = &usage.settings;
        let remaining = |max: Bytes, used: u64| max.get().saturating_sub(used);
        let evictable_bytes: u64 = usage.closed_bytes.values().sum();
        let mut candidates = vec![(
            StoreLimit::IncidentBytes,
            remaining(settings.max_bytes_per_incident, open.stored_bytes + open.reserved_bytes),
        )];
        if let Some(max_bytes) =
            usage.limits_of_rule(&open.rule).and_then(|limits| limits.max_bytes)
        {
            let closed_bytes = usage.closed_bytes.get(&open.rule).copied().unwrap_or(0);
            let used = usage.bytes_of_rule(&open.rule).saturating_sub(closed_bytes);
            candidates.push((StoreLimit::RuleBytes, remaining(max_bytes, used)));
        }
        let used = (usage.stored_bytes + usage.reserved_bytes).saturating_sub(evictable_bytes);
        candidates.push((StoreLimit::Bytes, remaining(settings.max_bytes, used)));
        if let Some(memory_left) = usage.memory_left.filter(|_| self.in_memory) {
            candidates.push((StoreLimit::Memory, memory_left.saturating_add(evictable_bytes)));
        }
        if let Some(free) = self.free_beyond_reserve(settings) {
            candidates.push((StoreLimit::MinFreeSpace, free.saturating_add(evictable_bytes)));
        }
        let (limit, bytes) = candidates
            .into_iter()
            .min_by_key(|(_, bytes)| *bytes)
            .unwrap_or((StoreLimit::IncidentBytes, 0));
        Ok((limit, Bytes(bytes.saturating_add(removable_bytes))))
    }

    fn recount(&self, usage: &mut SpaceUsage, incidents: &[StoredIncident]) {
        usage.stored_bytes = incidents.iter().map(|incident| incident.bytes).sum();
        usage.closed_bytes.clear();
        for incident in incidents {
            match usage.open_incidents.get_mut(&incident.name.id) {
                Some(open) => open.stored_bytes = incident.bytes,
                None => {
                    *usage.closed_bytes.entry(incident.name.name.clone()).or_default() +=
                        incident.bytes
                }
            }
        }
    }

    /// Returns the next step and the limit that requires it. `None` if all limits hold, or if no
    /// step would help.
    fn next_step(
        &self,
        usage: &SpaceUsage,
        incidents: &[StoredIncident],
        blocked: &HashSet<IncidentId>,
        request: SpaceRequest,
    ) -> Option<RetentionStep> {
        let is_evictable = |incident: &StoredIncident| {
            !usage.open_incidents.contains_key(&incident.name.id)
                && !blocked.contains(&incident.name.id)
        };
        let evictable: Vec<usize> =
            (0..incidents.len()).filter(|&at| is_evictable(&incidents[at])).collect();
        let settings = &usage.settings;
        let is_expired = |at: &usize| {
            let name = &incidents[*at].name;
            let rule_max_age = usage.limits_of_rule(&name.name).and_then(|limits| limits.max_age);
            usage.ages.age(name.id) > rule_max_age.unwrap_or(settings.max_age)
                && is_between_first_and_last(incidents, *at)
        };
        if let Some(at) = evictable.iter().copied().find(is_expired) {
            return Some(RetentionStep::Evict(at, StoreLimit::Age));
        }
        let evictable_of_rule = |rule: &str| -> Vec<usize> {
            evictable.iter().copied().filter(|&at| incidents[at].name.name == rule).collect()
        };
        let open_incident = request.incident.and_then(|id| usage.open_incidents.get(&id));
        for (name, limits) in &settings.rules {
            let (rule, Some(max_incidents)) = (sanitize_incident_name(name), limits.max_incidents)
            else {
                continue;
            };
            let added =
                open_incident.filter(|open| open.rule == rule).map_or(0, |_| request.incidents);
            let count = incidents.iter().filter(|incident| incident.name.name == rule).count();
            if count.saturating_add(added) > max_incidents
                && let Some(at) = least_valuable(incidents, &evictable_of_rule(&rule), |_| 1)
            {
                return Some(RetentionStep::Evict(at, StoreLimit::RuleIncidents));
            }
        }
        if incidents.len().saturating_add(request.incidents) > settings.max_incidents
            && let Some(at) = least_valuable(incidents, &evictable, |_| 1)
        {
            return Some(RetentionStep::Evict(at, StoreLimit::Incidents));
        }
        let LimitExceeded { limit, missing_bytes: missing, rule } =
            self.exceeded_limit(usage, request)?;
        if limit == StoreLimit::IncidentBytes {
            return None;
        }
        let candidates = rule.map_or(evictable.clone(), |rule| evictable_of_rule(&rule));
        let evictable_bytes: u64 = candidates.iter().map(|&at| incidents[at].bytes).sum();
        if missing > evictable_bytes {
            return None;
        }
        let prunable: Vec<usize> =
            candidates.iter().copied().filter(|&at| !incidents[at].removable.is_empty()).collect();
        let weight = |incident: &StoredIncident| incident.bytes;
        match oldest_of_largest_rule(incidents, &prunable, weight) {
            Some(at) => Some(RetentionStep::Prune(at, limit, missing)),
            None => {
                Some(RetentionStep::Evict(least_valuable(incidents, &candidates, weight)?, limit))
            }
        }
    }
}

/// Returns the least valuable incident of `candidates`: the oldest of the rule with the highest
/// usage by `weight`. The first and the last incident of a rule are returned only if there is no
/// other.
///
/// The first shows how the problem began, the last its present state; those between are the most
/// alike. Choosing the rule with the highest usage keeps a rule that fires all day from displacing
/// the only incident of another rule.
fn least_valuable(
    incidents: &[StoredIncident],
    candidates: &[usize],
    weight: impl Fn(&StoredIncident) -> u64,
) -> Option<usize> {
    let middle: Vec<usize> =
        candidates.iter().copied().filter(|&at| is_between_first_and_last(incidents, at)).collect();
    oldest_of_largest_rule(incidents, if middle.is_empty() { candidates } else { &middle }, weight)
}

/// Returns `true` if the incident at `at` is neither the first nor the last of its rule.
fn is_between_first_and_last(incidents: &[StoredIncident], at: usize) -> bool {
    let is_same_rule = |incident: &StoredIncident| incident.name.name == incidents[at].name.name;
    incidents[..at].iter().any(is_same_rule) && incidents[at + 1..].iter().any(is_same_rule)
}

/// Returns the oldest incident of `candidates` that belongs to the rule with the highest usage by
/// `weight`.
fn oldest_of_largest_rule(
    incidents: &[StoredIncident],
    candidates: &[usize],
    weight: impl Fn(&StoredIncident) -> u64,
) -> Option<usize> {
    let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
    for incident in incidents {
        let rule = rules.entry(&incident.name.name).or_default();
        *rule = rule.saturating_add(weight(incident));
    }
    let rule_usage = |at: usize| rules.get(incidents[at].name.name.as_str()).copied().unwrap_or(0);
    candidates.iter().copied().max_by_key(|&at| (rule_usage(at), Reverse(at)))
}

/// Returns all incidents, oldest first. A link or file with an incident name is not an incident.
fn scan_incidents(root: &Dir) -> Result<Vec<StoredIncident>, Error> {
    let mut incidents = Vec::new();
    for file_name in root.entry_names()? {
        let Some(name) = IncidentName::parse(&file_name) else { continue };
        if root.stat(&file_name)?.is_some_and(|stat| is_dir(&stat)) {
            // An unreadable directory counts as an incident; `evict` reports the error.
            let files =
                root.subdir(&file_name).and_then(|dir| finished_files(&dir)).unwrap_or_default();
            let bytes = files.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            let removable =
                removable_files(files.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
            let removable =
                removable.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
            incidents.push(StoredIncident { file_name, name, bytes, removable });
        }
    }
    incidents.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    Ok(incidents)
}

/// Evicts an incident as described at [`super::Store::enforce_limits`]. Returns the foreign entry
/// if one prevents it.
fn evict(root: &Dir, name: &str) -> Result<Option<PathBuf>, Error> {
    let dir = root.subdir(name)?;
    let names = dir.entry_names()?;
    if !names.iter().any(|name| name == MANIFEST_FILE) {
        return Ok(Some(dir.path().to_owned()));
    }
    if let Some(foreign) = foreign_entry(&dir, &names)? {
        return Ok(Some(foreign));
    }
    let evicted_name = format!("{EVICTED_PREFIX}{name}");
    let evicted_name =
        if root.rename_dir(name, &evicted_name)? { evicted_name } else { name.to_owned() };
    root.sync()?;
    delete_incident(root, &evicted_name, &dir, names)?;
    Ok(None)
}

/// Completes an eviction that a crash interrupted. Returns the foreign entry if one prevents it.
pub(super) fn finish_eviction(root: &Dir, dir_name: &str) -> Result<Option<PathBuf>, Error> {
    let dir = root.subdir(dir_name)?;
    let names = dir.entry_names()?;
    if let Some(foreign) = foreign_entry(&dir, &names)? {
        return Ok(Some(foreign));
    }
    delete_incident(root, dir_name, &dir, names)?;
    Ok(None)
}

/// Deletes `names` from `dir`, the manifest last, and then `dir` itself, which is named
/// `dir_name`.
fn delete_incident(
    root: &Dir,
    dir_name: &str,
    dir: &Dir,
    mut names: Vec<String>,
) -> Result<(), Error> {
    names.sort_by_key(|name| name == MANIFEST_FILE);
    for name in names.iter().filter(|name| !is_silly_renamed(name)) {
        dir.unlink(name)?;
    }
    // A reader has a file open that NFS or FUSE keeps under another name. The next start deletes
    // the directory.
    if dir.entry_names()?.iter().any(|name| is_silly_renamed(name)) {
        return Ok(());
    }
    root.rmdir(dir_name)
}

#[cfg(test)]
mod tests;
