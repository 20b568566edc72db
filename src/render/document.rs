//! A Markdown document with a maximum size: the least valuable blocks are left out first, and the
//! document says so.

use super::number::plural;

/// Maximum width of a line, without commands and names that must not be broken.
const MAX_WIDTH: usize = 100;

/// Bytes reserved for the lines that say what is left out: one per section, and one at the end.
const NOTE_BYTES: usize = 1024;

/// A text with a title, and sections of blocks.
pub(super) struct MarkdownDocument {
    /// Title and first paragraphs. Never left out.
    pub(super) head: String,
    pub(super) sections: Vec<DocumentSection>,
}

/// A heading with blocks.
pub(super) struct DocumentSection {
    title: &'static str,
    /// Text before the first block. Left out together with all blocks.
    intro: String,
    blocks: Vec<DocumentBlock>,
    /// Name of the blocks that are counted if they are left out, as `file`. Empty if the rest of
    /// the section is complete without them.
    noun: &'static str,
    /// Number of blocks that are left out.
    omitted: u64,
}

/// Lines that are kept or left out together.
struct DocumentBlock {
    text: String,
    /// The block with the lowest value is left out first.
    worth: u32,
    /// `true` if it is one of the section's `noun`s, and not a further part of one.
    is_entry: bool,
}

impl DocumentSection {
    pub(super) fn new(title: &'static str, noun: &'static str) -> Self {
        Self { title, intro: String::new(), blocks: Vec::new(), noun, omitted: 0 }
    }

    /// Sets the text before the first block.
    pub(super) fn intro(mut self, text: &str) -> Self {
        self.intro = wrap("", "", text);
        self.intro.push('\n');
        self
    }

    /// Adds an entry of the section.
    pub(super) fn push(&mut self, worth: u32, text: String) {
        self.blocks.push(DocumentBlock { text, worth, is_entry: true });
    }

    /// Adds a part of the last entry, whose `worth` is less than that of the entry.
    pub(super) fn push_detail(&mut self, worth: u32, text: String) {
        self.blocks.push(DocumentBlock { text, worth, is_entry: false });
    }

    /// Counts entries that are not added.
    pub(super) fn omit(&mut self, entries: usize) {
        self.omitted += entries as u64;
    }

    fn len(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.text.len()).sum();
        if self.blocks.is_empty() { 0 } else { self.title.len() + 6 + self.intro.len() + blocks }
    }

    fn least_worth(&self) -> Option<u32> {
        self.blocks.iter().map(|block| block.worth).min()
    }

    /// Removes the last of the blocks with this worth.
    fn remove_last(&mut self, worth: u32) {
        if let Some(index) = self.blocks.iter().rposition(|block| block.worth == worth) {
            let block = self.blocks.remove(index);
            self.omitted += u64::from(block.is_entry);
        }
    }

    fn write_to(&self, text: &mut String) {
        text.push_str("\n## ");
        text.push_str(self.title);
        text.push_str("\n\n");
        text.push_str(&self.intro);
        for block in &self.blocks {
            text.push_str(&block.text);
        }
        if self.omitted > 0 && !self.noun.is_empty() {
            let more = plural(self.omitted, self.noun);
            text.push_str(&format!("\n{more} more: see `incident.json`.\n"));
        }
    }
}

impl MarkdownDocument {
    /// Returns the text, of at most `max_bytes`.
    pub(super) fn into_text(mut self, max_bytes: usize) -> String {
        self.sections.retain(|section| !section.blocks.is_empty());
        let budget = max_bytes.saturating_sub(NOTE_BYTES);
        while self.head.len() + self.sections.iter().map(DocumentSection::len).sum::<usize>()
            > budget
        {
            let least = |section: &&mut DocumentSection| section.least_worth();
            let sections = self.sections.iter_mut().filter(|section| !section.blocks.is_empty());
            // Of equal ones the last section's: `min_by_key` returns the first.
            let Some(section) = sections.rev().min_by_key(least) else { break };
            if let Some(worth) = section.least_worth() {
                section.remove_last(worth);
            }
        }
        let mut text = self.head;
        let mut missing = Vec::new();
        for section in &self.sections {
            if section.blocks.is_empty() {
                missing.push(section.title);
            } else {
                section.write_to(&mut text);
            }
        }
        if !missing.is_empty() {
            let left_out = format!(
                "Left out, because this report is limited to {} KiB: {}.",
                max_bytes >> 10,
                missing.join(", ")
            );
            text.push('\n');
            text.push_str(&wrap("", "", &left_out));
        }
        truncate(&mut text, max_bytes);
        text
    }
}

/// Cuts `text` at a character boundary, so that it has at most `max_bytes`.
pub(super) fn truncate(text: &mut String, max_bytes: usize) {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Breaks `text` between words into lines of at most 100 characters, each with a line end. The
/// first line starts with `first`, the others with `next`. Code spans are not broken. A word that
/// would begin a list or a heading at the start of a line is escaped.
pub(super) fn wrap(first: &str, next: &str, text: &str) -> String {
    let mut lines = String::with_capacity(text.len() + 32);
    lines.push_str(first);
    let mut width = first.chars().count();
    let mut is_at_start = true;
    for word in words(text) {
        let word_width = word.chars().count();
        if !is_at_start && width + 1 + word_width > MAX_WIDTH {
            lines.push('\n');
            lines.push_str(next);
            width = next.chars().count();
            is_at_start = true;
        }
        if is_at_start {
            lines.push_str(line_start_escape(word));
        } else {
            lines.push(' ');
            width += 1;
        }
        match marker_of_list(word).filter(|_| is_at_start) {
            // `3.` becomes `3\.`.
            Some(digits) => {
                let (digits, rest) = word.split_at(digits);
                lines.push_str(digits);
                lines.push('\\');
                lines.push_str(rest);
            }
            None => lines.push_str(word),
        }
        width += word_width;
        is_at_start = false;
    }
    lines.push('\n');
    lines
}

/// Returns the backslash that prevents `word` from beginning a list, a quote, a heading or a line.
fn line_start_escape(word: &str) -> &'static str {
    let is_marker = word == "-"
        || word == "+"
        || word.starts_with(['#', '>'])
        || (!word.is_empty() && word.bytes().all(|byte| byte == b'='))
        || (word.len() > 1 && word.bytes().all(|byte| byte == b'-'));
    if is_marker { "\\" } else { "" }
}

/// Returns the number of digits of a word that begins a numbered list, such as `3.` or `3)`.
fn marker_of_list(word: &str) -> Option<usize> {
    let digits = word.strip_suffix(['.', ')'])?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(digits.len())
}

/// Returns the words of a paragraph. A code span is part of one word.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    let mut previous = ' ';
    text.split(move |character: char| {
        if character == '`' && (is_code || previous != '\\') {
            is_code = !is_code;
        }
        previous = character;
        character == ' ' && !is_code
    })
    .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_at_words_and_keeps_code_spans() {
        let word = "x".repeat(60);
        for (text, expected) in [
            ("a  b".to_owned(), "- a b\n".to_owned()),
            (format!("{word} {word}"), format!("- {word}\n  {word}\n")),
            (format!("{word} `{word} y` z"), format!("- {word}\n  `{word} y` z\n")),
            (format!("{word} `a` {word}"), format!("- {word} `a`\n  {word}\n")),
            (format!("{word} \\`a {word}"), format!("- {word} \\`a\n  {word}\n")),
            ("x".repeat(300), format!("- {}\n", "x".repeat(300))),
            (String::new(), "- \n".to_owned()),
        ] {
            assert_eq!(wrap("- ", "  ", &text), expected);
        }
    }

    #[test]
    fn words_at_start_of_line_do_not_begin_lists_and_headings() {
        let long = "x".repeat(99);
        for (word, escaped) in [
            ("-", "\\-"),
            ("+", "\\+"),
            ("#", "\\#"),
            ("3.", "3\\."),
            ("14)", "14\\)"),
            ("===", "\\==="),
            ("---", "\\---"),
            (">", "\\>"),
            ("+-", "+-"),
            ("3.5", "3.5"),
        ] {
            assert_eq!(wrap("", "", &format!("{long} {word} y")), format!("{long}\n{escaped} y\n"));
            assert_eq!(wrap("", "", word), format!("{escaped}\n"));
        }
    }

    fn section(title: &'static str, blocks: &[(u32, usize)]) -> DocumentSection {
        let mut section = DocumentSection::new(title, "block");
        for &(worth, length) in blocks {
            section.push(worth, format!("{}\n", "x".repeat(length)));
        }
        section
    }

    #[test]
    fn least_valuable_blocks_are_left_out_and_named() {
        let document = || MarkdownDocument {
            head: "# title\n".to_owned(),
            sections: vec![
                section("First", &[(9, 1000), (3, 1000), (3, 1000)]),
                section("Second", &[(1, 1000)]),
                section("Empty", &[]),
            ],
        };
        let all = document().into_text(8192);
        assert!(!all.contains("more") && !all.contains("Left out") && !all.contains("Empty"));

        let some = document().into_text(4608);
        assert!(
            some.contains("Left out, because this report is limited to 4 KiB: Second."),
            "{some}"
        );
        assert!(!some.contains("more:"), "{some}");

        let few = document().into_text(2560);
        assert!(few.contains("\n2 blocks more: see `incident.json`.\n"), "{few}");
        assert!(few.len() <= 2560);

        let none = document().into_text(1024);
        assert!(none.contains("First, Second."), "{none}");
        assert_eq!(document().into_text(4), "# ti");
    }
}
