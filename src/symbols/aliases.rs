//! One name for several symbols at the same address.
//!
//! Compilers and linkers give functions with equal machine code one body (identical code folding).
//! A frame in it may belong to any of them, so its name lists them: `orders::keep (or
//! reports::keep)`, `a (or b, +3 more)`. Symbols of the same function become one name: `nanosleep`
//! and `__nanosleep`, constructors of different kinds, and symbols that are equal after demangling.

use crate::symbols::owner::NAME_SEPARATOR;
use std::fmt::Write;
use std::ops::Range;

use super::Error;
use super::image::{ElfImage, MAX_SYSTEM_NAME};
use super::lookup::{Aliases, MAX_ALIASES};
use super::name::{DemangledName, MAX_NAME_BYTES};
use super::owner::is_application;

/// Returns the names listed in a frame's name: one or two.
pub fn listed_names(name: &str) -> impl Iterator<Item = &str> {
    let (first, rest) =
        name.split_once(NAME_SEPARATOR).map_or((name, ""), |(first, rest)| (first, rest));
    let rest = rest.strip_suffix(')').unwrap_or(rest);
    let second = rest.split_once(", +").map_or(rest, |(second, _)| second);
    [first, second].into_iter().filter(|name| !name.is_empty())
}

/// Buffers for the names of the symbols at one address.
#[derive(Default)]
pub(super) struct AliasNames {
    /// The name being read.
    name_buffer: Vec<u8>,
    /// The mangled names, concatenated.
    system_names: String,
    /// The demangled names, concatenated.
    demangled_names: String,
    names: [Name; MAX_ALIASES],
    display_name: String,
    first_system_name: Range<usize>,
}

#[derive(Clone, Debug, Default)]
struct Name {
    system_range: Range<usize>,
    text_range: Range<usize>,
    is_weak: bool,
    is_rust: bool,
}

impl AliasNames {
    /// Reserves capacity for the longest names.
    pub(super) fn with_reserved_capacity() -> Self {
        let reserved_string = |size| {
            let mut room = "x".repeat(size);
            room.clear();
            room
        };
        let mut one = vec![u8::MAX; MAX_SYSTEM_NAME + 256];
        one.clear();
        Self {
            name_buffer: one,
            // After a name of the maximum length, further names may not fit; those are counted.
            system_names: reserved_string(3 * MAX_SYSTEM_NAME),
            demangled_names: reserved_string(MAX_ALIASES * (MAX_NAME_BYTES + 4)),
            names: Default::default(),
            display_name: reserved_string(2 * MAX_NAME_BYTES + 64),
            first_system_name: 0..0,
        }
    }

    /// Returns the name to show.
    pub(super) fn display_name(&self) -> &str {
        &self.display_name
    }

    /// Returns the first of the mangled names.
    pub(super) fn system_name(&self) -> &str {
        self.system_names.get(self.first_system_name.clone()).unwrap_or_default()
    }

    /// Reads the names of `aliases`, which are symbols of `image`.
    pub(super) fn read(&mut self, image: &ElfImage, aliases: &Aliases) -> Result<(), Error> {
        self.system_names.clear();
        self.demangled_names.clear();
        self.display_name.clear();
        self.first_system_name = 0..0;
        let mut more = aliases.omitted_count();
        let mut count = 0;
        for (offset, is_weak) in aliases.iter() {
            image.read_name(offset, &mut self.name_buffer)?;
            match self.push_name(count, is_weak) {
                true => count += 1,
                false => more += usize::from(!self.name_buffer.is_empty()),
            }
        }
        self.build_display_name(count, more);
        Ok(())
    }

    /// Adds the name just read. Returns `false` if it is not shown or does not fit.
    fn push_name(&mut self, index: usize, is_weak: bool) -> bool {
        // Mapping symbols of the assembler ($x, $d) mark kinds of content, not functions.
        if matches!(self.name_buffer.first(), None | Some(b'$')) {
            self.name_buffer.clear();
            return false;
        }
        let system = self.system_names.len();
        let is_first = index == 0;
        let name = String::from_utf8_lossy(&self.name_buffer);
        if !is_first && system + name.len() > 3 * MAX_SYSTEM_NAME {
            return false;
        }
        self.system_names.push_str(&name);
        let text = self.demangled_names.len();
        let is_rust = rustc_demangle::try_demangle(&name).is_ok();
        let _ = write!(self.demangled_names, "{}", DemangledName(&name));
        let Some(found) = self.names.get_mut(index) else { return false };
        *found = Name {
            system_range: system..self.system_names.len(),
            text_range: text..self.demangled_names.len(),
            is_weak,
            is_rust,
        };
        true
    }

    /// Builds the name to show from the first `count` names and the number `more` of names not
    /// stored.
    fn build_display_name(&mut self, count: usize, more: usize) {
        let Self {
            system_names: system,
            demangled_names: texts,
            names: found,
            display_name: shown,
            first_system_name: first,
            ..
        } = self;
        let found = found.get_mut(..count).unwrap_or_default();
        let text = |name: &Name| texts.get(name.text_range.clone()).unwrap_or_default();
        if count > 1 {
            found.sort_unstable_by(|a, b| sort_key(a, text(a)).cmp(&sort_key(b, text(b))));
        }
        let Some(name) = found.first() else { return };
        *first = name.system_range.clone();
        shown.push_str(text(name));
        let mut second = None;
        let mut others = more;
        for (place, name) in found.iter().enumerate().skip(1) {
            let before = found.get(..place).unwrap_or_default();
            if before.iter().any(|other| is_same_function(name, text(name), other, text(other))) {
                continue;
            }
            match second {
                None => second = Some(name),
                Some(_) => others += 1,
            }
        }
        let _ = match (second, others) {
            (None, 0) => Ok(()),
            (None, others) => write!(shown, "{NAME_SEPARATOR}{others} more)"),
            (Some(second), 0) => write!(shown, "{NAME_SEPARATOR}{})", text(second)),
            (Some(second), others) => {
                write!(shown, "{NAME_SEPARATOR}{}, +{others} more)", text(second))
            }
        };
        let _ = system;
    }
}

/// Returns the sort key of names: the service's own first, then the most public.
fn sort_key<'t>(name: &Name, text: &'t str) -> (bool, usize, bool, usize, &'t str) {
    let is_library = !is_application(text);
    if name.is_rust {
        return (is_library, 0, false, 0, text);
    }
    let underscores = text.len() - text.trim_start_matches('_').len();
    let underscores = underscores + usize::from(text.starts_with("_IO_") || text.contains('@'));
    (is_library, underscores, name.is_weak, text.len(), text)
}

/// Returns `true` if two symbols at one address name the same function.
fn is_same_function(a: &Name, a_text: &str, b: &Name, b_text: &str) -> bool {
    if a_text == b_text {
        return true;
    }
    if a.is_rust || b.is_rust {
        return false;
    }
    // C libraries give a function its public name by a weak symbol for a strong one.
    a.is_weak != b.is_weak
        || normalize_c_name(a_text) == normalize_c_name(b_text)
        || is_constructor_variant(a_text.as_bytes(), b_text.as_bytes())
}

/// Returns a C name without the prefixes and suffixes added by libraries and compilers.
fn normalize_c_name(mut name: &str) -> &str {
    const PREFIXES: [&str; 7] = ["GI_", "libc_", "new_", "old_", "isoc99_", "isoc23_", "IO_"];
    name = name.find('@').and_then(|end| name.get(..end)).unwrap_or(name);
    // `.localalias`, `.constprop.0`
    let suffix = name.bytes().skip(1).position(|byte| byte == b'.').map(|end| end + 1);
    name = suffix.and_then(|end| name.get(..end)).unwrap_or(name);
    if let Some(inner) = name.strip_prefix('_') {
        name = inner.trim_start_matches('_');
        name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        name = name.trim_start_matches('_');
    }
    name.strip_suffix("64").unwrap_or(name)
}

/// Returns `true` for a C++ constructor or destructor under two kinds, such as `C1` and `C2`.
fn is_constructor_variant(a: &[u8], b: &[u8]) -> bool {
    let mut other = a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b);
    let Some((at, (one, two))) = other.next().filter(|_| a.len() == b.len()) else { return false };
    let before = at.checked_sub(1).and_then(|before| a.get(before));
    other.next().is_none()
        && a.starts_with(b"_Z")
        && matches!(before, Some(b'C' | b'D'))
        && one.is_ascii_digit()
        && two.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::owner::first_name;

    /// Returns the name shown for symbols at one address, and the first one's mangled name.
    fn display_name_of(symbols: &[(&str, bool)], more: usize) -> (String, String) {
        let mut names = AliasNames::with_reserved_capacity();
        let capacities = |names: &AliasNames| {
            let AliasNames {
                name_buffer: one,
                system_names: system,
                demangled_names: texts,
                display_name: shown,
                ..
            } = names;
            [one.capacity(), system.capacity(), texts.capacity(), shown.capacity()]
        };
        let before = capacities(&names);
        let mut count = 0;
        for (symbol, is_weak) in symbols {
            names.name_buffer.clear();
            names.name_buffer.extend(symbol.bytes());
            count += usize::from(names.push_name(count, *is_weak));
        }
        names.build_display_name(count, more);
        assert_eq!(capacities(&names), before, "nothing is allocated");
        (names.display_name().to_owned(), names.system_name().to_owned())
    }

    #[test]
    fn folded_functions_are_listed_in_one_name() {
        let invoice = "_ZN4host8invoices12keep_invoice17h0123456789abcdefE";
        let report = "_ZN4host7reports11keep_report17h0123456789abcdefE";
        let glue = "_ZN4core3ptr9drop_glue17h0123456789abcdefE";
        for symbols in [[(invoice, false), (report, false)], [(report, false), (invoice, false)]] {
            let (name, system_name) = display_name_of(&symbols, 0);
            assert_eq!(name, "host::invoices::keep_invoice (or host::reports::keep_report)");
            assert_eq!(system_name, invoice);
            assert_eq!(first_name(&name), "host::invoices::keep_invoice");
            assert_eq!(
                listed_names(&name).collect::<Vec<_>>(),
                ["host::invoices::keep_invoice", "host::reports::keep_report"]
            );
        }
        let (name, _) = display_name_of(&[(glue, false), (report, false), (invoice, false)], 4);
        let expected = "host::invoices::keep_invoice (or host::reports::keep_report, +5 more)";
        assert_eq!(name, expected, "the service's own come first");
        assert_eq!(listed_names(&name).count(), 2);
        assert_eq!(
            display_name_of(&[("keep_a", false), ("keep_b", false)], 0).0,
            "keep_a (or keep_b)"
        );
        assert_eq!(
            display_name_of(&[(report, true), (invoice, false)], 0).0.matches("(or ").count(),
            1
        );
    }

    #[test]
    fn aliases_of_one_function_show_the_public_name() {
        for (symbols, expected) in [
            (&[("__nanosleep", false), ("nanosleep", true)][..], "nanosleep"),
            (&[("__nanosleep", false), ("nanosleep", false)], "nanosleep"),
            (&[("_IO_puts", false), ("puts", true)], "puts"),
            (&[("__GI___write", false), ("__write", false), ("write", true)], "write"),
            (&[("open64", true), ("__open", false), ("open", true)], "open"),
            (&[("strchr", false), ("index", true)], "strchr"),
            (&[("memcpy@@GLIBC_2.14", false), ("memcpy", false)], "memcpy"),
            (&[("f.localalias", false), ("f", false)], "f"),
            (&[("_ZN1AC1Ev", false), ("_ZN1AC2Ev", false)], "_ZN1AC1Ev"),
            (
                &[
                    ("_ZN1a1T3new17h0123456789abcdefE", false),
                    ("_ZN1a1T3new17hfedcba9876543210E", false),
                ],
                "a::T::new",
            ),
            (&[("$x", false), ("start", false)], "start"),
            (&[("$x", false)], ""),
            (&[], ""),
        ] {
            assert_eq!(display_name_of(symbols, 0).0, expected, "{symbols:?}");
        }
    }

    #[test]
    fn longest_names_do_not_reallocate() {
        let long = "x".repeat(MAX_SYSTEM_NAME);
        let (name, _) = display_name_of(&[(long.as_str(), false); MAX_ALIASES], 1);
        assert!(name.ends_with("… (or 1 more)") || name.contains("more)"), "{name}");
    }
}
