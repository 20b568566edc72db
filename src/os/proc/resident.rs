//! Resident memory of the process by kind of mapping.
//!
//! ```text
//! /proc/self/status   VmRSS = RssAnon + RssFile + RssShmem     1 us
//! /proc/self/smaps    Rss of each mapping                      11 ms a GiB (walks every page),
//!                                                              3 us a mapping
//! ```
//!
//! The text is read into a preallocated buffer, so that it can be read when no more memory is
//! available. While the kernel writes the lines of a mapping, other threads cannot map or unmap.
//! `smaps` is therefore not read above 8 GiB.

use std::ops::Range;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::base::Bytes;

/// Resident memory above which mappings are not walked: 90 ms.
pub(crate) const MAX_WALKED_RSS: Bytes = Bytes(8 << 30);

/// Maximum number of mappings read: 60 ms and 14 MB of text.
const MAX_MAPPINGS: usize = 20_000;

/// Buffer size; more than a line of smaps with the longest path.
const BUFFER_BYTES: usize = 16 << 10;

/// Alignment of glibc's arenas.
const ARENA_BYTES: u64 = 64 << 20;

/// Maximum size of a mapping without access that counts as the guard below a thread's stack.
const MAX_GUARD_BYTES: u64 = 64 << 10;

/// Number of largest mappings that are reported individually.
const LARGEST_COUNT: usize = 3;

/// Resident memory of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidentMemory {
    /// Heap, stacks and private copies of file pages.
    pub anonymous: Bytes,
    /// Pages of mapped files.
    pub file: Bytes,
    /// Shared memory: System V, `/dev/shm`, memory files.
    pub shared: Bytes,
    /// Breakdown by kind of mapping, or `None` if there is too much to walk or `smaps` cannot be
    /// read.
    pub kinds: Option<MappingKinds>,
}

/// Resident memory by kind of mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingKinds {
    /// Malloc's heap: `[heap]`, and glibc's arenas.
    pub malloc: Bytes,
    /// Other anonymous mappings.
    pub anonymous: Bytes,
    /// Stacks: the main thread's, and anonymous mappings right above a guard.
    pub stacks: Bytes,
    /// Mapped files, including the private copies of their pages.
    pub files: Bytes,
    /// Shared memory.
    pub shared: Bytes,
    /// Mappings with the most resident memory, largest first.
    pub largest: [LargeMapping; LARGEST_COUNT],
    /// Set if not all mappings were read.
    pub is_partial: bool,
}

/// A mapping with much resident memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LargeMapping {
    /// Lowest address.
    pub start: u64,
    /// Resident memory in the mapping.
    pub resident: Bytes,
    /// Kind of the mapping.
    pub kind: MappingKind,
}

/// Kind of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MappingKind {
    /// Malloc's heap.
    Malloc,
    /// Anonymous mapping.
    #[default]
    Anonymous,
    /// Stack.
    Stack,
    /// Mapped file.
    File,
    /// Shared memory.
    Shared,
}

impl MappingKind {
    /// Returns the name shown in a profile.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc heap",
            Self::Anonymous => "anonymous",
            Self::Stack => "stack",
            Self::File => "file",
            Self::Shared => "shared",
        }
    }
}

impl ResidentMemory {
    /// Returns the sum of all three parts.
    pub fn total(&self) -> Bytes {
        Bytes(self.anonymous.get() + self.file.get() + self.shared.get())
    }
}

/// A reader of the resident memory of this process.
#[derive(Debug)]
pub struct ResidentReader {
    buffer: Vec<u8>,
}

impl ResidentReader {
    /// Allocates the buffer of 16 KiB and writes to it once.
    pub fn with_buffer() -> Self {
        Self { buffer: vec![1; BUFFER_BYTES] }
    }

    /// Reads the resident memory without allocating. Returns `None` if `/proc` does not provide it.
    pub fn read(&mut self) -> Option<ResidentMemory> {
        let mut resident = ResidentMemory::default();
        self.for_each_line(c"/proc/self/status", |line| {
            for (name, field) in [
                (b"RssAnon:".as_slice(), &mut resident.anonymous),
                (b"RssFile:", &mut resident.file),
                (b"RssShmem:", &mut resident.shared),
            ] {
                if let Some(value) = line.strip_prefix(name).and_then(parse_kib) {
                    *field = value;
                }
            }
            true
        })
        .ok()?;
        if resident.total() == Bytes(0) {
            return None;
        }
        if resident.total() <= MAX_WALKED_RSS {
            let mut walk = MappingWalk::default();
            let is_read = self.for_each_line(c"/proc/self/smaps", |line| walk.add_line(line));
            resident.kinds = is_read.is_ok().then(|| walk.finish());
        }
        Some(resident)
    }

    /// Calls `see` with each line of a file until it returns `false`. A line longer than the buffer
    /// is truncated.
    fn for_each_line(
        &mut self,
        path: &std::ffi::CStr,
        mut on_line: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Errno> {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut filled = 0;
        let mut is_truncated = false;
        loop {
            let free = self.buffer.get_mut(filled..).unwrap_or_default();
            let read = match rustix::io::read(&file, free) {
                Err(Errno::INTR) => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(());
            }
            filled += read;
            let mut start = 0;
            while let Some(line) = self.buffer.get(start..filled) {
                let Some(end) = line.iter().position(|&byte| byte == b'\n') else { break };
                let line = line.get(..end).unwrap_or_default();
                start += end + 1;
                if !std::mem::take(&mut is_truncated) && !on_line(line) {
                    return Ok(());
                }
            }
            if start == 0 && filled == self.buffer.len() {
                if !std::mem::replace(&mut is_truncated, true) && !on_line(&self.buffer) {
                    return Ok(());
                }
                filled = 0;
                continue;
            }
            self.buffer.copy_within(start..filled, 0);
            filled -= start;
        }
    }
}

/// A mapping whose lines are being read.
#[derive(Clone, Copy, Default)]
struct MemoryMapping {
    start: u64,
    end: u64,
    kind: MappingKind,
    /// Set for a mapping without access: a guard, or the reserved part of an arena.
    is_inaccessible: bool,
    /// Set for a mapping that is readable, writable, private and unnamed.
    is_private_anonymous: bool,
    resident: Bytes,
}

#[derive(Default)]
struct MappingWalk {
    kinds: MappingKinds,
    last: MemoryMapping,
    mappings: usize,
}

impl MappingWalk {
    fn add_line(&mut self, line: &[u8]) -> bool {
        if let Some(value) = line.strip_prefix(b"Rss:") {
            self.last.resident = parse_kib(value).unwrap_or_default();
        } else if let Some(next) = parse_header(line) {
            self.start_mapping(next);
            self.mappings += 1;
            self.kinds.is_partial = self.mappings > MAX_MAPPINGS;
        }
        !self.kinds.is_partial
    }

    fn start_mapping(&mut self, mut next: MemoryMapping) {
        let last = self.last;
        let adjoins = last.end == next.start;
        // An arena: the used part, followed by an inaccessible part up to a multiple of its size.
        let has_reserved_part =
            next.is_inaccessible && adjoins && next.end.is_multiple_of(ARENA_BYTES);
        let is_full_arena = last.end.is_multiple_of(ARENA_BYTES);
        if last.is_private_anonymous
            && last.start.is_multiple_of(ARENA_BYTES)
            && (has_reserved_part || is_full_arena)
        {
            self.last.kind = MappingKind::Malloc;
        }
        let is_guard = last.is_inaccessible && last.end - last.start <= MAX_GUARD_BYTES;
        if next.is_private_anonymous && adjoins && is_guard {
            next.kind = MappingKind::Stack;
        }
        self.count_last();
        self.last = next;
    }

    /// Adds the last mapping to its kind.
    fn count_last(&mut self) {
        let MemoryMapping { start, kind, resident, .. } = self.last;
        let sum = match kind {
            MappingKind::Malloc => &mut self.kinds.malloc,
            MappingKind::Anonymous => &mut self.kinds.anonymous,
            MappingKind::Stack => &mut self.kinds.stacks,
            MappingKind::File => &mut self.kinds.files,
            MappingKind::Shared => &mut self.kinds.shared,
        };
        *sum = Bytes(sum.get().saturating_add(resident.get()));
        let mut entry = LargeMapping { start, resident, kind };
        for large in &mut self.kinds.largest {
            if entry.resident > large.resident {
                std::mem::swap(large, &mut entry);
            }
        }
    }

    fn finish(mut self) -> MappingKinds {
        self.count_last();
        self.kinds
    }
}

/// Parses the first line of a mapping: `7f12a000-7f12c000 rw-p 00000000 00:00 0    /path`.
fn parse_header(line: &[u8]) -> Option<MemoryMapping> {
    let mut words = line.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let range = parse_range(words.next()?)?;
    let permissions = words.next()?;
    let path = words.nth(3).unwrap_or_default();
    let is_private = permissions.get(3) == Some(&b'p');
    let starts = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    // Names with spaces are matched by word: `[anon: glibc: malloc]`, `[anon: glibc: pthread stack:
    // 12]`.
    let has = |word: &[u8]| line.windows(word.len()).any(|at| at == word);
    let kind = match path {
        b"[heap]" => MappingKind::Malloc,
        b"[stack]" => MappingKind::Stack,
        _ if starts(&[b"[anon:"]) && has(b"malloc") => MappingKind::Malloc,
        _ if starts(&[b"[anon:"]) && has(b"stack") => MappingKind::Stack,
        _ if starts(&[b"/dev/shm/", b"/SYSV", b"/memfd:", b"/dev/zero", b"[anon_shmem:"]) => {
            MappingKind::Shared
        }
        _ if starts(&[b"/"]) => MappingKind::File,
        _ if is_private => MappingKind::Anonymous,
        _ => MappingKind::Shared,
    };
    Some(MemoryMapping {
        start: range.start,
        end: range.end,
        kind,
        is_inaccessible: permissions.starts_with(b"---"),
        is_private_anonymous: permissions.starts_with(b"rw-") && is_private && path.is_empty(),
        resident: Bytes(0),
    })
}

fn parse_range(word: &[u8]) -> Option<Range<u64>> {
    let (start, end) = std::str::from_utf8(word).ok()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// Parses the value of a line such as `Rss:    12 kB`.
fn parse_kib(value: &[u8]) -> Option<Bytes> {
    let number = std::str::from_utf8(value).ok()?.trim().strip_suffix("kB")?;
    Some(Bytes(number.trim().parse::<u64>().ok()? << 10))
}

#[cfg(test)]
#[path = "resident_tests.rs"]
mod tests;
