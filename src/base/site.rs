//! Where tasks come from and what they are called: static texts by a number of twelve bits.
//!
//! A site is known by the addresses of its texts, not by their letters, so finding it is a multiplication
//! and a comparison. It enters the table when it is first seen and never leaves, so a reader needs no lock.
//! A program has some hundred places that spawn; where the table is full, or one corner of it, sites share
//! the number 0.

use std::panic::Location;
use std::ptr;
use std::sync::OnceLock;

/// How many bits a site's number takes.
pub const SITE_BITS: u32 = 12;

/// How many sites there can be.
pub const MAX_SITES: usize = 1 << SITE_BITS;

/// How many places are tried for a site.
const TRIES: usize = 32;

static SITES: [OnceLock<Site>; MAX_SITES] = [const { OnceLock::new() }; MAX_SITES];

/// What tasks of one kind have in common.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// What the program calls them.
    pub name: Option<&'static str>,
    /// Where they are spawned or named.
    pub place: &'static Location<'static>,
}

impl Site {
    /// Its number; 0 when there is no room for it. Allocates nothing.
    #[inline]
    pub fn number(self) -> u16 {
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

    /// The site with this number; none for 0 and for a number that was never given.
    pub fn of(number: u16) -> Option<Self> {
        SITES.get(usize::from(number))?.get().copied()
    }

    /// The greatest number that was given so far.
    pub fn last() -> u16 {
        SITES.iter().rposition(|site| site.get().is_some()).unwrap_or(0) as u16
    }

    /// Whether the slot is its own from here on.
    #[cold]
    fn enter(self, slot: &OnceLock<Self>) -> bool {
        self.is(slot.get_or_init(|| self))
    }

    fn hash(self) -> usize {
        let name = self.name.map_or(0, |name| name.as_ptr() as usize ^ name.len());
        let both = (ptr::from_ref(self.place) as usize).wrapping_add(name.rotate_left(17));
        (both as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> (usize::BITS - SITE_BITS)
    }

    fn is(self, other: &Self) -> bool {
        let same_name = match (self.name, other.name) {
            (None, None) => true,
            (Some(a), Some(b)) => ptr::eq(a, b),
            _ => false,
        };
        same_name && ptr::eq(self.place, other.place)
    }
}

#[cfg(test)]
impl Site {
    /// The caller's line.
    #[track_caller]
    pub fn here(name: Option<&'static str>) -> Self {
        Self { name, place: Location::caller() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_has_one_number_and_is_found_by_it() {
        let mut numbers = Vec::new();
        for _ in 0..2 {
            let named = ["reader", "writer"].map(Some);
            numbers.push([Site::here(None), Site::here(named[0]), Site::here(named[1])]);
        }
        let [first, second] = [0, 1].map(|n| numbers[n].map(Site::number));
        assert_eq!(first, second);
        assert!(first[0] != first[1] && first[1] != first[2] && !first.contains(&0));
        let names = first.map(|number| Site::of(number).unwrap().name);
        assert_eq!(names, [None, Some("reader"), Some("writer")]);
        assert!(first.iter().all(|&number| number <= Site::last()) && Site::of(0).is_none());
    }
}
