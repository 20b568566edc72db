//! Escaping of texts for log lines.

use std::borrow::Cow;
use std::fmt::Write;

/// Maximum length of a text of an event, in bytes. The longest path has 4096.
const MAX_TEXT_BYTES: usize = 4 << 10;

/// Returns `text` with unsafe characters escaped as `\n` or `\u{1b}`: control characters, line
/// separators and marks that reorder text.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            let _ = write!(safe, "{}", character.escape_default());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Returns `text` escaped, truncated to the maximum length of an event's text.
pub(super) fn escape_and_truncate(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (head, rest) = text.split_at(end);
    let mut safe = escape(head).into_owned();
    if !rest.is_empty() {
        let _ = write!(safe, "… ({} bytes more)", rest.len());
    }
    safe
}

/// Returns `true` if `character` can end the line, move the cursor or change the text direction.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_prevents_forged_lines_and_terminal_escapes() {
        for (text, safe) in [
            ("tokio-rt-worker", "tokio-rt-worker"),
            ("état 線程", "état 線程"),
            ("a\nERROR forged", r"a\nERROR forged"),
            ("\u{1b}[2J", r"\u{1b}[2J"),
            ("\u{9b}31m\r\t\0", r"\u{9b}31m\r\t\u{0}"),
            ("\u{202e}txt.exe\u{2028}", r"\u{202e}txt.exe\u{2028}"),
        ] {
            assert_eq!(escape(text), safe);
        }
    }

    #[test]
    fn long_text_is_truncated_at_char_boundary() {
        let text = "é".repeat(MAX_TEXT_BYTES);
        let cut = escape_and_truncate(&text);
        assert!(cut.starts_with(&"é".repeat(MAX_TEXT_BYTES / 2)), "{}", cut.len());
        assert!(cut.ends_with("… (4096 bytes more)"), "{cut}");
        assert_eq!(escape_and_truncate(&"x".repeat(MAX_TEXT_BYTES)).len(), MAX_TEXT_BYTES);
    }
}
