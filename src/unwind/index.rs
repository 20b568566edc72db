//! Search for the unwind table entry that covers an address.
//!
//! ```text
//! .eh_frame_hdr version 1 | enc of pointer | enc of count | enc of table | pointer | count | table
//!               table: {start, entry} …   sorted; i32 each, relative to .eh_frame_hdr
//! Index         {start, offset} …         sorted; built here if the linker wrote no such table
//! ```
//!
//! The linker's table is searched without gimli, which multiplies and adds unchecked values from
//! the file. With overflow checks, a damaged header would cause a panic in an allocating thread of
//! the host. A header in a form that linkers do not write is not used; an [`FdeIndex`] is built
//! instead.

use std::collections::TryReserveError;

use gimli::{BaseAddresses, CieOrFde, UnwindSection};

use crate::unwind::row_storage::SectionBytes;

/// Maximum entries of an index: 16 MB.
const MAX_INDEX_ENTRIES: usize = 1 << 20;

/// Pointer encodings of the usual form: unsigned four bytes, and signed four bytes relative to the
/// header.
const UDATA4: u8 = 0x03;
const DATAREL_SDATA4: u8 = 0x3b;

/// Returns the table of an `.eh_frame_hdr`, or `None` if it does not have the usual form.
pub(crate) fn parse_table(hdr: &[u8]) -> Option<&[[[u8; 4]; 2]]> {
    let (&[version, pointer, count, table], rest) = hdr.split_first_chunk()?;
    if (version, count, table) != (1, UDATA4, DATAREL_SDATA4) {
        return None;
    }
    let pointer = match pointer & 0x0f {
        0x03 | 0x0b => 4,
        0x00 | 0x04 | 0x0c => 8,
        _ => return None,
    };
    let (count, rest) = rest.get(pointer..)?.split_first_chunk()?;
    let (words, _) = rest.as_chunks::<4>();
    let (pairs, _) = words.as_chunks::<2>();
    let count = usize::try_from(u32::from_le_bytes(*count)).unwrap_or(usize::MAX);
    Some(pairs.get(..count.min(pairs.len())).unwrap_or_default())
}

/// Returns the address of the nearest entry at or below `address`, from the table of the header at
/// `hdr`.
pub(crate) fn find_entry(table: &[[[u8; 4]; 2]], hdr: u64, address: u64) -> Option<u64> {
    let wanted = address.wrapping_sub(hdr).cast_signed();
    let after = table.partition_point(|[start, _]| i64::from(i32::from_le_bytes(*start)) <= wanted);
    let [_, entry] = table.get(after.checked_sub(1)?)?;
    Some(hdr.wrapping_add_signed(i32::from_le_bytes(*entry).into()))
}

/// Offsets of a table's entries, sorted by the start of the code they cover.
#[derive(Default)]
pub(crate) struct FdeIndex(Vec<(u64, u32)>);

impl FdeIndex {
    /// Returns the offset of the nearest entry at or below `address`.
    pub(crate) fn fde_offset(&self, address: u64) -> Option<usize> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        self.0.get(after.checked_sub(1)?).map(|(_, offset)| *offset as usize)
    }

    /// Indexes all entries up to the first that cannot be read.
    ///
    /// # Errors
    ///
    /// If memory for the index cannot be allocated.
    pub(crate) fn build<'a, S: UnwindSection<SectionBytes<'a>>>(
        section: &S,
        bases: &BaseAddresses,
    ) -> Result<Self, TryReserveError> {
        let mut index = Vec::new();
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(entry) = entry else { continue };
            let Ok(fde) = entry.parse(S::cie_from_offset) else { continue };
            if let Ok(offset) = u32::try_from(fde.offset())
                && index.len() < MAX_INDEX_ENTRIES
            {
                index.try_reserve(1)?;
                index.push((fde.initial_address(), offset));
            }
        }
        index.sort_unstable();
        Ok(Self(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(count: u32, pairs: &[(i32, i32)]) -> Vec<u8> {
        let mut hdr = vec![1, 0x1b, UDATA4, DATAREL_SDATA4, 0, 0, 0, 0];
        hdr.extend(count.to_le_bytes());
        for (start, entry) in pairs {
            hdr.extend(start.to_le_bytes());
            hdr.extend(entry.to_le_bytes());
        }
        hdr
    }

    #[test]
    fn nearest_entry_below_address_is_found() {
        let hdr = header(3, &[(-16, 100), (0, 200), (64, 300)]);
        let table = parse_table(&hdr).unwrap();
        let at = |address| find_entry(table, 0x1000, address);
        assert_eq!(at(0xfef), None);
        assert_eq!(at(0xff0), Some(0x1000 + 100));
        assert_eq!(at(0x1000), Some(0x1000 + 200));
        assert_eq!(at(0x103f), Some(0x1000 + 200));
        assert_eq!(at(u64::MAX >> 1), Some(0x1000 + 300));
    }

    #[test]
    fn damaged_header_stays_within_its_bytes() {
        let full_header = header(u32::MAX, &[(i32::MIN, i32::MAX), (i32::MAX, i32::MIN)]);
        assert_eq!(parse_table(&full_header).map(<[_]>::len), Some(2));
        for length in 0..full_header.len() {
            for (byte, value) in (0..4).flat_map(|byte| (0..=255).map(move |value| (byte, value))) {
                let mut cut = full_header[..length].to_vec();
                if let Some(place) = cut.get_mut(byte) {
                    *place = value;
                }
                let Some(table) = parse_table(&cut) else { continue };
                for address in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1] {
                    for hdr in [0, 8, u64::MAX, 1 << 63] {
                        find_entry(table, hdr, address);
                    }
                }
            }
        }
    }
}
