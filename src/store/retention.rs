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
//!    (`thin`).
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

use super::dir::{Dir, is_dir, is_file};
use super::error::{Error, StoreLimit};
use super::names::{
    GONE, IncidentName, MANIFEST, artifact_form, incident_name, is_part, is_remains,
};
use super::removed::Removed;
use crate::base::{Bytes, IncidentId};
use crate::store::prune::{between, thin};
use crate::store::usage::{LimitExceeded, SpaceUsage, StoreInner};

/// Result of enforcing the limits.
#[derive(Debug, Default)]
pub struct RetentionReport {
    /// Evicted incidents, oldest first.
    pub removed: Vec<Removed>,
    /// Files pruned from incidents that stay.
    pub thinned: Vec<PrunedArtifacts>,
    /// Incidents not evicted because they contain a foreign entry.
    pub standing: Vec<BlockedRemoval>,
    /// Errors.
    pub failed: Vec<Error>,
    /// Number of incidents that remain.
    pub incidents: usize,
    /// Total size of their finished files.
    pub bytes: Bytes,
}

/// An incident or leftover that cannot be removed because of a foreign entry. It counts against the
/// limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedRemoval {
    /// The foreign entry: a file in the incident's directory, or the directory itself.
    pub path: PathBuf,
}

/// Files pruned from a closed incident that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrunedArtifacts {
    /// The incident.
    pub id: IncidentId,
    /// The names of the files.
    pub files: Vec<String>,
    /// The limit that was exceeded.
    pub bound: StoreLimit,
}

/// A limit on the evicted incidents waiting to be logged, far above what one command evicts.
const MAX_UNREPORTED: usize = 1000;

/// A request for free space.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpaceRequest {
    pub(super) bytes: u64,
    pub(super) incidents: usize,
    /// The open incident to write to, or `None` to enforce all limits.
    pub(super) incident: Option<IncidentId>,
}

struct Held {
    file_name: String,
    name: IncidentName,
    bytes: u64,
    /// Files that can be pruned, in the order of pruning.
    spare: Vec<(String, u64)>,
}

enum RetentionStep {
    Remove(usize, StoreLimit),
    /// Prune files of the incident until this many bytes are freed or no prunable file is left.
    Thin(usize, StoreLimit, u64),
}

impl StoreInner {
    /// Prunes and evicts closed incidents, the least valuable first, until every limit holds with
    /// `need` added. If bytes are short and evicting all of them would not free enough, it deletes
    /// nothing.
    pub(super) fn make_room(&self, ledger: &mut SpaceUsage, need: SpaceRequest) -> RetentionReport {
        let mut retained = RetentionReport::default();
        let mut held = match scan(&self.root) {
            Ok(held) => held,
            Err(error) => {
                retained.failed.push(error);
                return retained;
            }
        };
        self.recount(ledger, &held);
        let anchor = self.clock.anchor();
        let now = anchor.wall;
        let known: Vec<_> = held.iter().map(|it| (it.name.id, it.name.opened)).collect();
        ledger.ages.look(&self.root, anchor, &known);
        // Sorted by age, not by name: an incident opened while the clock was ahead would count as
        // the last of its rule for years.
        held.sort_by_key(|it| Reverse(ledger.ages.of(it.name.id)));
        let mut stuck = HashSet::new();
        while let Some(step) = self.next_step(ledger, &held, &stuck, need) {
            match step {
                RetentionStep::Remove(at, bound) => match remove(&self.root, &held[at].file_name) {
                    Ok(None) => {
                        let Held { name, bytes, .. } = held.remove(at);
                        ledger.removed += 1;
                        let (id, age) = (name.id, ledger.ages.of(name.id));
                        let bytes = Bytes(bytes);
                        let removed = Removed { id, bytes, bound, rule: name.name, age };
                        if ledger.unreported.len() >= MAX_UNREPORTED {
                            ledger.unreported.remove(0);
                        }
                        ledger.unreported.push(removed.clone());
                        retained.removed.push(removed);
                    }
                    Ok(Some(path)) => {
                        stuck.insert(held[at].name.id);
                        retained.standing.push(BlockedRemoval { path });
                    }
                    Err(error) => {
                        stuck.insert(held[at].name.id);
                        retained.failed.push(error);
                    }
                },
                RetentionStep::Thin(at, bound, missing) => {
                    let it = &mut held[at];
                    let spare = std::mem::take(&mut it.spare);
                    match thin(&self.root, &it.file_name, &spare, (bound, missing), now) {
                        Ok(Some((files, bytes))) => {
                            it.bytes = bytes;
                            it.spare = spare;
                            it.spare.retain(|(name, _)| !files.contains(name));
                            let id = it.name.id;
                            ledger.thinned += files.len() as u64;
                            retained.thinned.push(PrunedArtifacts { id, files, bound });
                        }
                        // The incident itself can still be evicted; if not, `remove` reports the
                        // foreign file.
                        Ok(None) => {}
                        Err(error) => retained.failed.push(error),
                    }
                }
            }
            let before = ledger.stored;
            self.recount(ledger, &held);
            let freed = before.saturating_sub(ledger.stored);
            ledger.memory = ledger.memory.map(|left| left.saturating_add(freed));
        }
        retained.incidents = held.len();
        retained.bytes = Bytes(ledger.stored);
        retained
    }

    /// Returns the bytes that can still be written to the open incident `id` after every possible
    /// eviction, and the tightest limit.
    pub(super) fn room(&self, id: IncidentId) -> Result<(StoreLimit, Bytes), Error> {
        let mut ledger = self.ledger();
        let held = scan(&self.root)?;
        self.recount(&mut ledger, &held);
        let Some(open) = ledger.open.get(&id) else { return Ok((StoreLimit::Incident, Bytes(0))) };
        let own = held.iter().find(|it| it.name.id == id);
        let spare: u64 = own.map_or(0, |it| it.spare.iter().map(|(_, bytes)| bytes).sum());
        let settings = &ledger.settings;
        let left = |most: Bytes, held: u64| most.get().saturating_sub(held);
        let closed: u64 = ledger.closed.values().sum();
        let mut rooms = vec![(
            StoreLimit::Incident,
            left(settings.max_incident_bytes, open.stored + open.reserved),
        )];
        if let Some(most) = ledger.bounds_of(&open.rule).and_then(|bounds| bounds.max_bytes) {
            let of_closed = ledger.closed.get(&open.rule).copied().unwrap_or(0);
            let held = ledger.held_by(&open.rule).saturating_sub(of_closed);
            rooms.push((StoreLimit::RuleBytes, left(most, held)));
        }
        let held = (ledger.stored + ledger.reserved).saturating_sub(closed);
        rooms.push((StoreLimit::Bytes, left(settings.max_bytes, held)));
        if let Some(left) = ledger.memory.filter(|_| self.in_memory) {
            rooms.push((StoreLimit::Memory, left.saturating_add(closed)));
        }
        if let Some(free) = self.free(settings) {
            rooms.push((StoreLimit::Free, free.saturating_add(closed)));
        }
        let (bound, bytes) =
            rooms.into_iter().min_by_key(|(_, bytes)| *bytes).unwrap_or((StoreLimit::Incident, 0));
        Ok((bound, Bytes(bytes.saturating_add(spare))))
    }

    fn recount(&self, ledger: &mut SpaceUsage, held: &[Held]) {
        ledger.stored = held.iter().map(|it| it.bytes).sum();
        ledger.closed.clear();
        for it in held {
            match ledger.open.get_mut(&it.name.id) {
                Some(open) => open.stored = it.bytes,
                None => *ledger.closed.entry(it.name.name.clone()).or_default() += it.bytes,
            }
        }
    }

    /// Returns the next step and the limit that requires it. `None` if all limits hold, or if no
    /// step would help.
    fn next_step(
        &self,
        ledger: &SpaceUsage,
        held: &[Held],
        stuck: &HashSet<IncidentId>,
        need: SpaceRequest,
    ) -> Option<RetentionStep> {
        let may_go =
            |it: &Held| !ledger.open.contains_key(&it.name.id) && !stuck.contains(&it.name.id);
        let goes: Vec<usize> = (0..held.len()).filter(|&at| may_go(&held[at])).collect();
        let settings = &ledger.settings;
        let too_old = |at: &usize| {
            let name = &held[*at].name;
            let own = ledger.bounds_of(&name.name).and_then(|bounds| bounds.max_age);
            ledger.ages.of(name.id) > own.unwrap_or(settings.max_age) && is_between(held, *at)
        };
        if let Some(at) = goes.iter().copied().find(too_old) {
            return Some(RetentionStep::Remove(at, StoreLimit::Age));
        }
        let of = |rule: &str| -> Vec<usize> {
            goes.iter().copied().filter(|&at| held[at].name.name == rule).collect()
        };
        let opening = need.incident.and_then(|id| ledger.open.get(&id));
        for (name, bounds) in &settings.rules {
            let (rule, Some(most)) = (incident_name(name), bounds.max_incidents) else { continue };
            let more = opening.filter(|open| open.rule == rule).map_or(0, |_| need.incidents);
            let count = held.iter().filter(|it| it.name.name == rule).count();
            if count.saturating_add(more) > most
                && let Some(at) = least_missed(held, &of(&rule), |_| 1)
            {
                return Some(RetentionStep::Remove(at, StoreLimit::RuleIncidents));
            }
        }
        if held.len().saturating_add(need.incidents) > settings.max_incidents
            && let Some(at) = least_missed(held, &goes, |_| 1)
        {
            return Some(RetentionStep::Remove(at, StoreLimit::Incidents));
        }
        let LimitExceeded { bound, missing, rule } = self.shortage(ledger, need)?;
        if bound == StoreLimit::Incident {
            return None;
        }
        let goes = rule.map_or(goes.clone(), |rule| of(&rule));
        let removable: u64 = goes.iter().map(|&at| held[at].bytes).sum();
        if missing > removable {
            return None;
        }
        let thick: Vec<usize> =
            goes.iter().copied().filter(|&at| !held[at].spare.is_empty()).collect();
        let weight = |it: &Held| it.bytes;
        match heaviest(held, &thick, weight) {
            Some(at) => Some(RetentionStep::Thin(at, bound, missing)),
            None => Some(RetentionStep::Remove(least_missed(held, &goes, weight)?, bound)),
        }
    }
}

/// Returns the least valuable incident of `goes`: the oldest of the rule with the highest usage by
/// `weight`. The first and the last incident of a rule are returned only if there is no other.
///
/// The first shows how the problem began, the last its present state; those between are the most
/// alike. Choosing the rule with the highest usage keeps a rule that fires all day from displacing
/// the only incident of another rule.
fn least_missed(held: &[Held], goes: &[usize], weight: impl Fn(&Held) -> u64) -> Option<usize> {
    let spare: Vec<usize> = goes.iter().copied().filter(|&at| is_between(held, at)).collect();
    heaviest(held, if spare.is_empty() { goes } else { &spare }, weight)
}

/// Returns `true` if the incident at `at` is neither the first nor the last of its rule.
fn is_between(held: &[Held], at: usize) -> bool {
    let of_rule = |it: &Held| it.name.name == held[at].name.name;
    held[..at].iter().any(of_rule) && held[at + 1..].iter().any(of_rule)
}

/// Returns the oldest incident of `among` that belongs to the rule with the highest usage by
/// `weight`.
fn heaviest(held: &[Held], among: &[usize], weight: impl Fn(&Held) -> u64) -> Option<usize> {
    let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
    for it in held {
        let rule = rules.entry(&it.name.name).or_default();
        *rule = rule.saturating_add(weight(it));
    }
    let of = |at: usize| rules.get(held[at].name.name.as_str()).copied().unwrap_or(0);
    among.iter().copied().max_by_key(|&at| (of(at), Reverse(at)))
}

/// Returns all incidents, oldest first. A link or file with an incident name is not an incident.
fn scan(root: &Dir) -> Result<Vec<Held>, Error> {
    let mut held = Vec::new();
    for file_name in root.names()? {
        let Some(name) = IncidentName::parse(&file_name) else { continue };
        if root.stat(&file_name)?.is_some_and(|stat| is_dir(&stat)) {
            // An unreadable directory counts as an incident; `remove` reports the error.
            let files = root.subdir(&file_name).and_then(|dir| files(&dir)).unwrap_or_default();
            let bytes = files.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            let spare = between(files.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
            let spare = spare.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
            held.push(Held { file_name, name, bytes, spare });
        }
    }
    held.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    Ok(held)
}

/// Returns the finished files in `dir` with their sizes, foreign files included.
pub(super) fn files(dir: &Dir) -> Result<Vec<(String, u64)>, Error> {
    let mut files = Vec::new();
    for name in dir.names()? {
        if let Some(stat) = dir.stat(&name)?
            && is_file(&stat)
            && !is_part(&name)
        {
            files.push((name, u64::try_from(stat.st_size).unwrap_or(0)));
        }
    }
    Ok(files)
}

/// Evicts an incident as described at [`super::Store::retain`]. Returns the foreign entry if one
/// prevents it.
fn remove(root: &Dir, name: &str) -> Result<Option<PathBuf>, Error> {
    let dir = root.subdir(name)?;
    let names = dir.names()?;
    if !names.iter().any(|name| name == MANIFEST) {
        return Ok(Some(dir.path().to_owned()));
    }
    if let Some(stranger) = stranger(&dir, &names)? {
        return Ok(Some(stranger));
    }
    let gone = format!("{GONE}{name}");
    let gone = if root.rename_dir(name, &gone)? { gone } else { name.to_owned() };
    root.sync()?;
    clear(root, &gone, &dir, names)?;
    Ok(None)
}

/// Completes an eviction that a crash interrupted. Returns the foreign entry if one prevents it.
pub(super) fn finish_removal(root: &Dir, gone: &str) -> Result<Option<PathBuf>, Error> {
    let dir = root.subdir(gone)?;
    let names = dir.names()?;
    if let Some(stranger) = stranger(&dir, &names)? {
        return Ok(Some(stranger));
    }
    clear(root, gone, &dir, names)?;
    Ok(None)
}

/// Deletes `names` from `dir`, the manifest last, and then `dir` itself, which is named `gone`.
fn clear(root: &Dir, gone: &str, dir: &Dir, mut names: Vec<String>) -> Result<(), Error> {
    names.sort_by_key(|name| name == MANIFEST);
    for name in names.iter().filter(|name| !is_remains(name)) {
        dir.unlink(name)?;
    }
    // A reader has a file open that NFS or FUSE keeps under another name. The next start deletes
    // the directory.
    if dir.names()?.iter().any(|name| is_remains(name)) {
        return Ok(());
    }
    root.rmdir(gone)
}

/// Returns the first entry of `dir` that the store did not create, or `dir` itself if another user
/// owns it.
pub(super) fn stranger(dir: &Dir, names: &[String]) -> Result<Option<PathBuf>, Error> {
    if !dir.is_ours() {
        return Ok(Some(dir.path().to_owned()));
    }
    for name in names {
        if is_remains(name) {
            continue;
        }
        let known = name == MANIFEST || is_part(name) || artifact_form(name).is_some();
        if !known || dir.stat(name)?.is_some_and(|stat| !is_file(&stat)) {
            return Ok(Some(dir.at(name)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
