//! What goes when a bound is reached.
//!
//! An incident is judged by its name, its age and the sizes of its files: its manifest need not be readable
//! for it to go, only be there. Its age is the time that was seen to pass since it opened (`ages`): a wall
//! clock that is set ahead makes nothing old.
//!
//! What is past its age goes, the oldest first, but for the first and the last of each rule. For the other
//! bounds, the open incidents stay always, and the first and the last of each rule longest; of the rest goes
//! the oldest of the rule that holds most, in incidents or in bytes, as the bound is. The obvious alternative, the oldest of all, loses the one
//! incident of last week to a rule that fires twice an hour. Where it is bytes that are missing, files that
//! an incident has many alike of go before any incident does (`thin`).
//!
//! A rule may have bounds of its own; what goes for them is its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use super::dir::{Dir, is_dir, is_file};
use super::error::{Bound, Error};
use super::names::{
    GONE, IncidentName, MANIFEST, artifact_form, incident_name, is_part, is_remains,
};
use super::removed::Removed;
use super::room::{Ledger, Shared, Shortage};
use super::thin::{between, thin};
use crate::base::{Bytes, IncidentId};

/// What a retention did.
#[derive(Debug, Default)]
pub struct Retained {
    /// What it removed, the oldest first.
    pub removed: Vec<Removed>,
    /// The files it removed from incidents that stay.
    pub thinned: Vec<Thinned>,
    /// What it would have removed, but for a file that is not ours.
    pub standing: Vec<Standing>,
    /// What it could not do.
    pub failed: Vec<Error>,
    /// How many incidents there are now.
    pub incidents: usize,
    /// The size of their finished files together.
    pub bytes: Bytes,
}

/// An incident that stays because something in it is not ours. It counts against the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is not ours: a file in the incident's directory, or the directory itself.
    pub path: PathBuf,
}

/// Files of a closed incident that were removed; the incident stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinned {
    /// The incident.
    pub id: IncidentId,
    /// Their names.
    pub files: Vec<String>,
    /// The bound that did not hold with them.
    pub bound: Bound,
}

/// Removed incidents that wait to be logged: far more than one task removes.
const MAX_UNREPORTED: usize = 1000;

/// What there must be room for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) incidents: usize,
    /// The open incident that needs it; none where every bound is to hold.
    pub(super) incident: Option<IncidentId>,
}

/// One incident as retention sees it.
struct Held {
    file_name: String,
    name: IncidentName,
    bytes: u64,
    /// Its files that may go while it stays, in the order they go.
    spare: Vec<(String, u64)>,
}

/// What is done next to make room.
enum Step {
    /// Remove the incident.
    Remove(usize, Bound),
    /// Remove so many bytes of its files.
    Thin(usize, Bound, u64),
}

impl Shared {
    /// Removes of closed incidents what is missed least, until every bound holds with `need` added. For
    /// room, nothing if all of them together would not make enough.
    pub(super) fn make_room(&self, ledger: &mut Ledger, need: Need) -> Retained {
        let mut retained = Retained::default();
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
        // By name what opened under a clock that was ahead would be the last for years.
        held.sort_by_key(|it| Reverse(ledger.ages.of(it.name.id)));
        let mut stuck = HashSet::new();
        while let Some(step) = self.next_step(ledger, &held, &stuck, need) {
            match step {
                Step::Remove(at, bound) => match remove(&self.root, &held[at].file_name) {
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
                        retained.standing.push(Standing { path });
                    }
                    Err(error) => {
                        stuck.insert(held[at].name.id);
                        retained.failed.push(error);
                    }
                },
                Step::Thin(at, bound, missing) => {
                    let it = &mut held[at];
                    let spare = std::mem::take(&mut it.spare);
                    match thin(&self.root, &it.file_name, &spare, (bound, missing), now) {
                        Ok(Some((files, bytes))) => {
                            it.bytes = bytes;
                            it.spare = spare;
                            it.spare.retain(|(name, _)| !files.contains(name));
                            let id = it.name.id;
                            ledger.thinned += files.len() as u64;
                            retained.thinned.push(Thinned { id, files, bound });
                        }
                        // The incident itself may go all the same, or says why not.
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

    /// How much room an open incident has: what may still be written in it if all that may go goes, and the
    /// bound that is nearest.
    pub(super) fn room(&self, id: IncidentId) -> Result<(Bound, Bytes), Error> {
        let mut ledger = self.ledger();
        let held = scan(&self.root)?;
        self.recount(&mut ledger, &held);
        let Some(open) = ledger.open.get(&id) else { return Ok((Bound::Incident, Bytes(0))) };
        let own = held.iter().find(|it| it.name.id == id);
        let spare: u64 = own.map_or(0, |it| it.spare.iter().map(|(_, bytes)| bytes).sum());
        let settings = &ledger.settings;
        let left = |most: Bytes, held: u64| most.get().saturating_sub(held);
        let closed: u64 = ledger.closed.values().sum();
        let mut rooms =
            vec![(Bound::Incident, left(settings.max_incident_bytes, open.stored + open.reserved))];
        if let Some(most) = ledger.bounds_of(&open.rule).and_then(|bounds| bounds.max_bytes) {
            let of_closed = ledger.closed.get(&open.rule).copied().unwrap_or(0);
            let held = ledger.held_by(&open.rule).saturating_sub(of_closed);
            rooms.push((Bound::RuleBytes, left(most, held)));
        }
        let held = (ledger.stored + ledger.reserved).saturating_sub(closed);
        rooms.push((Bound::Bytes, left(settings.max_bytes, held)));
        if let Some(left) = ledger.memory.filter(|_| self.in_memory) {
            rooms.push((Bound::Memory, left.saturating_add(closed)));
        }
        if let Some(free) = self.free(settings) {
            rooms.push((Bound::Free, free.saturating_add(closed)));
        }
        let (bound, bytes) =
            rooms.into_iter().min_by_key(|(_, bytes)| *bytes).unwrap_or((Bound::Incident, 0));
        Ok((bound, Bytes(bytes.saturating_add(spare))))
    }

    /// Puts what was found into the figures.
    fn recount(&self, ledger: &mut Ledger, held: &[Held]) {
        ledger.stored = held.iter().map(|it| it.bytes).sum();
        ledger.closed.clear();
        for it in held {
            match ledger.open.get_mut(&it.name.id) {
                Some(open) => open.stored = it.bytes,
                None => *ledger.closed.entry(it.name.name.clone()).or_default() += it.bytes,
            }
        }
    }

    /// What goes next and the bound that does not hold with it; none when all hold, or nothing that may go
    /// would help.
    fn next_step(
        &self,
        ledger: &Ledger,
        held: &[Held],
        stuck: &HashSet<IncidentId>,
        need: Need,
    ) -> Option<Step> {
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
            return Some(Step::Remove(at, Bound::Age));
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
                return Some(Step::Remove(at, Bound::RuleIncidents));
            }
        }
        if held.len().saturating_add(need.incidents) > settings.max_incidents
            && let Some(at) = least_missed(held, &goes, |_| 1)
        {
            return Some(Step::Remove(at, Bound::Incidents));
        }
        let Shortage { bound, missing, rule } = self.shortage(ledger, need)?;
        if bound == Bound::Incident {
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
            Some(at) => Some(Step::Thin(at, bound, missing)),
            None => Some(Step::Remove(least_missed(held, &goes, weight)?, bound)),
        }
    }
}

/// Which of `goes` is missed least: the oldest of the rule that holds most by `weight`, the first and the
/// last of each rule only when there is nothing else.
///
/// The first shows how it began, the last how it is; those between are the most alike. By the rule that
/// holds most, so that one that fires all day does not push out the only incident of another.
fn least_missed(held: &[Held], goes: &[usize], weight: impl Fn(&Held) -> u64) -> Option<usize> {
    let spare: Vec<usize> = goes.iter().copied().filter(|&at| is_between(held, at)).collect();
    heaviest(held, if spare.is_empty() { goes } else { &spare }, weight)
}

/// Whether the incident at `at` is neither the first nor the last of its rule.
fn is_between(held: &[Held], at: usize) -> bool {
    let of_rule = |it: &Held| it.name.name == held[at].name.name;
    held[..at].iter().any(of_rule) && held[at + 1..].iter().any(of_rule)
}

/// Of `among`, the oldest of the rule that holds most by `weight`.
fn heaviest(held: &[Held], among: &[usize], weight: impl Fn(&Held) -> u64) -> Option<usize> {
    let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
    for it in held {
        let rule = rules.entry(&it.name.name).or_default();
        *rule = rule.saturating_add(weight(it));
    }
    let of = |at: usize| rules.get(held[at].name.name.as_str()).copied().unwrap_or(0);
    among.iter().copied().max_by_key(|&at| (of(at), Reverse(at)))
}

/// Every incident, the oldest first. Links and files that have an incident's name are none.
fn scan(root: &Dir) -> Result<Vec<Held>, Error> {
    let mut held = Vec::new();
    for file_name in root.names()? {
        let Some(name) = IncidentName::parse(&file_name) else { continue };
        if root.stat(&file_name)?.is_some_and(|stat| is_dir(&stat)) {
            // One that cannot be opened counts as an incident; `remove` will say why it stays.
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

/// The finished files in `dir` and their sizes, whoever they belong to.
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

/// Removes an incident; as [`super::Store::retain`] says. What is not ours, if that keeps it.
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

/// Goes on with a removal that a crash cut short. What is not ours, if that keeps the directory.
pub(super) fn finish_removal(root: &Dir, gone: &str) -> Result<Option<PathBuf>, Error> {
    let dir = root.subdir(gone)?;
    let names = dir.names()?;
    if let Some(stranger) = stranger(&dir, &names)? {
        return Ok(Some(stranger));
    }
    clear(root, gone, &dir, names)?;
    Ok(None)
}

/// Removes `names` from `dir`, the manifest last, and then `dir`, which is called `gone`.
fn clear(root: &Dir, gone: &str, dir: &Dir, mut names: Vec<String>) -> Result<(), Error> {
    names.sort_by_key(|name| name == MANIFEST);
    for name in names.iter().filter(|name| !is_remains(name)) {
        dir.unlink(name)?;
    }
    // A reader still has a file open that the file system keeps for it: the next start removes the directory.
    if dir.names()?.iter().any(|name| is_remains(name)) {
        return Ok(());
    }
    root.rmdir(gone)
}

/// The first thing in `dir` that this store did not make, or `dir` itself.
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
