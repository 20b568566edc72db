//! Demangling of function names.

use std::fmt::{self, Write};

/// A limit on the length of a name in bytes. Names of generic code reach a few hundred bytes; a
/// hostile name expands to a megabyte.
pub(super) const MAX_NAME: usize = 4096;

/// A displayable function name: the Rust path of a mangled name without its hash, or any other name
/// unchanged. Writes it without allocating.
pub struct Readable<'a>(pub(super) &'a str);

impl fmt::Display for Readable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = BoundedName { out: f, room: MAX_NAME, failed: false };
        let written = match rustc_demangle::try_demangle(self.0) {
            Ok(path) => write!(name, "{path:#}"),
            Err(_) => name.write_str(self.0),
        };
        match written {
            Ok(()) => Ok(()),
            Err(_) if name.failed => Err(fmt::Error),
            Err(_) => f.write_char('…'),
        }
    }
}

/// A writer that fails after [`MAX_NAME`] bytes.
struct BoundedName<'a, W> {
    out: &'a mut W,
    room: usize,
    /// `true` if `out` returned an error.
    failed: bool,
}

impl<W: Write> Write for BoundedName<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let cut = (0..=self.room.min(text.len()))
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.room -= cut;
        if let Err(error) = self.out.write_str(text.get(..cut).unwrap_or_default()) {
            self.failed = true;
            return Err(error);
        }
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
            assert_eq!(Readable(system_name).to_string(), name);
        }
    }

    #[test]
    fn a_name_is_cut_at_the_limit_and_shows_it() {
        for length in [MAX_NAME - 1, MAX_NAME] {
            assert_eq!(Readable(&"x".repeat(length)).to_string().len(), length);
        }
        let cut = Readable(&"ä".repeat(MAX_NAME)).to_string();
        assert!(cut.ends_with("ä…") && cut.len() == MAX_NAME + '…'.len_utf8());
    }
}
