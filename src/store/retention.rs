//! What goes when a bound is reached.
//!
//! An incident is judged by its name and the sizes of its files alone: its age counts from the time in
//! its name, and its manifest need not be readable for it to go, only be there.
//!
//! What is past its age goes, the oldest first. For the other bounds, the open incidents stay always, and
//! the first and the last of each rule longest; of the rest goes the oldest of the rule that holds most,
//! in incidents or in bytes, as the bound is. The obvious alternative, the oldest of all, loses the one
//! incident of last week to a rule that fires twice an hour.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use jiff::Timestamp;

use super::dir::{Dir, is_dir, is_file};
use super::error::{Bound, Error};
use super::names::{GONE, IncidentName, MANIFEST, artifact_form, is_part};
use super::room::{Ledger, Shared};
use crate::base::{Bytes, IncidentId};

/// What a retention did.
#[derive(Debug, Default)]
pub struct Retained {
    /// What it removed, the oldest first.
    pub removed: Vec<Removed>,
    /// What it would have removed, but for a file that is not ours.
    pub standing: Vec<Standing>,
    /// What it could not do.
    pub failed: Vec<Error>,
    /// How many incidents there are now.
    pub incidents: usize,
    /// The size of their finished files together.
    pub bytes: Bytes,
}

/// An incident that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The incident.
    pub id: IncidentId,
    /// Its size.
    pub bytes: Bytes,
    /// The bound that did not hold with it.
    pub bound: Bound,
}

/// An incident that stays because something in it is not ours. It counts against the bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is not ours: a file in the incident's directory, or the directory itself.
    pub path: PathBuf,
}

/// What there must be room for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) incidents: usize,
}

/// One incident as retention sees it.
struct Held {
    file_name: String,
    name: IncidentName,
    bytes: u64,
}

impl Shared {
    /// Removes closed incidents, those first that are missed least, until every bound holds with `need`
    /// added. For room, none if all of them together would not make enough.
    pub(super) fn make_room(&self, ledger: &mut Ledger, need: Need) -> Retained {
        let mut retained = Retained::default();
        let mut held = match scan(&self.root) {
            Ok(held) => held,
            Err(error) => {
                retained.failed.push(error);
                return retained;
            }
        };
        ledger.stored = held.iter().map(|it| it.bytes).sum();
        let now = self.clock.wall();
        let mut stuck = HashSet::new();
        while let Some((at, bound)) = self.next_to_go(ledger, &held, &stuck, now, need) {
            match remove(&self.root, &held[at].file_name) {
                Ok(None) => {
                    let Held { name, bytes, .. } = held.remove(at);
                    ledger.stored = ledger.stored.saturating_sub(bytes);
                    ledger.removed += 1;
                    retained.removed.push(Removed { id: name.id, bytes: Bytes(bytes), bound });
                }
                Ok(Some(path)) => {
                    stuck.insert(held[at].name.id);
                    retained.standing.push(Standing { path });
                }
                Err(error) => {
                    stuck.insert(held[at].name.id);
                    retained.failed.push(error);
                }
            }
        }
        retained.incidents = held.len();
        retained.bytes = Bytes(ledger.stored);
        retained
    }

    /// The incident that goes next and the bound that does not hold with it; none when all hold, or none
    /// that may go would help.
    fn next_to_go(
        &self,
        ledger: &Ledger,
        held: &[Held],
        stuck: &HashSet<IncidentId>,
        now: Timestamp,
        need: Need,
    ) -> Option<(usize, Bound)> {
        let may_go = |it: &Held| !ledger.open.contains(&it.name.id) && !stuck.contains(&it.name.id);
        let goes: Vec<usize> = (0..held.len()).filter(|&at| may_go(&held[at])).collect();
        let oldest = *goes.first()?;
        let age = now.duration_since(held[oldest].name.opened);
        if age.unsigned_abs() > ledger.settings.max_age && age.is_positive() {
            return Some((oldest, Bound::Age));
        }
        if held.len().saturating_add(need.incidents) > ledger.settings.max_incidents {
            return Some((least_missed(held, &goes, |_| 1)?, Bound::Incidents));
        }
        let (bound, missing) = self.shortage(ledger, need.bytes)?;
        let removable: u64 = goes.iter().map(|&at| held[at].bytes).sum();
        let at = least_missed(held, &goes, |it| it.bytes)?;
        (missing <= removable).then_some((at, bound))
    }
}

/// Which of `goes` is missed least: the oldest of the rule that holds most by `weight`, the first and the
/// last of each rule only when there is nothing else.
///
/// The first shows how it began, the last how it is; those between are the most alike. By the rule that
/// holds most, so that one that fires all day does not push out the only incident of another.
fn least_missed(held: &[Held], goes: &[usize], weight: impl Fn(&Held) -> u64) -> Option<usize> {
    struct Rule {
        first: usize,
        last: usize,
        weight: u64,
    }
    let mut rules: BTreeMap<&str, Rule> = BTreeMap::new();
    for (at, it) in held.iter().enumerate() {
        let rule = rules.entry(&it.name.name).or_insert(Rule { first: at, last: at, weight: 0 });
        rule.last = at;
        rule.weight = rule.weight.saturating_add(weight(it));
    }
    let rule = |at: usize| rules.get(held[at].name.name.as_str());
    let is_spare = |at: &usize| rule(*at).is_some_and(|rule| rule.first != *at && rule.last != *at);
    let spare: Vec<usize> = goes.iter().copied().filter(is_spare).collect();
    let among = if spare.is_empty() { goes } else { &spare };
    among.iter().copied().max_by_key(|&at| (rule(at).map_or(0, |rule| rule.weight), Reverse(at)))
}

/// Every incident, the oldest first. Links and files that have an incident's name are none.
fn scan(root: &Dir) -> Result<Vec<Held>, Error> {
    let mut held = Vec::new();
    for file_name in root.names()? {
        let Some(name) = IncidentName::parse(&file_name) else { continue };
        if root.stat(&file_name)?.is_some_and(|stat| is_dir(&stat)) {
            // One that cannot be opened counts as an incident; `remove` will say why it stays.
            let bytes = root.subdir(&file_name).and_then(|dir| size(&dir)).unwrap_or(0);
            held.push(Held { file_name, name, bytes });
        }
    }
    held.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    Ok(held)
}

/// The size of the finished files in `dir`, whoever they belong to.
fn size(dir: &Dir) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    for name in dir.names()? {
        if let Some(stat) = dir.stat(&name)?
            && is_file(&stat)
            && !is_part(&name)
        {
            bytes = bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
    }
    Ok(bytes)
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
    root.rename_dir(name, &gone)?;
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
    for name in &names {
        dir.unlink(name)?;
    }
    root.rmdir(gone)
}

/// The first thing in `dir` that this store did not make, or `dir` itself.
fn stranger(dir: &Dir, names: &[String]) -> Result<Option<PathBuf>, Error> {
    if !dir.is_ours() {
        return Ok(Some(dir.path().to_owned()));
    }
    for name in names {
        let known = name == MANIFEST || is_part(name) || artifact_form(name).is_some();
        if !known || dir.stat(name)?.is_some_and(|stat| !is_file(&stat)) {
            return Ok(Some(dir.at(name)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
