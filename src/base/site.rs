//! A table of spawn sites: static names and locations of tasks, identified by 12-bit numbers.
//!
//! Two sites are the same if their name and location have the same addresses. The contents are not
//! compared, so a lookup usually is one multiplication and one comparison. Entries are added on
//! first use and never removed, so readers need no lock. A program has a few hundred spawn
//! locations. A site for which all probed slots are taken has the number 0.

use std::panic::Location;
use std::ptr;
use std::sync::OnceLock;

/// Width of a site number in bits.
pub const SITE_BITS: u32 = 12;

/// Capacity of the table.
pub const MAX_SITES: usize = 1 << SITE_BITS;

/// Maximum number of slots probed for a site.
const MAX_PROBES: usize = 32;

static SITES: [OnceLock<SpawnSite>; MAX_SITES] = [const { OnceLock::new() }; MAX_SITES];

/// The name and spawn location that tasks have in common.
#[derive(Clone, Copy, Debug)]
pub struct SpawnSite {
    /// Task name set by the program.
    pub name: Option<&'static str>,
    /// Source location at which the tasks are spawned or named.
    pub location: &'static Location<'static>,
}

impl SpawnSite {
    /// Returns the site's number, adding the site if necessary. Returns 0 if there is no free slot.
    /// Does not allocate.
    #[inline]
    pub fn intern(self) -> u16 {
        let mut number = self.hash();
        for _ in 0..MAX_PROBES {
            // Number 0 is reserved for sites without a slot.
            if let Some(slot) = SITES.get(number).filter(|_| number != 0) {
                match slot.get() {
                    Some(known) if self.is_same(known) => return number as u16,
                    Some(_) => {}
                    None if self.try_claim(slot) => return number as u16,
                    None => {}
                }
            }
            number = (number + 1) % MAX_SITES;
        }
        0
    }

    /// Returns the site with this number, or `None` for 0 and for unassigned numbers.
    pub fn from_number(number: u16) -> Option<Self> {
        SITES.get(usize::from(number))?.get().copied()
    }

    /// Returns the largest assigned number, or 0 if there is none.
    pub fn max_number() -> u16 {
        SITES.iter().rposition(|site| site.get().is_some()).unwrap_or(0) as u16
    }

    /// Claims the slot unless another thread is faster. Returns `true` if it holds this site
    /// afterwards.
    #[cold]
    fn try_claim(self, slot: &OnceLock<Self>) -> bool {
        self.is_same(slot.get_or_init(|| self))
    }

    fn hash(self) -> usize {
        let name = self.name.map_or(0, |name| name.as_ptr() as usize ^ name.len());
        let address_mix =
            (ptr::from_ref(self.location) as usize).wrapping_add(name.rotate_left(17));
        (address_mix as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize
            >> (usize::BITS - SITE_BITS)
    }

    fn is_same(self, other: &Self) -> bool {
        let same_name = match (self.name, other.name) {
            (None, None) => true,
            (Some(a), Some(b)) => ptr::eq(a, b),
            _ => false,
        };
        same_name && ptr::eq(self.location, other.location)
    }
}

#[cfg(test)]
impl SpawnSite {
    /// Returns the site of the calling line.
    #[track_caller]
    pub fn here(name: Option<&'static str>) -> Self {
        Self { name, location: Location::caller() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_has_one_number_and_is_looked_up_by_it() {
        let mut numbers = Vec::new();
        for _ in 0..2 {
            let named = ["reader", "writer"].map(Some);
            numbers.push([
                SpawnSite::here(None),
                SpawnSite::here(named[0]),
                SpawnSite::here(named[1]),
            ]);
        }
        let [first, second] = [0, 1].map(|n| numbers[n].map(SpawnSite::intern));
        assert_eq!(first, second);
        assert!(first[0] != first[1] && first[1] != first[2] && !first.contains(&0));
        let names = first.map(|number| SpawnSite::from_number(number).unwrap().name);
        assert_eq!(names, [None, Some("reader"), Some("writer")]);
        assert!(
            first.iter().all(|&number| number <= SpawnSite::max_number())
                && SpawnSite::from_number(0).is_none()
        );
    }
}
