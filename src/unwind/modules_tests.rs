use std::fs;
use std::ops::Range;

use gimli::UnwindContext;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::os::elf::ElfSource;
use crate::unwind::row_storage::RowStorage;

const MAX_BYTES: u64 = 64 << 20;

/// Returns a loaded library: the segment of its code, and its bytes.
fn library() -> (MappedSegment, Vec<u8>) {
    let segments = images::segments().unwrap();
    let is_libgcc = |segment: &MappedSegment| segment.path.to_string_lossy().contains("libgcc_s");
    let libc = |segment: &MappedSegment| segment.path.to_string_lossy().contains("libc");
    let found = segments.iter().find(|segment| is_libgcc(segment));
    let segment = found.or_else(|| segments.iter().find(|segment| libc(segment))).unwrap();
    (segment.clone(), fs::read(&segment.path).unwrap())
}

fn read(segment: &MappedSegment, bytes: Vec<u8>) -> Option<LoadedModule> {
    LoadedModule::read(&ElfFile::read(ElfSource::Copy(bytes))?, segment, ReadDepth::Full, MAX_BYTES)
}

/// Looks up addresses throughout the segment. Panics are not caught: with `panic = "abort"` they
/// cannot be.
fn count_covered_addresses(module: &LoadedModule, segment: &MappedSegment) -> usize {
    let mut context = Box::new(UnwindContext::<usize, RowStorage>::new_in());
    let Range { start, end } = segment.range;
    let addresses = (0..64).map(|n| start + (end - start) / 64 * n).chain([0, 1, u64::MAX]);
    addresses
        .filter(|&address| module.row(&mut context, address, |_, _| (), |_, _| ()).is_some())
        .count()
}

fn section_range(name: &[u8], bytes: &[u8]) -> Range<usize> {
    let section = ElfFile::read(ElfSource::Copy(bytes.to_vec())).unwrap().section(name).unwrap();
    section.offset as usize..(section.offset + section.size) as usize
}

#[test]
fn built_index_finds_the_same_entries_as_linker_table() {
    let (segment, mut bytes) = library();
    let by_linker = count_covered_addresses(&read(&segment, bytes.clone()).unwrap(), &segment);
    assert!(by_linker > 20, "{by_linker}");
    let hdr = section_range(b".eh_frame_hdr", &bytes);
    // A table encoding that is not supported.
    bytes[hdr.start + 3] = 0x1b;
    let module = read(&segment, bytes).unwrap();
    assert!(module.eh_frame_hdr.is_none());
    assert_eq!(count_covered_addresses(&module, &segment), by_linker);
}

#[test]
fn quick_read_builds_no_index() {
    let (segment, mut bytes) = library();
    let hdr = section_range(b".eh_frame_hdr", &bytes);
    bytes[hdr.start + 3] = 0x1b;
    let file = ElfFile::read(ElfSource::Copy(bytes)).unwrap();
    let module = LoadedModule::read(&file, &segment, ReadDepth::Quick, MAX_BYTES).unwrap();
    assert!(!module.is_complete);
    assert_eq!(count_covered_addresses(&module, &segment), 0);
}

#[test]
fn tables_beyond_the_byte_limit_are_skipped() {
    let (segment, bytes) = library();
    let file = ElfFile::read(ElfSource::Copy(bytes)).unwrap();
    let module = LoadedModule::read(&file, &segment, ReadDepth::Full, 100).unwrap();
    assert!(module.eh_frame.is_none() && !module.is_complete && module.copied_bytes <= 100);
    assert_eq!(count_covered_addresses(&module, &segment), 0);
}

/// Damages the header's count, its encodings, or its entries.
#[test]
fn damaged_header_does_not_panic() {
    let (segment, bytes) = library();
    let hdr = section_range(b".eh_frame_hdr", &bytes);
    let eh_frame = section_range(b".eh_frame", &bytes);
    let place = prop_oneof![
        3 => hdr.start..hdr.start + 24,
        2 => hdr.start..hdr.end,
        3 => eh_frame.start..eh_frame.end,
        1 => 0usize..64,
    ];
    let damage =
        prop::collection::vec((place, prop_oneof![Just(0), Just(255), any::<u8>()]), 1..12);
    let config = Config { cases: 3000, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
        .run(&damage, |damage| {
            let mut bytes = bytes.clone();
            damage.into_iter().for_each(|(at, value)| bytes[at] = value);
            if let Some(module) = read(&segment, bytes) {
                count_covered_addresses(&module, &segment);
            }
            Ok(())
        })
        .unwrap();
}
