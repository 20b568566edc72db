//! Names of generated code, which is in no file.
//!
//! Engines that generate code at run time write `/tmp/perf-PID.map` with a line for each function:
//! `START SIZE NAME`, both numbers hexadecimal. The file only grows, and the later of two lines for
//! an address is valid. Any user can create this file, so it is read only if it belongs to the
//! process's user or to root. Code without a line is named after its mapping, so that it is one
//! row.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The name of code in no file and without a line in the map.
pub const ANONYMOUS_CODE: &str = "[anonymous code]";

/// Returns the name of code in an in-memory file without a line in the map, such as `[memfd:jit]`.
/// `None` if `path` is not in memory.
pub fn memfd_name(path: &Path) -> Option<impl fmt::Display + '_> {
    let name = path.to_str()?.strip_prefix("/memfd:")?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    Some(MemfdName(name))
}

struct MemfdName<'a>(&'a str);

impl fmt::Display for MemfdName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[memfd:{}]", self.0)
    }
}

/// A limit on the bytes read from the map: an engine with 200,000 functions writes about 12 MB.
const MAX_MAP_BYTES: u64 = 32 << 20;

/// Bytes read at once, and the limit on the length of a line.
const BUFFER_BYTES: usize = 32 << 10;

/// A limit on the bytes of a name.
const MAX_NAME_BYTES: usize = 512;

/// A reader of this process's map. Allocates only when it is created.
pub struct GeneratedCode {
    buffer: Vec<u8>,
    /// For each address: file offset and length of its name.
    names: Vec<Option<(u64, usize)>>,
}

impl GeneratedCode {
    /// Reserves buffers for `addresses` per call.
    pub fn with_capacity(addresses: usize) -> Self {
        let mut names = vec![Some((u64::MAX, 0)); addresses];
        names.clear();
        Self { buffer: vec![1; BUFFER_BYTES], names }
    }

    /// Calls `see` with the index of each address of `wanted`, which must be sorted, and its name,
    /// or `None` if the map has none.
    ///
    /// # Errors
    ///
    /// The first error that `see` returns.
    pub fn look_up<T, E>(
        &mut self,
        wanted: &[T],
        address: impl Fn(&T) -> u64,
        visit: impl FnMut(usize, Option<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.look_up_in(open_perf_map().as_ref(), wanted, address, visit)
    }

    fn look_up_in<T, E>(
        &mut self,
        map: Option<&File>,
        wanted: &[T],
        address: impl Fn(&T) -> u64,
        mut visit: impl FnMut(usize, Option<&str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.names.clear();
        self.names.resize(wanted.len(), None);
        if let Some(map) = map {
            // After a read error, the addresses not yet found stay without a name.
            let _ = self.read(map, wanted, address);
        }
        let mut text = [0; MAX_NAME_BYTES];
        for (index, known) in self.names.iter().enumerate() {
            let name = known.zip(map).and_then(|((at, length), map)| {
                let text = text.get_mut(..length.min(MAX_NAME_BYTES))?;
                map.read_exact_at(text, at).ok()?;
                let end =
                    std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
                std::str::from_utf8(text.get(..end)?).ok().filter(|name| !name.is_empty())
            });
            visit(index, name)?;
        }
        Ok(())
    }

    /// Records the location of the name of each address.
    fn read<T>(&mut self, map: &File, wanted: &[T], address: impl Fn(&T) -> u64) -> io::Result<()> {
        let mut file_offset = 0u64;
        let mut buffered = 0usize;
        while file_offset < MAX_MAP_BYTES {
            let free = self.buffer.get_mut(buffered..).unwrap_or_default();
            let read_len = map.read_at(free, file_offset + buffered as u64)?;
            let bytes = self.buffer.get(..buffered + read_len).unwrap_or_default();
            let mut consumed = 0;
            loop {
                let rest = bytes.get(consumed..).unwrap_or_default();
                let Some(length) = rest.iter().position(|&byte| byte == b'\n') else { break };
                let line = rest.get(..length).unwrap_or_default();
                if let Some((code, name)) = parse_line(line) {
                    let below = |end| wanted.partition_point(|one| address(one) < end);
                    let inside = below(code.start)..below(code.end);
                    let place = (file_offset + (consumed + name) as u64, line.len() - name);
                    let slots = self.names.get_mut(inside).unwrap_or_default();
                    slots.fill(Some(place));
                }
                consumed += length + 1;
            }
            // The rest is the start of a line whose end may not be written yet.
            if read_len == 0 {
                break;
            }
            buffered = bytes.len() - consumed;
            file_offset += consumed as u64;
            if buffered == self.buffer.len() {
                break;
            }
            self.buffer.copy_within(consumed..consumed + buffered, 0);
        }
        Ok(())
    }
}

/// Returns the code range of a line, and the offset of the name in it.
fn parse_line(line: &[u8]) -> Option<(Range<u64>, usize)> {
    let text = |part: &[u8]| std::str::from_utf8(part).ok().and_then(parse_hex);
    let first = line.iter().position(|&byte| byte == b' ')?;
    let rest = line.get(first + 1..)?;
    let second = rest.iter().position(|&byte| byte == b' ')?;
    let start = text(line.get(..first)?)?;
    let size = text(rest.get(..second)?)?;
    Some((start..start.checked_add(size)?, first + second + 2))
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Opens the map of this process if it exists and can be trusted.
fn open_perf_map() -> Option<File> {
    // The path is on the stack: a heap profile is written without allocating.
    let mut path = PathText::default();
    let pid = std::process::id();
    fmt::Write::write_fmt(&mut path, format_args!("/tmp/perf-{pid}.map")).ok()?;
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path.get()?).ok()?;
    let metadata = file.metadata().ok()?;
    let euid = rustix::process::geteuid().as_raw();
    let is_trusted = [0, euid].contains(&metadata.uid()) && metadata.mode() & 0o002 == 0;
    (metadata.is_file() && is_trusted).then_some(file)
}

#[derive(Default)]
struct PathText {
    bytes: [u8; 32],
    length: usize,
}

impl PathText {
    fn get(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes.get(..self.length)?).ok()
    }
}

impl fmt::Write for PathText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let place = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;

    use super::*;

    fn names(text: &[u8], wanted: &[u64]) -> Vec<Option<String>> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let mut names = Vec::new();
        let visit = |place, name: Option<&str>| {
            assert_eq!(place, names.len());
            names.push(name.map(str::to_owned));
            Ok::<(), Infallible>(())
        };
        let mut generated = GeneratedCode::with_capacity(4);
        generated.look_up_in(Some(&file), wanted, |&address| address, visit).unwrap();
        names
    }

    #[test]
    fn later_line_overrides_earlier_for_same_address() {
        let text = b"1000 10 first\n0x2000 0x20 a name\nnonsense\n1008 8 later\n1000 100";
        let found = names(text, &[0xfff, 0x1000, 0x1007, 0x1008, 0x1010, 0x201f, 0x2020]);
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        let first = Some("first");
        let later = Some("later");
        let other = Some("a name");
        assert_eq!(found, [None, first, first, later, None, other, None]);
    }

    #[test]
    fn large_map_is_read_in_chunks_until_overlong_line() {
        let mut text: Vec<u8> = (0..5000)
            .flat_map(|n| format!("{:x} 10 function_{n}\n", n * 16).into_bytes())
            .collect();
        let found = names(&text, &[0, 16, 4999 * 16 + 15, 5000 * 16]);
        let found: Vec<_> = found.iter().map(Option::as_deref).collect();
        let expected = [Some("function_0"), Some("function_1"), Some("function_4999"), None];
        assert_eq!(found, expected);
        text.extend([b'x'; 2 * BUFFER_BYTES]);
        text.extend(b"\n13880 10 behind\n");
        assert_eq!(names(&text, &[5000 * 16]), [None]);
    }

    #[test]
    fn memfd_path_gives_name() {
        let name = |path| memfd_name(Path::new(path)).map(|name| name.to_string());
        assert_eq!(name("/memfd:jit (deleted)").as_deref(), Some("[memfd:jit]"));
        assert_eq!(name("/lib/libc.so.6"), None);
    }
}
