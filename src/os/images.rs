//! The files whose code is mapped into the process.
//!
//! `/proc/self/maps` is read whole and parsed by hand. The required parts of each file are then
//! read by `pread` (`elf`), through a descriptor that is held from first use (`loaded_files`).
//! Later the path may not lead to the file: a deployment replaces or removes the files of a running
//! program. Nothing is mapped, and nothing is read from the loader's mappings: another thread may
//! unload a library at any time, and another process may shorten its file. `[vdso]`, which has no
//! file, is copied through `/proc/self/mem` (`own_memory`).
//!
//! Cost: about 0.2 ms for a program with ten libraries. [`generation`] reports in less than a
//! microsecond if the list has changed.

#![allow(unsafe_code, reason = "`dl_iterate_phdr`, which calls back with raw pointers")]

use crate::base::sync::Mutex;
use crate::os::mapped_segment::EXE;
use crate::os::mapped_segment::Loads;
use crate::os::mapped_segment::MappedSegment;
use crate::os::mapped_segment::VDSO;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::{fs, io};

use super::loaded_files;
use crate::model::Mapping;

const MAPS: &str = "/proc/self/maps";
/// An error while listing the loaded files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's list could not be read.
    #[error("cannot read {MAPS}: {0}; profiles need a mounted /proc")]
    Maps(#[source] io::Error),
}

/// Returns the files mapped executable: the main executable first, the others by address.
///
/// A file that is mapped executable twice appears twice. Path and build ID are those at the first
/// use of the file here.
pub fn loaded() -> Result<Vec<Mapping>, Error> {
    Ok(segments()?.into_iter().map(MappedSegment::into_mapping).collect())
}

/// Returns the files of [`loaded`], followed by unloaded files whose addresses are still unused.
/// For addresses that were sampled at any earlier time.
///
/// # Errors
///
/// Returns the errors of [`loaded`].
pub fn loaded_and_unloaded() -> Result<Vec<Mapping>, Error> {
    let mut segments = segments()?;
    segments.extend(loaded_files::unloaded(&segments));
    Ok(segments.into_iter().map(MappedSegment::into_mapping).collect())
}

/// Opens files loaded since the last call, and closes descriptors if the process runs short of
/// them.
///
/// Called at the agent's ticks; costs some microseconds if nothing was loaded or unloaded. `open`
/// and `limit` are the number of open descriptors of the process and its limit, if known. Returns
/// `true` if files were loaded or unloaded since the last call.
pub fn refresh(open: Option<u64>, limit: Option<u64>) -> bool {
    let is_changed = loaded_files::set_generation(generation());
    if is_changed {
        // Without /proc there are no names; every capture reports that.
        let _ = segments();
    }
    loaded_files::limit_descriptors(open, limit);
    is_changed
}

/// Returns the files of [`loaded`] for code at `addresses`, from a cache if possible.
///
/// The previous result is reused if nothing was loaded or unloaded since and it covers all
/// addresses. The kernel's list has a line per thread stack, so reading it takes 1 ms or more with
/// a thousand threads.
///
/// # Errors
///
/// Returns the errors of [`loaded`].
pub fn loaded_at(mut addresses: impl Iterator<Item = u64>) -> Result<Vec<Mapping>, Error> {
    static LAST: Mutex<Option<(u64, Vec<Mapping>)>> = Mutex::new(None);
    // Read before the list: a load during the listing then invalidates it.
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

/// Returns a number that changes when a library is loaded or unloaded. Briefly takes the loader's
/// lock: for the agent's threads, not for an allocating thread or a signal handler.
pub fn generation() -> u64 {
    let Loads { loaded, unloaded } = load_counts();
    loaded.wrapping_add(unloaded)
}

#[cfg(target_os = "linux")]
pub(crate) fn load_counts() -> Loads {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" fn copy_counts(
        info: *mut libc::dl_phdr_info,
        size: libc::size_t,
        load_counts: *mut c_void,
    ) -> c_int {
        if size >= size_of::<libc::dl_phdr_info>() && !info.is_null() {
            // SAFETY: `info` is the loader's, valid during the call, and `size` confirms that it
            // has all fields; `loads` is the value that the caller below passed.
            unsafe {
                *load_counts.cast::<Loads>() =
                    Loads { loaded: (*info).dlpi_adds, unloaded: (*info).dlpi_subs };
            }
        }
        1
    }
    let mut load_counts = Loads::default();
    // SAFETY: `first` has the type that the loader expects, does not unwind, and writes through the
    // pointer to `loads` only during this call.
    unsafe { libc::dl_iterate_phdr(Some(copy_counts), (&raw mut load_counts).cast()) };
    load_counts
}

/// Returns a constant: loads are not observable on this platform.
#[cfg(not(target_os = "linux"))]
pub(crate) fn load_counts() -> Loads {
    Loads::default()
}

/// Returns the executable segments of `/proc/self/maps`, the main executable's first, with the
/// files they had at first use.
pub(crate) fn segments() -> Result<Vec<MappedSegment>, Error> {
    // Read before the list: an unload during the listing is then found the next time.
    let load_counts = load_counts();
    let mut segments = list_segments()?;
    loaded_files::resolve_files(&mut segments, load_counts);
    Ok(segments)
}

/// Returns the segments as the kernel lists them, without locking or opening anything. Safe in an
/// allocating thread of the host.
pub(crate) fn list_segments() -> Result<Vec<MappedSegment>, Error> {
    let maps = fs::read(MAPS).map_err(Error::Maps)?;
    let main = fs::read_link(EXE).ok();
    let mut segments = parse(&maps, main.as_deref());
    segments.sort_by_key(|segment| (!segment.is_main, segment.range.start));
    Ok(segments)
}

/// Returns the executable segments in the text of `/proc/self/maps`.
fn parse(maps: &[u8], main: Option<&Path>) -> Vec<MappedSegment> {
    let mut header: Option<MappedSegment> = None;
    let mut segments = Vec::new();
    for line in maps.split(|&byte| byte == b'\n') {
        let Some((is_code, mut segment)) = parse_line(line, main) else { continue };
        let is_same_file = |first: &MappedSegment| {
            first.device == segment.device && first.inode == segment.inode && segment.inode != 0
        };
        if segment.file_offset == 0 {
            header = Some(segment.clone());
        }
        segment.header =
            header.as_ref().filter(|first| is_same_file(first)).map(|first| first.range.clone());
        if is_code {
            segments.push(segment);
        }
    }
    segments
}

/// Parses `7f00-7f08 r-xp 00001000 08:01 1234    /lib/libc.so.6`. Returns `true` with the segment
/// if it is executable, and `None` if it has no file.
fn parse_line(line: &[u8], main: Option<&Path>) -> Option<(bool, MappedSegment)> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ')?;
        let (field, after) = rest.split_at(end);
        rest = after.trim_ascii_start();
        std::str::from_utf8(field).ok()
    };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?;
    let path = PathBuf::from(OsString::from_vec(unescape_newlines(rest)));
    if !path.has_root() && path.as_os_str() != VDSO {
        return None;
    }
    let segment = MappedSegment {
        range: hex(start)?..hex(end)?,
        file_offset: hex(offset)?,
        is_main: main == Some(path.as_path()),
        path,
        device: hex(major)? << 32 | hex(minor)?,
        inode: inode.parse().ok()?,
        header: None,
        build_id: String::new(),
        file: None,
    };
    Some((permissions.as_bytes().get(2) == Some(&b'x'), segment))
}

/// Decodes a newline in a path, which the kernel writes as `\012`.
fn unescape_newlines(path: &[u8]) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use std::ptr;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    fn maps_lines_are_parsed_into_segments() {
        let main = Path::new("/srv/my app");
        let code = |text: &str, main| parse(text.as_bytes(), main);
        let text = "55d00000-55d0a000 r--p 00000000 fe:01 4711                      /srv/my app\n\
                    55d0a000-55d0b800 r-xp 0001f000 fe:01 4711                      /srv/my app\n\
                    55d0c000-55d0d000 r-xp 00001000 fe:01 4712                      /srv/other";
        let [segment, other] = &code(text, Some(main))[..] else { panic!() };
        assert_eq!(segment.range, 0x55d0_a000..0x55d0_b800);
        assert_eq!((segment.file_offset, segment.inode), (0x1f000, 4711));
        assert_eq!(segment.header, Some(0x55d0_0000..0x55d0_a000));
        assert!(segment.is_main && !other.is_main && other.header.is_none());
        let newline = code(r"1000-2000 r-xp 00000000 fe:01 1   /a\012b", None).remove(0);
        assert_eq!(newline.path, Path::new("/a\nb"));
        for other in [
            "1000-2000 rw-p 00000000 fe:01 1   /data",
            "1000-2000 r-xp 00000000 00:00 0 ",
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]",
            "1000-2000 r-xp",
            "nonsense",
            "",
        ] {
            assert_eq!(code(other, None), [], "{other}");
        }
    }

    #[test]
    fn main_executable_is_listed_first() {
        let images = loaded().unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(images[0].path, exe);
        let here = main_executable_is_listed_first as fn() as usize as u64;
        assert!(images.iter().any(|m| m.path == exe && (m.start..m.end).contains(&here)));
        assert!(images.iter().all(|image| !image.has_functions));
    }

    #[test]
    fn loaded_files_are_cached_until_an_address_is_missing() {
        let here = loaded_files_are_cached_until_an_address_is_missing as *const ();
        let known = loaded_at([here as u64].into_iter()).unwrap();
        assert_eq!(known, loaded().unwrap());
        // Mapped by the program itself, so the loader does not count it.
        let own = fs::File::open(EXE).unwrap();
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        let flags = MapFlags::PRIVATE;
        // SAFETY: a mapping at an address chosen by the kernel, of which only the address is used.
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
    fn build_ids_are_hex_strings() {
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
        let file = segment.open().unwrap();
        let bias = file.load_bias(&segment.range, segment.file_offset).unwrap();
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
    fn generation_is_stable_while_nothing_is_loaded() {
        assert_eq!(generation(), generation());
        assert_ne!(generation(), 0);
    }
}
