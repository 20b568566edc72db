//! Demangling of function names.

use std::fmt::{self, Write};

/// A limit on the length of a name in bytes. Names of generic code reach a few hundred bytes; a
/// hostile name expands to a megabyte.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// A displayable function name: the Rust path of a mangled name without its hash, or any other name
/// unchanged. Writes it without allocating.
pub struct DemangledName<'a>(pub(super) &'a str);

impl fmt::Display for DemangledName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = BoundedName { out: f, remaining: MAX_NAME_BYTES, failed: false };
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

/// A writer that fails after [`MAX_NAME_BYTES`] bytes.
struct BoundedName<'a, W> {
    out: &'a mut W,
    remaining: usize,
    /// `true` if `out` returned an error.
    failed: bool,
}

impl<W: Write> Write for BoundedName<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = (0..=self.remaining.min(text.len()))
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        self.remaining -= end;
        if let Err(error) = self.out.write_str(text.get(..end).unwrap_or_default()) {
            self.failed = true;
            return Err(error);
        }
        if end < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demangling_removes_rust_hash_and_keeps_other_names() {
        for (system_name, name) in [
            ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", "_ZNSt6vectorIiSaIiEE9push_backEOi"),
            ("malloc", "malloc"),
            ("", ""),
        ] {
            assert_eq!(DemangledName(system_name).to_string(), name);
        }
    }

    #[test]
    fn long_name_is_truncated_with_ellipsis() {
        for length in [MAX_NAME_BYTES - 1, MAX_NAME_BYTES] {
            assert_eq!(DemangledName(&"x".repeat(length)).to_string().len(), length);
        }
        let cut = DemangledName(&"ä".repeat(MAX_NAME_BYTES)).to_string();
        assert!(cut.ends_with("ä…") && cut.len() == MAX_NAME_BYTES + '…'.len_utf8());
    }
}
