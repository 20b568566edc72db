//! Tests of symbolization with the files of a real process, and with damaged and hostile ones.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use marple::internals::base::CodeFile;
use marple::internals::model::{Mapping, MappingHandle, Profile, ValueType};
use marple::internals::symbols::{self, Error, SymbolReport};
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, Object};
use proptest::prelude::*;

use crate::support::counting;

/// Returns the executable mapping of this process that contains `address`, as the kernel lists it,
/// with its file.
fn mapping_of(address: u64) -> Mapping {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let (start, end) =
                (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
            let file_offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            let path = PathBuf::from(fields.nth(2)?);
            let build_id = build_id(&path);
            (start..end).contains(&address).then_some(Mapping {
                start,
                end,
                file_offset,
                path,
                build_id,
                has_functions: false,
                file: None,
            })
        })
        .expect("the address is not mapped from a file")
}

fn build_id(path: &Path) -> String {
    let Ok(bytes) = fs::read(path) else { return String::new() };
    let file = object::File::parse(&*bytes).unwrap();
    let id = file.build_id().unwrap().unwrap_or_default();
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a profile with a frame for each address, all in `mapping`.
fn profile_of(addresses: &[u64], mapping: Mapping) -> Profile {
    let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
    let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
    profile.intern_stack(addresses);
    profile.mappings.push(mapping);
    profile.frames.iter_mut().for_each(|frame| frame.mapping = Some(MappingHandle(0)));
    profile
}

/// Returns the symbol of each address, in the same order.
fn symbols_of(profile: &Profile, addresses: &[u64]) -> Vec<Option<String>> {
    let name = |&address: &u64| {
        let frame = profile.frames.iter().find(|frame| frame.address == address)?;
        let function = profile.functions.get(frame.lines.first()?.function.index())?;
        Some(profile.strings.get(function.name).to_owned())
    };
    addresses.iter().map(name).collect()
}

#[inline(never)]
fn a_function_of_this_binary(n: u64) -> u64 {
    std::hint::black_box(n).wrapping_mul(3)
}

mod nested {
    pub(crate) struct Generic<T>(pub(crate) T);

    impl<T: Copy + Into<u64>> Generic<T> {
        #[inline(never)]
        pub(crate) fn method(&self) -> u64 {
            std::hint::black_box(self.0).into() + 7
        }
    }
}

fn address_of(function: *const ()) -> u64 {
    function as usize as u64
}

#[test]
fn functions_of_binary_have_full_paths() {
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    let method = address_of(nested::Generic::<u32>::method as fn(&_) -> u64 as *const ());
    // The return address of a caller lies within the function, not at its first byte.
    let addresses = [function, function + 1, method, method + 3];
    let mut profile = profile_of(&addresses, mapping_of(function));
    let report = symbols::symbolize(&mut profile);
    assert_eq!(
        symbols_of(&profile, &addresses),
        [
            Some("files::symbol_tables::a_function_of_this_binary".to_owned()),
            Some("files::symbol_tables::a_function_of_this_binary".to_owned()),
            Some("files::symbol_tables::nested::Generic<T>::method".to_owned()),
            Some("files::symbol_tables::nested::Generic<T>::method".to_owned()),
        ]
    );
    assert_eq!((report.named, report.unnamed, report.problems.len()), (4, 0, 0));
    assert_eq!(profile.functions.len(), 2, "one function for its two frames");
    assert!(profile.mappings[0].has_functions);
    let system_name = profile.strings.get(profile.functions[0].system_name);
    assert!(system_name.starts_with("_ZN") || system_name.starts_with("_R"), "{system_name}");
}

/// Compares with std's own symbolizer. std prints the path in the debug information, which may lack
/// the crate.
#[test]
fn names_match_std_backtrace() {
    let printed = std::backtrace::Backtrace::force_capture().to_string();
    let function = address_of(names_match_std_backtrace as fn() as *const ());
    let mut profile = profile_of(&[function], mapping_of(function));
    symbols::symbolize(&mut profile);
    let name = symbols_of(&profile, &[function]).remove(0).unwrap();
    let same = |printed: &str| name == printed || name.ends_with(&format!("::{printed}"));
    let mut functions = printed.lines().filter_map(|line| line.trim().split_once(": "));
    assert!(functions.any(|(_, function)| same(function)), "{name} not in:\n{printed}");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn stripped_library_has_exported_names() {
    let (pid, parent) =
        (address_of(libc::getpid as *const ()), address_of(libc::getppid as *const ()));
    let addresses = [pid, parent];
    let mut profile = profile_of(&addresses, mapping_of(pid));
    symbols::symbolize(&mut profile);
    let names: Vec<String> = symbols_of(&profile, &addresses).into_iter().flatten().collect();
    assert!(matches!(&*names[0], "getpid" | "__getpid"), "{names:?}");
    assert!(matches!(&*names[1], "getppid" | "__getppid"), "{names:?}");
}

/// Returns a copy of this binary changed by `edit`, and its mapping that contains `address`.
fn changed_copy(
    dir: &tempfile::TempDir,
    address: u64,
    edit: impl FnOnce(&mut Vec<u8>),
) -> (Mapping, PathBuf) {
    let mapping = mapping_of(address);
    let mut bytes = fs::read(&mapping.path).unwrap();
    edit(&mut bytes);
    let path = dir.path().join("copy");
    fs::write(&path, bytes).unwrap();
    (Mapping { path: path.clone(), ..mapping }, path)
}

/// Returns the offset of the symbol table's section header.
fn symtab_header(bytes: &[u8]) -> usize {
    let header = elf::FileHeader64::<Endianness>::parse(bytes).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.section_headers(endian, bytes).unwrap();
    let index = sections.iter().position(|s| s.sh_type(endian) == elf::SHT_SYMTAB).unwrap();
    header.e_shoff(endian) as usize + index * size_of::<elf::SectionHeader64<Endianness>>()
}

#[cfg(target_pointer_width = "64")]
#[test]
fn stripped_program_has_unnamed_frames_and_comment() {
    let dir = tempfile::tempdir().unwrap();
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    let (mapping, _) = changed_copy(&dir, function, |bytes| {
        // The result of `strip`: no section is a symbol table.
        let kind = symtab_header(bytes) + 4;
        bytes[kind..kind + 4].fill(0);
    });
    let mut profile = profile_of(&[function], mapping);
    let report = symbols::symbolize(&mut profile);
    assert_eq!(symbols_of(&profile, &[function]), [None]);
    assert_eq!((report.named, report.unnamed, report.problems.len()), (0, 1, 0));
    assert!(!profile.mappings[0].has_functions, "a reader may try with the unstripped file");
}

#[test]
fn file_with_other_build_id_gives_no_names() {
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    for mapped in ["0badc0de", ""] {
        let mapping = Mapping { build_id: mapped.into(), ..mapping_of(function) };
        let path = mapping.path.clone();
        let mut profile = profile_of(&[function], mapping);
        let report = symbols::symbolize(&mut profile);
        let [Error::BuildIdMismatch { mapped: said, found, .. }] = &report.problems[..] else {
            panic!("{report:?}");
        };
        assert_eq!((&**said, found), (mapped, &build_id(&path)));
        assert_eq!(symbols_of(&profile, &[function]), [None]);
        assert!(!profile.mappings[0].has_functions);
        assert!(profile.comments[0].contains("the file was replaced"), "{:?}", profile.comments);
    }
}

#[test]
fn open_file_gives_names_after_replacement_but_not_modification() {
    let dir = tempfile::tempdir().unwrap();
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    let (mapping, path) = changed_copy(&dir, function, |_| {});
    let file = Some(Arc::new(CodeFile::open(&path).unwrap()));
    let open_mapping = Mapping { file, ..mapping.clone() };
    let look = |mapping: &Mapping| {
        let mut profile = profile_of(&[function], mapping.clone());
        let report = symbols::symbolize(&mut profile);
        (symbols_of(&profile, &[function]).remove(0), report.problems)
    };
    let name = Some("files::symbol_tables::a_function_of_this_binary".to_owned());
    let (_, other) = &*SMALL_LIBRARY;
    let new = dir.path().join("new");
    fs::write(&new, other).unwrap();
    fs::rename(&new, &path).unwrap();
    assert_eq!(look(&open_mapping).0, name);
    assert_eq!(look(&mapping).0, None, "its path leads to another file");

    // Overwrites the same inode: the loaded content does not exist any more.
    let (mapping, path) = changed_copy(&dir, function, |_| {});
    let file = Some(Arc::new(CodeFile::open(&path).unwrap()));
    let open_mapping = Mapping { file, ..mapping };
    fs::write(&path, fs::read(&path).unwrap()).unwrap();
    assert_eq!(look(&open_mapping).0, name, "the same content was written again");
    fs::write(&path, other).unwrap();
    let (none, problems) = look(&open_mapping);
    assert_eq!(none, None);
    assert!(matches!(problems[..], [Error::BuildIdMismatch { .. }]), "{problems:?}");
    let unchecked = Mapping { build_id: String::new(), ..open_mapping };
    let (none, problems) = look(&unchecked);
    assert!(none.is_none() && problems.len() == 1, "{problems:?}");
}

#[test]
fn unreadable_file_is_comment_with_path() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "not a program").unwrap();
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    for path in [dir.path().join("gone"), dir.path().to_owned(), fifo, text, empty] {
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0,
            path: path.clone(),
            build_id: String::new(),
            has_functions: false,
            file: None,
        };
        let mut profile = profile_of(&[0x1800], mapping);
        let report = symbols::symbolize(&mut profile);
        assert_eq!((report.named, report.unnamed, report.problems.len()), (0, 1, 1), "{path:?}");
        assert!(profile.comments[0].starts_with(path.to_str().unwrap()), "{:?}", profile.comments);
    }
}

#[test]
fn truncated_file_is_error_without_signal() {
    let dir = tempfile::tempdir().unwrap();
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    let (mapping, path) = changed_copy(&dir, function, |_| {});
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    for keep in [0, 1, 4, 63, 64, 4096, length / 2, length - 1] {
        file.set_len(keep).unwrap();
        let mut profile = profile_of(&[function], mapping.clone());
        let report = symbols::symbolize(&mut profile);
        assert_eq!((report.named, report.problems.len()), (0, 1), "{keep} bytes: {report:?}");
        fs::write(&path, fs::read(&mapping_of(function).path).unwrap()).unwrap();
    }
}

/// The smallest ELF file mapped by this process (usually the unwinder), and its bytes.
static SMALL_LIBRARY: LazyLock<(Mapping, Vec<u8>)> = LazyLock::new(|| {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let addresses = maps.lines().filter(|line| line.contains("r-xp") && line.contains(" /"));
    let mapping = addresses
        .map(|line| u64::from_str_radix(line.split_once('-').unwrap().0, 16).unwrap())
        .map(mapping_of)
        .min_by_key(|mapping| fs::metadata(&mapping.path).unwrap().len())
        .unwrap();
    let bytes = fs::read(&mapping.path).unwrap();
    (mapping, bytes)
});

/// Symbolizes evenly spaced addresses of `mapping`, with the build ID that the file claims.
fn symbolize_all(mapping: &Mapping) -> SymbolReport {
    let step = ((mapping.end - mapping.start) / 64).max(1);
    let addresses: Vec<u64> = (mapping.start..mapping.end).step_by(step as usize).collect();
    let mut profile = profile_of(&addresses, mapping.clone());
    let report = symbols::symbolize(&mut profile);
    assert_eq!(report.named + report.unnamed, addresses.len());
    report
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Changes bytes anywhere, half of them in the two header tables, where they have the most
    /// effect.
    #[test]
    fn damaged_files_cause_no_panic_and_bounded_work(
        changes in prop::collection::vec((0..4u8, any::<u32>(), any::<u64>(), 1..9usize), 1..12)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("library");
        let (mapping, mut bytes) = SMALL_LIBRARY.clone();
        let sections = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
        for (region, place, value, width) in changes {
            let (start, size) = match region {
                0 => (5, 59),
                1 => (64, 56 * 10),
                2 => (sections, bytes.len() - sections),
                _ => (0, bytes.len()),
            };
            let at = (start + place as usize % size).min(bytes.len() - width);
            bytes[at..at + width].copy_from_slice(&value.to_ne_bytes()[..width]);
        }
        fs::write(&path, &bytes).unwrap();
        symbolize_all(&Mapping { path, ..mapping });
    }
}

/// Symbolizes with the most expensive file: a large table whose symbols each cover everything.
#[cfg(target_pointer_width = "64")]
#[test]
fn worst_case_symbol_table_is_abandoned() {
    let dir = tempfile::tempdir().unwrap();
    let function = address_of(a_function_of_this_binary as fn(u64) -> u64 as *const ());
    let (mapping, path) = changed_copy(&dir, function, |_| {});
    let bytes = fs::read(&path).unwrap();
    let header = symtab_header(&bytes);
    let symbols = 1u64 << 20;
    let place = bytes.len() as u64;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&place.to_le_bytes(), header as u64 + 24).unwrap();
    file.write_all_at(&(symbols * 24).to_le_bytes(), header as u64 + 32).unwrap();
    let mut symbol = [0; 24];
    (symbol[0], symbol[4], symbol[6]) = (1, 2, 1);
    symbol[16..].copy_from_slice(&u64::MAX.to_le_bytes());
    file.write_all_at(&symbol.repeat(symbols as usize), place).unwrap();
    let addresses: Vec<u64> = (function..mapping.end).take(1000).collect();
    let mut profile = profile_of(&addresses, mapping);
    let report = symbols::symbolize(&mut profile);
    assert!(matches!(report.problems[..], [Error::TooLarge { .. }]), "{report:?}");
}

/// Symbolizes with 5 MB of section names, each at a different offset.
#[test]
fn many_long_section_names_use_little_memory() {
    const SECTION_COUNT: usize = 65_000;
    const NAME_BYTES: usize = 80;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names");
    let (header, table) = (64, 64 * SECTION_COUNT);
    let mut bytes = vec![0u8; header];
    bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let put = |bytes: &mut [u8], at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    put(&mut bytes, 20, &1u32.to_le_bytes());
    put(&mut bytes, 40, &(header as u64).to_le_bytes());
    put(&mut bytes, 52, &64u16.to_le_bytes());
    put(&mut bytes, 54, &56u16.to_le_bytes());
    put(&mut bytes, 58, &64u16.to_le_bytes());
    put(&mut bytes, 60, &(SECTION_COUNT as u16).to_le_bytes());
    put(&mut bytes, 62, &1u16.to_le_bytes());
    for section in 0..SECTION_COUNT {
        let mut entry = [0; 64];
        put(&mut entry, 0, &((section * NAME_BYTES) as u32).to_le_bytes());
        // One section contains the names; the others have a type that is never read.
        put(&mut entry, 4, &(if section == 1 { 3u32 } else { 0x7000_0000 }).to_le_bytes());
        put(&mut entry, 24, &((header + table) as u64).to_le_bytes());
        put(&mut entry, 32, &((SECTION_COUNT * NAME_BYTES) as u64).to_le_bytes());
        bytes.extend(entry);
    }
    for section in 0..SECTION_COUNT {
        bytes.extend(format!("{section:.>width$}\0", width = NAME_BYTES - 1).into_bytes());
    }
    fs::write(&path, &bytes).unwrap();
    drop(bytes);
    let mapping = Mapping {
        start: 0x1000,
        end: 0x2000,
        file_offset: 0,
        path,
        build_id: String::new(),
        has_functions: false,
        file: None,
    };
    let peak_bytes = counting::peak_bytes(|| {
        let report = symbolize_all(&mapping);
        assert_eq!(report.named, 0, "{report:?}");
    });
    // 4 MiB of section headers and 1 MiB of names, plus what concurrent tests hold.
    println!("{} KiB", peak_bytes >> 10);
    assert!(peak_bytes < 48 << 20, "{} KiB", peak_bytes >> 10);
}
