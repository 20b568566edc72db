//! Where tasks come from and what they are called: static texts by a number of twelve bits.
//!
//! A site is known by the addresses of its texts, not by their letters, so finding it is a multiplication
//! and a comparison. It enters the table when it is first seen and never leaves, so a reader needs no lock.
//! A program has some hundred places that spawn; where the table is full, or one corner of it, sites share
//! the number 0 and the name that goes with it.

use std::panic::Location;
use std::ptr;
use std::sync::OnceLock;

use crate::model::{MAX_SITES, StringHandle, StringTable};

/// How many places are tried for a site.
const TRIES: usize = 32;

/// What tasks are called that have no place in the table.
const NAMELESS: &str = "task";

static SITES: [OnceLock<Site>; MAX_SITES] = [const { OnceLock::new() }; MAX_SITES];

/// What tasks of one kind have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// What the program calls them.
    pub(super) name: Option<&'static str>,
    /// Where they are spawned or named.
    pub(super) place: &'static Location<'static>,
}

impl Site {
    /// Its number; 0 when there is no room for it. Allocates nothing.
    #[inline]
    pub(super) fn number(self) -> u16 {
        let mut at = self.hash();
        for _ in 0..TRIES {
            // Number 0 is for those that find no place.
            if let Some(slot) = SITES.get(at).filter(|_| at != 0) {
                match slot.get() {
                    Some(known) if self.is(known) => return at as u16,
                    Some(_) => {}
                    None if self.enter(slot) => return at as u16,
                    None => {}
                }
            }
            at = (at + 1) % MAX_SITES;
        }
        0
    }

    /// Whether the slot is its own from here on.
    #[cold]
    fn enter(self, slot: &OnceLock<Self>) -> bool {
        self.is(slot.get_or_init(|| self))
    }

    fn hash(self) -> usize {
        let name = self.name.map_or(0, |name| name.as_ptr() as usize ^ name.len());
        let both = (ptr::from_ref(self.place) as usize).wrapping_add(name.rotate_left(17));
        (both as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> (usize::BITS - 12)
    }

    fn is(self, other: &Self) -> bool {
        let same_name = match (self.name, other.name) {
            (None, None) => true,
            (Some(a), Some(b)) => ptr::eq(a, b),
            _ => false,
        };
        same_name && ptr::eq(self.place, other.place)
    }

    /// What its tasks are called: by their name, else by where they were spawned.
    fn text(self) -> String {
        match self.name {
            Some(name) => name.to_owned(),
            None => format!("{}:{}", short(self.place.file()), self.place.line()),
        }
    }
}

/// What a task of this site is, in full: its name, and where it was spawned.
pub(super) fn name(number: u16) -> String {
    let site = SITES.get(usize::from(number)).filter(|_| number != 0).and_then(OnceLock::get);
    match site {
        Some(Site { name: Some(name), place }) => {
            format!("{name}, {}:{}", short(place.file()), place.line())
        }
        Some(site) => site.text(),
        None => NAMELESS.to_owned(),
    }
}

/// The names of all sites, by their numbers.
pub(super) fn names(strings: &mut StringTable) -> Vec<StringHandle> {
    let last = SITES.iter().rposition(|site| site.get().is_some()).unwrap_or(0);
    let mut name = |site: &OnceLock<Site>| match site.get() {
        Some(site) => strings.intern(&site.text()),
        None => StringHandle::EMPTY,
    };
    let mut names: Vec<_> = SITES.iter().take(last + 1).map(&mut name).collect();
    if let Some(first) = names.first_mut() {
        *first = strings.intern(NAMELESS);
    }
    names
}

/// Of a file in somebody else's source, the part from the package's name on.
fn short(file: &str) -> &str {
    let in_package = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_package.map_or(file, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn here(name: Option<&'static str>) -> Site {
        Site { name, place: Location::caller() }
    }

    #[test]
    fn a_site_has_one_number_and_its_text() {
        let mut numbers = Vec::new();
        for _ in 0..2 {
            numbers.push([here(None), here(Some("reader")), here(Some("writer"))]);
        }
        let [first, second] = [0, 1].map(|n| numbers[n].map(Site::number));
        assert_eq!(first, second);
        assert!(first[0] != first[1] && first[1] != first[2] && !first.contains(&0));
        let mut strings = StringTable::default();
        let names = names(&mut strings);
        let text = |number: u16| strings.get(names[usize::from(number)]).to_owned();
        assert!(text(first[0]).starts_with("src/trace/sites.rs:"), "{}", text(first[0]));
        assert_eq!([text(first[1]), text(first[2]), text(0)], ["reader", "writer", "task"]);
    }

    #[test]
    fn a_file_of_a_package_is_named_from_the_package_on() {
        assert_eq!(short("src/main.rs"), "src/main.rs");
        let file = "/home/x/.cargo/registry/src/index.crates.io-1949/axum-0.8.9/src/serve.rs";
        assert_eq!(short(file), "axum-0.8.9/src/serve.rs");
    }
}
