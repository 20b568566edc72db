//! The one way a key is read, and the list of everything that went wrong on the way.
//!
//! A [`Section`] stands over one table. `section.read(key, reader, &mut slot)` fills the slot or notes
//! a problem; a key that is not there leaves the slot's default. [`Section::finish`] refuses the keys
//! nobody asked for. Nothing is ever read by another way, so the set of keys asked for *is* the set of
//! known keys: the suggestions and the test over `config/marple.toml` come from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::{Problem, Problems};
use super::settings::Settings;
use super::validate::Finding;
use super::{Error, validate};

/// How a value is read: the signature of serde's `deserialize_with`.
pub(super) type Read<T> = Result<T, toml::de::Error>;

/// More problems than anybody reads at once; a binary file taken for a configuration has one a byte.
const MAX_PROBLEMS: usize = 100;

/// What is known about a text while it is read.
pub(super) struct Report<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// How many problems there are beyond [`MAX_PROBLEMS`].
    more: usize,
    /// Where each key's value stands; sections and rules by their own paths.
    places: BTreeMap<String, usize>,
    /// The keys whose value is not what the file says, so that nothing is concluded from it.
    unread: BTreeSet<String>,
    /// The keys that were asked for and are not there.
    pub(super) unset: BTreeSet<String>,
    /// The lines that could not be parsed.
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

    /// Notes what the parser could not parse: the first error of each line, as those after it follow
    /// from it.
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

    /// Counts a problem for which there is no room.
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

    /// Notes what is wrong with values that could be read each, unless it rests on one that could not,
    /// or on one that may be missing only because it could not be parsed.
    fn finding(&mut self, finding: Finding) {
        if !self.broken.is_empty() || finding.keys.iter().any(|key| self.unread.contains(key)) {
            return;
        }
        let Some(key) = finding.keys.into_iter().next() else { return };
        let section = key.rsplit_once('.').map_or("", |(section, _)| section);
        let offset = self.places.get(&key).or_else(|| self.places.get(section));
        self.problem(offset.copied().unwrap_or(0), key, finding.message);
    }

    /// The verdict over `settings`, which were read with this report.
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
    /// Its path with a trailing dot, empty for the file itself.
    prefix: String,
    table: &'r DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    /// The file itself.
    pub(super) fn root(report: &'r mut Report<'t>, table: &'r DeTable<'t>) -> Self {
        Self { report, prefix: String::new(), table, known: Vec::new() }
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes that `key` should be otherwise.
    pub(super) fn refuse(&mut self, key: &str, message: String) {
        let path = self.path(key);
        self.report.finding(Finding { keys: vec![path.clone()], message });
        self.report.unread.insert(path);
    }

    /// Notes that nothing is to be concluded from `key`.
    pub(super) fn ignore(&mut self, key: &str) {
        self.report.unread.insert(self.path(key));
    }

    /// Reads `key` into `slot`; true when it was there and could be read.
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

    /// Reads the table `[key]`, if it is there.
    pub(super) fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 't>)) {
        let Some(value) = self.take(key) else { return };
        match value.get_ref() {
            DeValue::Table(table) => self.nested(self.path(key), value, table, read),
            _ => self.misplaced(self.path(key), value, &format!("[{key}]")),
        }
    }

    /// Reads each of the tables `[key.NAME]`, whatever its name.
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

    /// Refuses the keys that were not asked for. Not in a file with broken syntax: a key may stand in
    /// this section only because the head of its own could not be parsed.
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

    /// The value of `key`, noting that it is known.
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

/// The known key that `name` most likely means: at most a third of its letters away.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let distance = |key: &&'k str| (distance(name, key), *key);
    known
        .iter()
        .map(distance)
        .min()
        .filter(|&(far, key)| far <= key.chars().count().max(3) / 3)
        .map(|(_, key)| key)
}

/// Levenshtein's distance: how many letters must be put in, taken out or changed.
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
