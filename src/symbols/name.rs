//! From the linker's name of a function to the one its author knows.

use std::fmt::{self, Write};

/// The longest name that is kept, in bytes. Generic code nests to a few hundred; a name made to be
/// hostile expands to a megabyte.
const MAX_NAME: usize = 4096;

/// The Rust path behind a mangled name, without its hash; any other name as it is.
pub(super) fn readable(system_name: &str) -> String {
    let mut name = Bounded(String::new());
    let written = match rustc_demangle::try_demangle(system_name) {
        Ok(path) => write!(name, "{path:#}"),
        Err(_) => name.write_str(system_name),
    };
    if written.is_err() {
        name.0.push('…');
    }
    name.0
}

/// A text that takes [`MAX_NAME`] bytes and then fails.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_NAME.saturating_sub(self.0.len());
        let cut =
            (0..=room.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        self.0.push_str(text.get(..cut).unwrap_or_default());
        if cut < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_rust_manglings_lose_their_hash_and_other_names_stay() {
        for (system_name, name) in [
            ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", "_ZNSt6vectorIiSaIiEE9push_backEOi"),
            ("malloc", "malloc"),
            ("", ""),
        ] {
            assert_eq!(readable(system_name), name);
        }
    }

    #[test]
    fn a_name_is_cut_at_the_limit_and_shows_it() {
        for length in [MAX_NAME - 1, MAX_NAME] {
            assert_eq!(readable(&"x".repeat(length)).len(), length);
        }
        let cut = readable(&"ä".repeat(MAX_NAME));
        assert!(cut.ends_with("ä…") && cut.len() == MAX_NAME + '…'.len_utf8());
    }
}
