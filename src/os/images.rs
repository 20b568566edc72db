//! The files whose code is mapped into the process.
//!
//! `/proc/self/maps` is read whole and parsed by hand; what is needed of each file is then read from it by
//! `pread` (`elf`). Nothing is mapped, and nothing is read from the loader's own mappings: a library may be
//! unloaded by another thread at any time, and its file may be shortened by another process. `[vdso]`,
//! which has no file, is copied through `/proc/self/mem` (`own_memory`).
//!
//! Cost: about 0.2 ms for a program with ten libraries; [`generation`] tells for less than a
//! microsecond whether it has to be paid again.

#![allow(unsafe_code)]

use crate::base::spare;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use super::elf::{ElfFile, Source};
use super::own_memory;
use crate::model::Mapping;

const MAPS: &str = "/proc/self/maps";
const EXE: &str = "/proc/self/exe";
const VDSO: &str = "[vdso]";

/// No vdso is larger; what claims to be is not copied.
const MAX_VDSO: u64 = 1 << 20;

/// Why the loaded files are unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's list could not be read.
    #[error("cannot read {MAPS}: {0}; profiles need a mounted /proc")]
    Maps(#[source] io::Error),
}

/// The files mapped executable, the main executable first, the rest by address. A file that is mapped
/// executable in two places is there twice. A file that cannot be opened (deleted since, or hidden by
/// a mount namespace) has an empty build id.
pub fn loaded() -> Result<Vec<Mapping>, Error> {
    let segments = segments()?;
    let mut known: Option<(&Segment, String)> = None;
    let mut mappings = Vec::with_capacity(segments.len());
    for segment in &segments {
        let build_id = match &known {
            Some((last, build_id)) if last.path == segment.path => build_id.clone(),
            _ => segment.open().map(|file| file.build_id()).unwrap_or_default(),
        };
        known = Some((segment, build_id.clone()));
        mappings.push(Mapping {
            start: segment.range.start,
            end: segment.range.end,
            file_offset: segment.file_offset,
            path: segment.path.clone(),
            build_id,
            has_functions: false,
        });
    }
    Ok(mappings)
}

/// As [`loaded`], for code at `addresses`: what it gave to the last who asked here, if nothing was loaded or unloaded
/// since and each of them lies in one of those files. The kernel's list has a line for each thread's stack,
/// so of a thousand threads it takes a millisecond and more to read.
///
/// # Errors
///
/// As [`loaded`].
pub fn loaded_at(mut addresses: impl Iterator<Item = u64>) -> Result<Vec<Mapping>, Error> {
    static LAST: Mutex<Option<(u64, Vec<Mapping>)>> = Mutex::new(None);
    // Before the list: what is loaded while that is read makes it outdated.
    let generation = generation();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((then, known)) = &*last
        && *then == generation
        && addresses.all(|at| known.iter().any(|file| file.start <= at && at < file.end))
    {
        return Ok(known.clone());
    }
    let fresh = loaded()?;
    *last = Some((generation, fresh.clone()));
    Ok(fresh)
}

/// A number that differs once a library was loaded or unloaded. Takes the loader's lock for an instant:
/// for the agent's threads, not for an allocating thread or a signal handler.
#[cfg(target_os = "linux")]
pub fn generation() -> u64 {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" fn first(
        info: *mut libc::dl_phdr_info,
        size: libc::size_t,
        sum: *mut c_void,
    ) -> c_int {
        if size >= size_of::<libc::dl_phdr_info>() && !info.is_null() {
            // SAFETY: `info` is the loader's, valid during the call, and `size` says that it has all
            // the fields; `sum` is the u64 that `generation` passed.
            unsafe { *sum.cast::<u64>() = (*info).dlpi_adds.wrapping_add((*info).dlpi_subs) };
        }
        1
    }
    let mut sum = 0u64;
    // SAFETY: `first` has the type the loader calls, does not unwind, and writes through the pointer to
    // `sum` only during this call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut sum).cast()) };
    sum
}

/// Always the same: what is loaded is not known here, before or after.
#[cfg(not(target_os = "linux"))]
pub fn generation() -> u64 {
    0
}

/// A stretch of the address space that holds code of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) range: Range<u64>,
    pub(crate) file_offset: u64,
    /// As the kernel names it: a deleted file's path ends in ` (deleted)`.
    pub(crate) path: PathBuf,
    inode: u64,
    is_main: bool,
}

/// The executable segments of `/proc/self/maps`, the main executable's first.
pub(crate) fn segments() -> Result<Vec<Segment>, Error> {
    let maps = fs::read(MAPS).map_err(Error::Maps)?;
    let main = fs::read_link(EXE).ok();
    let lines = maps.split(|&byte| byte == b'\n');
    let mut segments: Vec<_> = lines.filter_map(|line| parse(line, main.as_deref())).collect();
    segments.sort_by_key(|segment| (!segment.is_main, segment.range.start));
    Ok(segments)
}

/// `7f00-7f08 r-xp 00001000 08:01 1234    /lib/libc.so.6`, if it is executable and has a file.
fn parse(line: &[u8], main: Option<&Path>) -> Option<Segment> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ')?;
        let (field, after) = rest.split_at(end);
        rest = after.trim_ascii_start();
        std::str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?;
    let offset = field()?;
    let _device = field()?;
    let inode = field()?;
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(unescaped(rest)));
    if !path.has_root() && path.as_os_str() != VDSO {
        return None;
    }
    Some(Segment {
        range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
        file_offset: u64::from_str_radix(offset, 16).ok()?,
        is_main: main == Some(path.as_path()),
        path,
        inode: inode.parse().ok()?,
    })
}

/// The kernel writes a newline in a path as `\012`.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(br"\012") {
            text.push(b'\n');
            rest = after;
        } else {
            text.push(byte);
            rest = after;
        }
    }
    text
}

impl Segment {
    /// Opens the file and reads its headers; `None` if there is none to be had or it is not a plain file
    /// (opening a device can have effects).
    pub(crate) fn open(&self) -> Option<ElfFile> {
        if self.path.as_os_str() == VDSO {
            return self.copy_vdso();
        }
        let path = if self.is_main { Path::new(EXE) } else { self.path.as_path() };
        if !fs::metadata(path).ok()?.is_file() {
            return None;
        }
        // The path may have become a FIFO meanwhile, which would hold the thread until it is written to.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let open = || OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
        let file = spare::with(open).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        ElfFile::read(Source::File(file))
    }

    fn copy_vdso(&self) -> Option<ElfFile> {
        let length = self.range.end.checked_sub(self.range.start).filter(|&n| n <= MAX_VDSO)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        let read = own_memory::read(self.range.start, &mut bytes);
        (read == bytes.len()).then(|| ElfFile::read(Source::Copy(bytes)))?
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    fn lines_of_maps_read_as_segments() {
        let main = Path::new("/srv/my app");
        let line = b"55d0a000-55d0b800 r-xp 0001f000 fe:01 4711                      /srv/my app";
        let segment = parse(line, Some(main)).unwrap();
        assert_eq!(segment.range, 0x55d0_a000..0x55d0_b800);
        assert_eq!((segment.file_offset, segment.inode), (0x1f000, 4711));
        assert!(segment.is_main);
        let newline = parse(br"1000-2000 r-xp 00000000 fe:01 1   /a\012b", None).unwrap();
        assert_eq!(newline.path, Path::new("/a\nb"));
        for other in [
            "1000-2000 rw-p 00000000 fe:01 1   /data",
            "1000-2000 r-xp 00000000 00:00 0 ",
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]",
            "1000-2000 r-xp",
            "nonsense",
            "",
        ] {
            assert_eq!(parse(other.as_bytes(), None), None, "{other}");
        }
    }

    #[test]
    fn this_program_comes_first_and_holds_this_function() {
        let images = loaded().unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(images[0].path, exe);
        let here = this_program_comes_first_and_holds_this_function as fn() as usize as u64;
        assert!(images.iter().any(|m| m.path == exe && (m.start..m.end).contains(&here)));
        assert!(images.iter().all(|image| !image.has_functions));
    }

    #[test]
    fn the_files_are_remembered_for_addresses_in_them_and_read_anew_for_others() {
        let here =
            the_files_are_remembered_for_addresses_in_them_and_read_anew_for_others as *const ();
        let known = loaded_at([here as u64].into_iter()).unwrap();
        assert_eq!(known, loaded().unwrap());
        // Mapped by the program itself, which the loader does not hear of.
        let own = fs::File::open(EXE).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
        // SAFETY: a mapping at a place of the kernel's choice, of which only the address is used.
        let mapped = unsafe { mmap(ptr::null_mut(), 4096, protection, flags, &own, 0) }.unwrap();
        let inside = mapped as u64 + 1;
        assert_eq!(loaded_at([here as u64].into_iter()).unwrap(), known, "it is not asked for");
        let fresh = loaded_at([here as u64, inside].into_iter()).unwrap();
        assert!(fresh.iter().any(|file| file.start < inside && inside < file.end));
        assert!(!known.iter().any(|file| file.start < inside && inside < file.end));
        // SAFETY: mapped above, and nothing refers to it.
        unsafe { munmap(mapped, 4096) }.unwrap();
    }

    #[test]
    fn build_ids_are_those_of_the_notes() {
        let images = loaded().unwrap();
        let with_id: Vec<_> = images.iter().filter(|image| !image.build_id.is_empty()).collect();
        assert!(!with_id.is_empty(), "neither this program, a library nor the vdso has a build id");
        for image in with_id {
            assert!(image.build_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            assert!(image.build_id.len() >= 16, "{image:?}");
        }
    }

    #[test]
    fn the_bias_maps_the_files_addresses_to_the_processs() {
        let here = the_bias_maps_the_files_addresses_to_the_processs as fn() as usize as u64;
        let segment =
            segments().unwrap().into_iter().find(|segment| segment.range.contains(&here)).unwrap();
        let bias = segment.open().unwrap().load_bias(&segment).unwrap();
        let bytes = fs::read(EXE).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let name = "the_bias_maps_the_files_addresses_to_the_processs";
        use object::{Object as _, ObjectSymbol as _};
        let symbol = file.symbols().find(|symbol| {
            symbol.address().wrapping_add(bias) == here
                && symbol.name().is_ok_and(|n| n.contains(name))
        });
        assert!(symbol.is_some(), "bias {bias:#x}");
    }

    #[test]
    fn the_generation_is_stable_while_nothing_is_loaded() {
        assert_eq!(generation(), generation());
        assert_ne!(generation(), 0);
    }
}
