//! Selection and pruning of the least valuable files of an incident: those between the first and
//! the last of their form.
//!
//! A long incident is captured repeatedly. The first file of each form shows how the problem began,
//! the last its final state, and the largest its worst state. The files between them are the most
//! alike, so they are pruned before a whole incident is evicted.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::dir::Dir;
use super::error::{Error, StoreLimit};
use super::index::read_manifest_head;
use super::names::{artifact_extension, artifact_number};
use crate::model::{Artifact, Manifest, RemovedArtifact};
use crate::store::entries::{finished_files, foreign_entry};
use crate::store::manifest_head::write_manifest_head;

/// Returns the prunable files of `files`, given as names with sizes, in the order of pruning: the
/// form with the most prunable bytes first, oldest first. Names that are not artifact names are
/// skipped.
pub(super) fn removable_files<'f>(
    files: impl IntoIterator<Item = (&'f str, u64)>,
) -> Vec<(&'f str, u64)> {
    let mut forms: BTreeMap<&str, Vec<(u32, &str, u64)>> = BTreeMap::new();
    for (name, bytes) in files {
        if let (Some(form), Some(number)) = (artifact_extension(name), artifact_number(name)) {
            forms.entry(form).or_default().push((number, name, bytes));
        }
    }
    let mut forms: Vec<_> = forms.into_values().map(removable_of_form).collect();
    forms.sort_by_key(|removable| {
        std::cmp::Reverse(removable.iter().map(|&(_, bytes)| bytes).sum::<u64>())
    });
    forms.into_iter().flatten().collect()
}

/// Returns the files of one form except the first, the last and the largest, oldest first.
fn removable_of_form(mut files: Vec<(u32, &str, u64)>) -> Vec<(&str, u64)> {
    files.sort_unstable();
    let last = files.len().saturating_sub(1);
    // Of two equally large files the earlier stays.
    let largest = (0..files.len()).rev().max_by_key(|&at| files[at].2);
    let must_stay = |at: usize| at == 0 || at == last || Some(at) == largest;
    let removable = files.iter().enumerate().filter(|&(at, _)| !must_stay(at));
    removable.map(|(_, &(_, name, bytes))| (name, bytes)).collect()
}

/// Returns the shortest prefix of `removable` with at least `missing_bytes`, or `None` if all have
/// less.
pub(super) fn select_to_free<'f>(
    removable: &[(&'f str, u64)],
    missing_bytes: u64,
) -> Option<Vec<(&'f str, u64)>> {
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for &(name, bytes) in removable {
        if freed >= missing_bytes {
            break;
        }
        freed = freed.saturating_add(bytes);
        chosen.push((name, bytes));
    }
    (freed >= missing_bytes && !chosen.is_empty()).then_some(chosen)
}

/// Prunes the closed `incident` until `missing_bytes` are freed or all of `removable` is deleted.
/// Returns the deleted files and the remaining size, or `None` if a foreign file keeps the incident
/// unchanged.
///
/// 1. List the files as removed in the manifest. A crash leaves files that the manifest lists as
///    removed; the next start deletes them.
/// 2. Delete them and sync the directory.
pub(super) fn prune_artifacts(
    root: &Dir,
    incident: &str,
    removable: &[(String, u64)],
    limit: StoreLimit,
    missing_bytes: u64,
    now: Timestamp,
) -> Result<Option<(Vec<String>, u64)>, Error> {
    let dir = root.subdir(incident)?;
    if foreign_entry(&dir, &dir.entry_names()?)?.is_some() {
        return Ok(None);
    }
    let removable: Vec<_> = removable.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    let chosen = select_to_free(&removable, missing_bytes).unwrap_or(removable);
    let mut head = read_manifest_head(&dir)?;
    let names: Vec<String> = chosen.iter().map(|(name, _)| (*name).to_owned()).collect();
    discard(&mut head.manifest, &names, limit, now);
    write_manifest_head(&dir, head)?;
    for name in &names {
        dir.unlink(name)?;
    }
    dir.sync()?;
    let remaining_bytes = finished_files(&dir)?.iter().map(|(_, bytes)| bytes).sum();
    Ok(Some((names, remaining_bytes)))
}

/// Moves the files `names` in `manifest` from artifacts to removed artifacts, with `limit` as the
/// reason.
pub(super) fn discard(
    manifest: &mut Manifest,
    names: &[String],
    limit: StoreLimit,
    now: Timestamp,
) {
    let (discarded, kept): (Vec<Artifact>, Vec<Artifact>) = std::mem::take(&mut manifest.artifacts)
        .into_iter()
        .partition(|artifact| names.contains(&artifact.file));
    manifest.artifacts = kept;
    manifest.removed.extend(discarded.into_iter().map(|artifact| RemovedArtifact {
        artifact,
        removed: now,
        why: format!("to free space ({})", limit.name()),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removable_names(files: &[(&str, u64)]) -> Vec<String> {
        let full: Vec<(String, u64)> =
            files.iter().map(|(name, bytes)| (format!("a_b.{name}"), *bytes)).collect();
        let removable = removable_files(full.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
        removable.iter().map(|(name, _)| name["a_b.".len()..].to_owned()).collect()
    }

    #[test]
    fn keeps_first_last_and_largest_file_of_each_form() {
        let heap = |sizes: &[u64]| -> Vec<String> {
            let files: Vec<(String, u64)> = sizes
                .iter()
                .enumerate()
                .map(|(at, bytes)| (format!("{:03}.memory.pprof", at + 1), *bytes))
                .collect();
            let files: Vec<(&str, u64)> = files.iter().map(|(a, b)| (a.as_str(), *b)).collect();
            removable_names(&files).iter().map(|name| name[..3].to_owned()).collect()
        };
        for (sizes, expected) in [
            (&[][..], &[][..]),
            (&[5], &[]),
            (&[5, 5], &[]),
            (&[5, 9, 5], &[]),
            (&[9, 5, 5], &["002"]),
            (&[5, 5, 9], &["002"]),
            (&[5, 5, 5], &["002"]),
            (&[5, 7, 9, 7, 5], &["002", "004"]),
            (&[5, 9, 9, 5], &["003"]),
        ] {
            assert_eq!(heap(sizes), expected, "{sizes:?}");
        }
    }

    #[test]
    fn form_with_most_removable_bytes_is_pruned_first() {
        let files = [
            ("001.threads.txt", 1),
            ("002.memory.pprof", 10),
            ("003.threads.txt", 1),
            ("004.memory.pprof", 10),
            ("005.threads.txt", 1),
            ("006.memory.pprof", 10),
            ("007.custom.queries.txt", 90),
            ("008.custom.locks.txt", 90),
            ("1000.memory.pprof", 11),
        ];
        assert_eq!(
            removable_names(&files),
            ["004.memory.pprof", "006.memory.pprof", "003.threads.txt"]
        );
        assert_eq!(removable_files([("notes.txt", 5), ("incident.json", 5)]), []);
    }

    #[test]
    fn selects_only_as_many_files_as_needed() {
        let removable = [("a", 10), ("b", 10), ("c", 10)];
        for (missing, chosen) in [(1, 1), (10, 1), (11, 2), (30, 3)] {
            assert_eq!(
                select_to_free(&removable, missing).map(|files| files.len()),
                Some(chosen),
                "{missing}"
            );
        }
        assert_eq!(select_to_free(&removable, 31), None);
        assert_eq!(select_to_free(&[], 1), None);
    }
}
