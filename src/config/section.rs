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
use super::renamed_keys;
use super::settings::Settings;
use super::validate::Finding;
use super::{Error, validate};

/// Result of a parser with the signature of serde's `deserialize_with`.
pub(super) type ParseResult<T> = Result<T, toml::de::Error>;

/// Maximum number of problems kept. A binary file opened as a configuration has one per byte.
const MAX_PROBLEMS: usize = 100;

/// State of reading one text.
pub(super) struct ParseContext<'t> {
    text: &'t str,
    problems: Vec<Problem>,
    /// Number of problems beyond [`MAX_PROBLEMS`].
    omitted: usize,
    /// Byte offset of each key's value. Sections and rules are listed by their paths.
    value_offsets: BTreeMap<String, usize>,
    /// Keys whose slot does not hold the value of the file. Findings about them are dropped.
    invalid_keys: BTreeSet<String>,
    /// Keys that were read but are missing in the file.
    pub(super) missing_keys: BTreeSet<String>,
    /// Lines with syntax errors.
    broken_lines: BTreeSet<usize>,
}

impl<'t> ParseContext<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            problems: Vec::new(),
            omitted: 0,
            value_offsets: BTreeMap::new(),
            invalid_keys: BTreeSet::new(),
            missing_keys: BTreeSet::new(),
            broken_lines: BTreeSet::new(),
        }
    }

    /// Records syntax errors: the first of each line, because later ones follow from it.
    pub(super) fn add_syntax_errors(&mut self, errors: &[toml::de::Error]) {
        for error in errors {
            if self.count_if_full() {
                continue;
            }
            let offset = error.span().map_or(self.text.len(), |span| span.start);
            let message = error.message().to_owned();
            let problem = Problem::at_offset(self.text, offset, String::new(), message);
            if let Some((line, _)) = problem.position
                && self.broken_lines.insert(line)
            {
                self.problems.push(problem);
            }
        }
    }

    /// Returns `true` if the list of problems is full, and counts the problem.
    fn count_if_full(&mut self) -> bool {
        let full = self.problems.len() >= MAX_PROBLEMS;
        self.omitted += usize::from(full);
        full
    }

    fn add_problem(&mut self, offset: usize, key: String, message: String) {
        if self.count_if_full() {
            return;
        }
        let problem = Problem::at_offset(self.text, offset, key, message);
        if problem.position.is_none_or(|(line, _)| !self.broken_lines.contains(&line)) {
            self.problems.push(problem);
        }
    }

    /// Records a problem of valid values. Drops it if it involves a value that could not be read,
    /// or if the file has syntax errors: a missing key may only be unparsed.
    fn add_finding(&mut self, finding: Finding) {
        if !self.broken_lines.is_empty()
            || finding.keys.iter().any(|key| self.invalid_keys.contains(key))
        {
            return;
        }
        let Some(key) = finding.keys.into_iter().next() else { return };
        let section = key.rsplit_once('.').map_or("", |(section, _)| section);
        let offset = self.value_offsets.get(&key).or_else(|| self.value_offsets.get(section));
        self.add_problem(offset.copied().unwrap_or(0), key, finding.message);
    }

    /// Validates `settings`, which were read with this report.
    pub(super) fn into_settings(
        mut self,
        origin: PathBuf,
        settings: Settings,
    ) -> Result<Settings, Error> {
        for finding in validate::findings(&settings) {
            self.add_finding(finding);
        }
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(Problems::new(Some(&origin), self.problems).with_omitted(self.omitted).into())
        }
    }
}

/// One table of the file.
pub(super) struct Section<'r, 't> {
    context: &'r mut ParseContext<'t>,
    /// Path with a trailing dot; empty for the root table.
    prefix: String,
    table: &'r DeTable<'t>,
    known_keys: Vec<&'static str>,
    /// Old keys that are accepted.
    old_keys: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    /// Returns the root table.
    pub(super) fn root(context: &'r mut ParseContext<'t>, table: &'r DeTable<'t>) -> Self {
        Self { context, prefix: String::new(), table, known_keys: Vec::new(), old_keys: Vec::new() }
    }

    /// Returns `true` if `key` is present.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Accepts the old `key` if its value is the text `value`, which states the default. Returns
    /// `true` if it is.
    pub(super) fn accept_old(&mut self, key: &'static str, value: &str) -> bool {
        let text = self.table.get(key).and_then(|found| found.get_ref().as_str());
        let is_default = text == Some(value);
        self.old_keys.extend(is_default.then_some(key));
        is_default
    }

    /// Records a problem with `key`.
    pub(super) fn reject(&mut self, key: &str, message: String) {
        let path = self.path(key);
        self.context.add_finding(Finding { keys: vec![path.clone()], message });
        self.context.invalid_keys.insert(path);
    }

    /// Excludes `key` from the findings of validation.
    pub(super) fn ignore(&mut self, key: &str) {
        self.context.invalid_keys.insert(self.path(key));
    }

    /// Reads `key` into `slot`. Returns `true` if it was present and valid.
    pub(super) fn read<T, S: From<T>>(
        &mut self,
        key: &'static str,
        parser: impl FnOnce(ValueDeserializer<'t>) -> ParseResult<T>,
        slot: &mut S,
    ) -> bool {
        let Some(value) = self.take_value(key) else { return false };
        match parser(ValueDeserializer::from(value.clone())) {
            Ok(read) => {
                *slot = read.into();
                true
            }
            Err(error) => {
                let offset = error.span().unwrap_or(value.span()).start;
                let path = self.path(key);
                self.context.invalid_keys.insert(path.clone());
                self.context.add_problem(offset, path, error.message().to_owned());
                false
            }
        }
    }

    /// Reads the table `[key]` if it is present.
    pub(super) fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 't>)) {
        let Some(value) = self.take_value(key) else { return };
        match value.get_ref() {
            DeValue::Table(table) => self.read_nested(self.path(key), value, table, read),
            _ => self.report_wrong_type(self.path(key), value, &format!("[{key}]")),
        }
    }

    /// Reads each of the tables `[key.NAME]`, with any name.
    pub(super) fn named_sections(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&str, &mut Section<'_, 't>),
    ) {
        let Some(value) = self.take_value(key) else { return };
        let path = self.path(key);
        let header = format!("[{path}.NAME]");
        let DeValue::Table(tables) = value.get_ref() else {
            return self.report_wrong_type(path, value, &header);
        };
        for (name, value) in tables {
            let name: &str = name.get_ref();
            let path = format!("{path}.{name}");
            match value.get_ref() {
                DeValue::Table(table) => {
                    self.read_nested(path, value, table, |section| read(name, section));
                }
                _ => self.report_wrong_type(path, value, &header),
            }
        }
    }

    /// Reads each of the tables `[[key]]`.
    pub(super) fn sections(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'_, 't>),
    ) {
        let Some(value) = self.take_value(key) else { return };
        let DeValue::Array(list) = value.get_ref() else {
            return self.report_wrong_type(
                self.path(key),
                value,
                &format!("[[{key}]] above each entry"),
            );
        };
        for (index, value) in list.iter().enumerate() {
            let path = format!("{}[{index}]", self.path(key));
            match value.get_ref() {
                DeValue::Table(table) => self.read_nested(path, value, table, &mut read),
                _ => self.report_wrong_type(path, value, &format!("[[{key}]] above each entry")),
            }
        }
    }

    /// Reports the keys that were not read. Does nothing if the file has syntax errors: a key may
    /// be in this section only because the header of its section could not be parsed.
    pub(super) fn finish(self) {
        if !self.context.broken_lines.is_empty() {
            return;
        }
        let known_keys = &self.known_keys;
        for (key, _) in self.table {
            let name: &str = key.get_ref();
            if known_keys.contains(&name) || self.old_keys.contains(&name) {
                continue;
            }
            let renamed = renamed_keys::advice(&self.prefix, name);
            let suggestion = nearest(name, known_keys).filter(|_| renamed.is_none());
            let advice = match (renamed, suggestion) {
                (Some(advice), _) => advice.to_owned(),
                (None, Some(suggestion)) => format!("did you mean `{suggestion}`?"),
                (None, None) => format!("valid keys: {}", known_keys.join(", ")),
            };
            if let Some(suggestion) = suggestion {
                self.context.invalid_keys.insert(self.path(suggestion));
            }
            let Range { start, .. } = key.span();
            self.context.add_problem(
                start,
                self.path(name),
                format!("unknown key `{name}`: {advice}"),
            );
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Returns the value of `key` and records the key as known.
    fn take_value(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.known_keys.push(key);
        let path = self.path(key);
        let value = self.table.get(key);
        match value {
            Some(value) => self.context.value_offsets.insert(path, value.span().start).is_some(),
            None => self.context.missing_keys.insert(path),
        };
        value
    }

    fn report_wrong_type(&mut self, path: String, value: &Spanned<DeValue<'t>>, header: &str) {
        let kind = value.get_ref().type_str();
        self.context.invalid_keys.insert(path.clone());
        let message = format!("expected a section, found a value of type {kind}: write {header}");
        self.context.add_problem(value.span().start, path, message);
    }

    fn read_nested(
        &mut self,
        path: String,
        value: &Spanned<DeValue<'t>>,
        table: &DeTable<'t>,
        read: impl FnOnce(&mut Section<'_, 't>),
    ) {
        self.context.value_offsets.insert(path.clone(), value.span().start);
        let mut section = Section {
            context: self.context,
            prefix: format!("{path}."),
            table,
            known_keys: Vec::new(),
            old_keys: Vec::new(),
        };
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
        .filter(|&(distance, key)| distance <= key.chars().count().max(3) / 3)
        .map(|(_, key)| key)
}

/// Returns the Levenshtein distance: the number of insertions, deletions and substitutions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let best = (diagonal + usize::from(from != to)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
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
    fn distance_is_levenshtein() {
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
    fn suggests_only_similar_key() {
        let known = ["interval", "dir", "max_age"];
        assert_eq!(nearest("intervall", &known), Some("interval"));
        assert_eq!(nearest("max-age", &known), Some("max_age"));
        assert_eq!(nearest("dirs", &known), Some("dir"));
        assert_eq!(nearest("colour", &known), None);
    }
}
