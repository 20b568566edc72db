//! Scan of a file's symbol table.

use std::ops::Range;

use object::endian::Endianness;
use object::pod;
use object::read::elf::Sym;

use super::ElfImage;
use crate::symbols::Error;
use crate::symbols::lookup::{CHUNK_BYTES, SymbolLookup};

/// A limit on the size of a table: 44 million symbols, twenty times as many as a browser has.
const MAX_TABLE_BYTES: u64 = 1 << 30;

/// A limit on steps (symbols, and addresses that they cover), about one second. A sound table takes
/// one step per symbol and one per address. A table in which every symbol covers everything takes
/// their product.
const MAX_STEPS: u64 = 1 << 27;

/// File ranges of the symbols and their names.
pub(super) struct SymbolTable {
    /// The symbols.
    pub(super) entries: Range<u64>,
    /// The string table their names are in.
    pub(super) strings: Range<u64>,
}

impl SymbolTable {
    /// Passes every symbol of the table to `lookup`.
    pub(super) fn scan<S: Sym<Endian = Endianness>>(
        &self,
        image: &ElfImage,
        endian: Endianness,
        lookup: &mut SymbolLookup,
    ) -> Result<(), Error> {
        if lookup.is_empty() {
            return Ok(());
        }
        if self.entries.end - self.entries.start > MAX_TABLE_BYTES {
            return Err(image.too_large("the size of the symbol table in bytes", MAX_TABLE_BYTES));
        }
        let mut buffer = std::mem::take(&mut lookup.buffer);
        buffer.resize(CHUNK_BYTES, 0);
        let scanned = self.scan_chunks::<S>(image, endian, lookup, &mut buffer);
        lookup.buffer = buffer;
        scanned
    }

    fn scan_chunks<S: Sym<Endian = Endianness>>(
        &self,
        image: &ElfImage,
        endian: Endianness,
        lookup: &mut SymbolLookup,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut at = self.entries.start;
        while at < self.entries.end {
            let size = (self.entries.end - at).min(CHUNK_BYTES as u64);
            let chunk = buffer.get_mut(..size as usize).unwrap_or_default();
            image.read_exact(chunk, at)?;
            let count = chunk.len() / size_of::<S>();
            let (symbols, _) = pod::slice_from_bytes::<S>(chunk, count)
                .map_err(|()| image.malformed("the symbol table is truncated"))?;
            for symbol in symbols {
                lookup.add_symbol(symbol, endian);
            }
            if lookup.steps > MAX_STEPS {
                return Err(
                    image.too_large("the number of steps to search the symbol table", MAX_STEPS)
                );
            }
            at += size;
        }
        Ok(())
    }
}
