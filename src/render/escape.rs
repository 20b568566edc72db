//! Texts from names, errors and findings, made safe for Markdown and terminals, and bounded.
//!
//! A text can contain any character: service and task names, paths, symbols of other languages. In
//! each place it becomes one line that shows the same characters.

use std::fmt::{self, Write};

use crate::base::log::escape;

/// A text of at most some bytes. If it is longer, its middle is replaced by `…`: both ends of a
/// path and of a function name help to find it.
#[derive(Clone, Copy)]
struct Excerpt<'a> {
    head: &'a str,
    /// Empty if nothing is left out.
    tail: &'a str,
}

impl<'a> Excerpt<'a> {
    fn new(text: &'a str, max_bytes: usize) -> Self {
        if text.len() <= max_bytes {
            return Self { head: text, tail: "" };
        }
        let mut head_end = max_bytes / 3 * 2;
        let mut tail_start = text.len() - max_bytes / 3;
        while !text.is_char_boundary(head_end) {
            head_end -= 1;
        }
        while !text.is_char_boundary(tail_start) {
            tail_start += 1;
        }
        let (head, _) = text.split_at(head_end);
        let (_, tail) = text.split_at(tail_start);
        Self { head, tail }
    }

    fn chars(self) -> impl Iterator<Item = char> + use<'a> {
        let gap = if self.tail.is_empty() { "" } else { "…" };
        self.head.chars().chain(gap.chars()).chain(self.tail.chars())
    }
}

/// A text in a paragraph, as [`prose`] returns it.
pub(super) struct ProseText<'a>(Excerpt<'a>);

/// A text in a code span, as [`code`] returns it.
pub(super) struct CodeSpan<'a>(Excerpt<'a>);

/// A text in a code fence, as [`verbatim`] returns it.
pub(super) struct VerbatimText<'a>(Excerpt<'a>);

/// Returns `text` for a paragraph: characters with a meaning in Markdown are escaped, white space
/// becomes a space.
pub(super) fn prose(text: &str, max_bytes: usize) -> ProseText<'_> {
    ProseText(Excerpt::new(text.trim(), max_bytes))
}

/// Returns `text` as a code span. A backtick is shown as `'`, because it would end the span.
pub(super) fn code(text: &str, max_bytes: usize) -> CodeSpan<'_> {
    CodeSpan(Excerpt::new(text.trim(), max_bytes))
}

/// Returns `text` for a line of a code fence. A backtick is shown as `'`.
pub(super) fn verbatim(text: &str, max_bytes: usize) -> VerbatimText<'_> {
    VerbatimText(Excerpt::new(text.trim(), max_bytes))
}

/// Writes white space as a space, and other characters that are unsafe in a terminal as in log
/// lines: `\u{1b}`.
fn write_char(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    if character.is_whitespace() {
        return f.write_char(' ');
    }
    f.write_str(&escape(character.encode_utf8(&mut [0; 4])))
}

fn write_code(f: &mut fmt::Formatter<'_>, excerpt: Excerpt<'_>) -> fmt::Result {
    excerpt.chars().try_for_each(|character| match character {
        '`' => f.write_char('\''),
        character => write_char(f, character),
    })
}

impl fmt::Display for ProseText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut previous = ' ';
        let mut characters = self.0.chars().peekable();
        while let Some(character) = characters.next() {
            let next = characters.peek().copied().unwrap_or(' ');
            if has_meaning(previous, character, next) {
                f.write_char('\\')?;
            }
            write_char(f, character)?;
            previous = character;
        }
        Ok(())
    }
}

/// Returns `true` if `character` would begin or end markup. Characters with a meaning only at the
/// start of a line are left to [`wrap`](super::document::wrap).
fn has_meaning(previous: char, character: char, next: char) -> bool {
    match character {
        '`' | '*' | '[' | '<' | '|' | '~' | '$' => true,
        // `snake_case` has no meaning, `_a_` has.
        '_' => !(previous.is_alphanumeric() && next.is_alphanumeric()),
        '\\' => next.is_ascii_punctuation() || next == ' ',
        '&' => next.is_ascii_alphabetic() || next == '#',
        _ => false,
    }
}

impl fmt::Display for CodeSpan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.head.is_empty() {
            return f.write_str("(none)");
        }
        f.write_char('`')?;
        write_code(f, self.0)?;
        f.write_char('`')
    }
}

impl fmt::Display for VerbatimText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_code(f, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_escapes_markup_and_control_characters() {
        for (text, escaped) in [
            ("orders::cache::insert holds 280.0 MiB", "orders::cache::insert holds 280.0 MiB"),
            ("memory.working_set _x_", r"memory.working_set \_x\_"),
            ("<Vec<T> as Drop>::drop", r"\<Vec\<T> as Drop>::drop"),
            ("a|b `c` *d* ~~e~~ [f](g)", r"a\|b \`c\` \*d\* \~\~e\~\~ \[f](g)"),
            ("a\nb\tc\r\n# d", "a b c  # d"),
            ("\u{1b}[2J\u{202e}", r"\u{1b}\[2J\u{202e}"),
            (r"C:\dir \* \", r"C:\dir \\\* \\"),
            ("&mut T && &amp; &#35;", r"\&mut T && \&amp; \&#35;"),
            ("", ""),
        ] {
            assert_eq!(prose(text, 100).to_string(), escaped, "{text}");
        }
    }

    #[test]
    fn code_cannot_end_its_span_or_fence() {
        for (text, span, line) in [
            ("a::b", "`a::b`", "a::b"),
            ("a`b``` c\n```", "`a'b''' c '''`", "a'b''' c '''"),
            ("\u{9b}31m", r"`\u{9b}31m`", r"\u{9b}31m"),
            ("  ", "(none)", ""),
        ] {
            assert_eq!(code(text, 100).to_string(), span, "{text}");
            assert_eq!(verbatim(text, 100).to_string(), line, "{text}");
        }
    }

    #[test]
    fn long_texts_lose_their_middle() {
        let text = format!("begin{}end", "é".repeat(5000));
        let short = verbatim(&text, 30).to_string();
        assert!(short.starts_with("beginé") && short.ends_with("éend"), "{short}");
        assert!(short.contains('…') && short.len() <= 30 + "…".len(), "{short}");
        for max_bytes in 0..30 {
            let short = prose(&text, max_bytes).to_string();
            assert!(short.len() <= max_bytes + "…".len(), "{max_bytes} {short}");
        }
        assert_eq!(verbatim("exact", 5).to_string(), "exact");
    }
}
