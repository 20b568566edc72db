//! Reads the keys of a table and collects the problems.
//!
//! A [`Section`] wraps one table. `section.read(key, reader, &mut slot)` fills the slot or records
//! a problem; if the key is missing, the slot keeps its default. [`Section::finish`] reports the
//! keys that were not read. There is no other way to read a key, so the keys that are read are the
//! known keys. Suggestions and the test of `config/marple.toml` use that list.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::{Problem, Problems};
use super::settings::Settings;
use super::validate::Finding;
use super::{Error, validate};

/// Result of a parser with the signature of serde's `deserialize_with`.
pub(super) type Read<T> = Result<T, toml::de::Error>;

/// Maximum number of problems kept. A binary file opened as a configuration has one per byte.
const MAX_PROBLEMS: usize = 100;

/// State of reading one text.
pub(super) struct Report<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Number of problems beyond [`MAX_PROBLEMS`].
    more: usize,
    /// Byte offset of each key's value. Sections and rules are listed by their paths.
    places: BTreeMap<String, usize>,
    /// Keys whose slot does not hold the value of the file. Findings about them are dropped.
    unread: BTreeSet<String>,
    /// Keys that were read but are missing in the file.
    pub(super) unset: BTreeSet<String>,
    /// Lines with syntax errors.
    broken: BTreeSet<usize>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            problems: Vec::new(),
            more: 0,
            places: BTreeMap::new(),
            unread: BTreeSet::new(),
            unset: BTreeSet::new(),
            broken: BTreeSet::new(),
        }
    }

    /// Records syntax errors: the first of each line, because later ones follow from it.
    pub(super) fn syntax(&mut self, errors: &[toml::de::Error]) {
        for error in errors {
            if self.is_full() {
                continue;
            }
            let offset = error.span().map_or(self.text.len(), |span| span.start);
            let message = error.message().to_owned();
            let problem = Problem::at(self.text, offset, String::new(), message);
            if let Some((line, _)) = problem.place
                && self.broken.insert(line)
            {
                self.problems.push(problem);
            }
        }
    }

    /// Returns `true` if the list of problems is full, and counts the problem.
    fn is_full(&mut self) -> bool {
        let full = self.problems.len() >= MAX_PROBLEMS;
        self.more += usize::from(full);
        full
    }

    fn problem(&mut self, offset: usize, key: String, message: String) {
        if self.is_full() {
            return;
        }
        let problem = Problem::at(self.text, offset, key, message);
        if problem.place.is_none_or(|(line, _)| !self.broken.contains(&line)) {
            self.problems.push(problem);
        }
    }

    /// Records a problem of valid values. Drops it if it involves a value that could not be read,
    /// or if the file has syntax errors: a missing key may only be unparsed.
    fn finding(&mut self, finding: Finding) {
        if !self.broken.is_empty() || finding.keys.iter().any(|key| self.unread.contains(key)) {
            return;
        }
        let Some(key) = finding.keys.into_iter().next() else { return };
        let section = key.rsplit_once('.').map_or("", |(section, _)| section);
        let offset = self.places.get(&key).or_else(|| self.places.get(section));
        self.problem(offset.copied().unwrap_or(0), key, finding.message);
    }

    /// Validates `settings`, which were read with this report.
    pub(super) fn conclude(
        mut self,
        origin: PathBuf,
        settings: Settings,
    ) -> Result<Settings, Error> {
        for finding in validate::findings(&settings) {
            self.finding(finding);
        }
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(Problems::new(Some(&origin), self.problems).and(self.more).into())
        }
    }
}

/// One table of the file.
pub(super) struct Section<'r, 't> {
    report: &'r mut Report<'t>,
    /// Path with a trailing dot; empty for the root table.
    prefix: String,
    table: &'r DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    /// Returns the root table.
    pub(super) fn root(report: &'r mut Report<'t>, table: &'r DeTable<'t>) -> Self {
        Self { report, prefix: String::new(), table, known: Vec::new() }
    }

    /// Returns `true` if `key` is present.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records a problem with `key`.
    pub(super) fn refuse(&mut self, key: &str, message: String) {
        let path = self.path(key);
        self.report.finding(Finding { keys: vec![path.clone()], message });
        self.report.unread.insert(path);
    }

    /// Excludes `key` from the findings of validation.
    pub(super) fn ignore(&mut self, key: &str) {
        self.report.unread.insert(self.path(key));
    }

    /// Reads `key` into `slot`. Returns `true` if it was present and valid.
    pub(super) fn read<T, S: From<T>>(
        &mut self,
        key: &'static str,
        reader: impl FnOnce(ValueDeserializer<'t>) -> Read<T>,
        slot: &mut S,
    ) -> bool {
        let Some(value) = self.take(key) else { return false };
        match reader(ValueDeserializer::from(value.clone())) {
            Ok(read) => {
                *slot = read.into();
                true
            }
            Err(error) => {
                let offset = error.span().unwrap_or(value.span()).start;
                let path = self.path(key);
                self.report.unread.insert(path.clone());
                self.report.problem(offset, path, error.message().to_owned());
                false
            }
        }
    }

    /// Reads the table `[key]` if it is present.
    pub(super) fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 't>)) {
        let Some(value) = self.take(key) else { return };
        match value.get_ref() {
            DeValue::Table(table) => self.nested(self.path(key), value, table, read),
            _ => self.misplaced(self.path(key), value, &format!("[{key}]")),
        }
    }

    /// Reads each of the tables `[key.NAME]`, with any name.
    pub(super) fn named(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&str, &mut Section<'_, 't>),
    ) {
        let Some(value) = self.take(key) else { return };
        let path = self.path(key);
        let head = format!("[{path}.NAME]");
        let DeValue::Table(tables) = value.get_ref() else {
            return self.misplaced(path, value, &head);
        };
        for (name, value) in tables {
            let name: &str = name.get_ref();
            let path = format!("{path}.{name}");
            match value.get_ref() {
                DeValue::Table(table) => {
                    self.nested(path, value, table, |section| read(name, section));
                }
                _ => self.misplaced(path, value, &head),
            }
        }
    }

    /// Reads each of the tables `[[key]]`.
    pub(super) fn sections(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 't>),
    ) {
        let Some(value) = self.take(key) else { return };
        let DeValue::Array(list) = value.get_ref() else {
            return self.misplaced(self.path(key), value, &format!("[[{key}]] over each"));
        };
        for (index, value) in list.iter().enumerate() {
            let path = format!("{}[{index}]", self.path(key));
            match value.get_ref() {
                DeValue::Table(table) => self.nested(path, value, table, &mut read),
                _ => self.misplaced(path, value, &format!("[[{key}]] over each")),
            }
        }
    }

    /// Reports the keys that were not read. Does nothing if the file has syntax errors: a key may
    /// be in this section only because the header of its section could not be parsed.
    pub(super) fn finish(self) {
        if !self.report.broken.is_empty() {
            return;
        }
        let known = &self.known;
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let near = nearest(name, known);
            let advice = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            if let Some(near) = near {
                self.report.unread.insert(self.path(near));
            }
            let Range { start, .. } = key.span();
            self.report.problem(start, self.path(name), format!("unknown key `{name}`: {advice}"));
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns the value of `key` and records the key as known.
    fn take(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.known.push(key);
        let path = self.path(key);
        let value = self.table.get(key);
        match value {
            Some(value) => self.report.places.insert(path, value.span().start).is_some(),
            None => self.report.unset.insert(path),
        };
        value
    }

    fn misplaced(&mut self, path: String, value: &Spanned<DeValue<'t>>, head: &str) {
        let kind = value.get_ref().type_str();
        self.report.unread.insert(path.clone());
        let message = format!("a value of type {kind} where a section must stand: write {head}");
        self.report.problem(value.span().start, path, message);
    }

    fn nested(
        &mut self,
        path: String,
        value: &Spanned<DeValue<'t>>,
        table: &DeTable<'t>,
        read: impl FnOnce(&mut Section<'_, 't>),
    ) {
        self.report.places.insert(path.clone(), value.span().start);
        let mut section =
            Section { report: self.report, prefix: format!("{path}."), table, known: Vec::new() };
        read(&mut section);
        section.finish();
    }
}

/// Returns the known key closest to `name`, if at most a third of its letters differ.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |key: &&'k str| (distance(name, key), *key);
    known
        .iter()
        .map(distance)
        .min()
        .filter(|&(far, key)| far <= key.chars().count().max(3) / 3)
        .map(|(_, key)| key)
}

/// Returns the Levenshtein distance: the number of insertions, deletions and substitutions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let best = (corner + usize::from(from != to)).min(left + 1).min(*cell + 1);
            corner = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_is_levenshteins() {
        for (a, b, far) in [
            ("", "", 0),
            ("", "abs", 3),
            ("abs", "abs", 0),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (far, far), "{a} {b}");
        }
    }

    #[test]
    fn only_a_near_key_is_suggested() {
        let known = ["interval", "dir", "max_age"];
        assert_eq!(nearest("intervall", &known), Some("interval"));
        assert_eq!(nearest("max-age", &known), Some("max_age"));
        assert_eq!(nearest("dirs", &known), Some("dir"));
        assert_eq!(nearest("colour", &known), None);
    }
}
