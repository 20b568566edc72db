//! A writer of heap profiles, from the allocator's tables to a file, in memory reserved in advance.
//!
//! ```text
//! tables ── samples ─────────────────────────────┐
//!        ── frames, by address ── symbol tables ─┴─► profile.proto ─► gzip ─► out
//! ```
//!
//! A dump allocates nothing: its buffers, about 1.5 MiB, are allocated and touched in advance. A
//! dump is needed most when no more memory is available. Building the profile in memory first, as
//! for the other kinds, would take some 400 bytes per sample at that moment.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::base::{Bytes, Error};
use crate::capture::memory_summary::MemorySummary;
use crate::codec::pprof::{self, FunctionId, ProfileHeader, ProfileStream};
use crate::heap::{self, MAX_FRAMES_PER_BATCH};
use crate::model::{Mapping, Marker};
use crate::os::proc::resident::ResidentReader;
use crate::symbols::{
    ANONYMOUS_CODE, CodeIdentity, GeneratedCode, SymbolFailure, SymbolFiles, UnverifiedFile,
    memfd_name,
};

/// Memory of the process, added to a profile for comparison with its totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set size, in bytes.
    pub resident: Option<u64>,
    /// Memory charged against the limit, in bytes.
    pub working_set: Option<u64>,
    /// Memory limit, in bytes.
    pub limit: Option<u64>,
}

/// A writer of heap profiles that allocates nothing while writing.
pub struct HeapWriter {
    tables: heap::DumpBuffers,
    stream: pprof::WriterBuffers,
    symbol_files: SymbolFiles,
    generated: GeneratedCode,
    batch: Vec<(u64, u32)>,
    used_mappings: Vec<UsedMapping>,
    resident: ResidentReader,
    summary: Option<MemorySummary>,
}

/// A mapping that contains a frame.
#[derive(Clone, Copy)]
struct UsedMapping {
    mapping: usize,
    /// True if every frame in it has a name.
    all_named: bool,
    /// True if the comment about its file has been written.
    commented: bool,
}

impl HeapWriter {
    /// Memory that [`Self::reserve`] takes, roughly.
    pub(crate) const RESERVED: Bytes = Bytes::kib(1536);

    /// Reserves the memory of a dump, about 1.5 MiB, makes it resident, and opens the loaded files.
    pub fn reserve() -> Self {
        let _excluded = heap::exclude_current_thread();
        let mut batch = vec![(u64::MAX, u32::MAX); 2 * MAX_FRAMES_PER_BATCH];
        batch.clear();
        let mut tables = heap::DumpBuffers::preallocate();
        let mut symbol_files = SymbolFiles::with_capacity(MAX_FRAMES_PER_BATCH);
        // A persistent error is reported by the first dump.
        if let Ok(dump) = tables.begin() {
            symbol_files.open_all(dump.mappings());
        }
        Self {
            tables,
            stream: pprof::WriterBuffers::preallocate(),
            symbol_files,
            generated: GeneratedCode::with_capacity(MAX_FRAMES_PER_BATCH),
            batch,
            used_mappings: Vec::with_capacity(256),
            resident: ResidentReader::with_buffer(),
            summary: None,
        }
    }

    /// Writes a gzip-compressed profile of the heap at this moment. `now` is the current wall time.
    /// Functions are symbolized from the symbol tables on disk.
    ///
    /// Allocates nothing, unless libraries were loaded since the last call, more than 64 are
    /// loaded, or one cannot be opened. Costs some milliseconds per 10 MB of symbol tables and
    /// about 0.3 us per sample. Other threads are not stopped.
    ///
    /// # Errors
    ///
    /// If the program uses another allocator, `/proc` cannot be read, or `out` fails.
    pub fn write(
        &mut self,
        now: Timestamp,
        process: ProcessMemory,
        out: impl Write,
    ) -> Result<(), Error> {
        let Self {
            tables,
            stream,
            symbol_files,
            generated,
            batch,
            used_mappings,
            resident,
            summary,
        } = self;
        *summary = None;
        let mut dump = tables.begin().map_err(Error::new)?;
        let header = ProfileHeader {
            sample_types: &heap::SAMPLE_TYPES,
            default_sample_type: heap::DEFAULT_SAMPLE_TYPE,
            period_type: heap::PERIOD_TYPE,
            period: heap::rate().get() as i64,
            time_nanos: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
            drop_frames: heap::DROP_FRAMES,
        };
        used_mappings.clear();
        // Readers assume that the first mapping is the main executable, so it is always written.
        used_mappings.extend(dump.mappings().first().map(|_| UsedMapping::new(0)));
        let written = (|| {
            let mut out = ProfileStream::begin(stream, out, &header)?;
            let bytes = out.text("bytes")?;
            dump.visit_samples(|sample| {
                let label = sample.size.map(|size| pprof::NumberLabel {
                    key: bytes,
                    value: size as i64,
                    unit: bytes,
                });
                out.sample(sample.frames, &sample.values, label)
            })?;
            let mappings = dump.mappings();
            let mut locations = LocationTable {
                mappings,
                used: used_mappings,
                files: symbol_files,
                generated,
                out: &mut out,
            };
            let mut last_address = 0;
            loop {
                dump.next_frames(last_address, batch);
                let Some(&(last, _)) = batch.last() else { break };
                last_address = last;
                locations.write(batch)?;
            }
            for (used_index, used) in used_mappings.iter().enumerate() {
                if let Some(mapping) = dump.mappings().get(used.mapping) {
                    out.mapping(used_index, mapping, used.all_named)?;
                }
            }
            *summary = MemorySummary::read(dump.in_use().get(), resident);
            if let Some(summary) = summary {
                summary.write_lines(|line| out.comment(line))?;
            }
            dump.visit_comments(|comment| out.comment(comment))?;
            process.comment(&mut out)?;
            for (cause, count) in dump.loss_counts() {
                out.comment(format_args!("lost: {count} {cause}"))?;
            }
            out.finish()
        })();
        written.map_err(|error: io::Error| Error::new(error))
    }

    /// Returns the comparison of the last profile with the resident memory, or `None` if that could
    /// not be read.
    pub(crate) fn summary(&self) -> Option<MemorySummary> {
        self.summary
    }
}

impl UsedMapping {
    fn new(mapping: usize) -> Self {
        Self { mapping, all_named: true, commented: false }
    }
}

struct LocationTable<'a, 'r, W: Write> {
    mappings: &'a [Mapping],
    used: &'a mut Vec<UsedMapping>,
    files: &'a mut SymbolFiles,
    generated: &'a mut GeneratedCode,
    out: &'a mut ProfileStream<'r, W>,
}

impl<W: Write> LocationTable<'_, '_, W> {
    /// Writes frames sorted by address.
    fn write(&mut self, mut frames: &[(u64, u32)]) -> io::Result<()> {
        while let Some(&(first, _)) = frames.first() {
            let mapping_index =
                self.mappings.iter().position(|m| (m.start..m.end).contains(&first));
            let end = match mapping_index.and_then(|index| self.mappings.get(index)) {
                Some(mapping) => mapping.end,
                None => {
                    let above = self.mappings.iter().map(|m| m.start).filter(|&at| at > first);
                    above.min().unwrap_or(u64::MAX)
                }
            };
            let inside = frames.partition_point(|&(address, _)| address < end).max(1);
            let (group, rest) = frames.split_at(inside);
            frames = rest;
            match mapping_index {
                Some(mapping_index) => self.write_mapped(mapping_index, group)?,
                None => self.write_generated(None, group)?,
            }
        }
        Ok(())
    }

    /// Writes frames outside any file, or in a file that exists in memory only.
    fn write_generated(
        &mut self,
        used_index: Option<usize>,
        frames: &[(u64, u32)],
    ) -> io::Result<()> {
        let code = frames.partition_point(|&(address, _)| Marker::from_address(address).is_none());
        let (code, markers) = frames.split_at(code);
        let Self { mappings, used, generated, out, .. } = self;
        let mapping = used_index.and_then(|index| mappings.get(used.get(index)?.mapping));
        generated.look_up(
            code,
            |&(address, _)| address,
            |at, name| {
                let Some(&(address, number)) = code.get(at) else { return Ok(()) };
                let file = mapping.and_then(|mapping| memfd_name(&mapping.path));
                let name = match (name, file) {
                    (Some(name), _) => out.text(name)?,
                    (None, Some(file)) => out.text(file)?,
                    (None, None) => out.text(ANONYMOUS_CODE)?,
                };
                let function = out.function(name, name)?;
                out.location(number, address, used_index, Some(function))
            },
        )?;
        for &(address, number) in markers {
            let name = Marker::from_address(address).map_or(ANONYMOUS_CODE, Marker::name);
            let name = out.text(name)?;
            let function = out.function(name, name)?;
            out.location(number, address, None, Some(function))?;
        }
        Ok(())
    }

    fn write_unnamed(
        &mut self,
        used_index: Option<usize>,
        frames: &[(u64, u32)],
    ) -> io::Result<()> {
        frames
            .iter()
            .try_for_each(|&(address, number)| self.out.location(number, address, used_index, None))
    }

    fn write_mapped(&mut self, mapping_index: usize, frames: &[(u64, u32)]) -> io::Result<()> {
        let Some(mapping) = self.mappings.get(mapping_index) else { return Ok(()) };
        let known = self.used.iter().position(|used| used.mapping == mapping_index);
        let used_index = known.unwrap_or_else(|| {
            self.used.push(UsedMapping::new(mapping_index));
            self.used.len() - 1
        });
        if memfd_name(&mapping.path).is_some() {
            return self.write_generated(Some(used_index), frames);
        }
        // "[vdso]" and similar mappings are not files.
        let mut written = 0;
        let mut named = true;
        if mapping.path.is_absolute() {
            let file_offset = |&(address, _): &(u64, u32)| {
                (address - mapping.start).saturating_add(mapping.file_offset)
            };
            let mut function: Option<FunctionId> = None;
            let files = &mut *self.files;
            let out = &mut *self.out;
            let lookup = files.look_up(mapping, frames.iter().map(file_offset), |at, symbol| {
                if let Some(symbol) = symbol.filter(|symbol| symbol.is_new || function.is_none()) {
                    let name = out.text(symbol.name)?;
                    let system_name = out.text(symbol.system_name)?;
                    function = Some(out.function(name, system_name)?);
                }
                named &= symbol.is_some();
                if let Some(&(address, number)) = frames.get(at) {
                    let function = symbol.and(function);
                    out.location(number, address, Some(used_index), function)?;
                }
                written = at + 1;
                Ok::<(), io::Error>(())
            });
            let commented = self.used.get(used_index).is_some_and(|used| used.commented);
            match lookup {
                Ok(CodeIdentity::Verified) => {}
                Err(SymbolFailure::Callback(error)) => return Err(error),
                Ok(CodeIdentity::Unverified) if !commented => {
                    out.comment(UnverifiedFile(&mapping.path))?
                }
                Err(SymbolFailure::File(error)) if !commented => out.comment(error)?,
                Ok(CodeIdentity::Unverified) | Err(SymbolFailure::File(_)) => {}
            }
        }
        let unnamed = frames.get(written..).unwrap_or_default();
        if let Some(used) = self.used.get_mut(used_index) {
            used.all_named &= named && unnamed.is_empty();
            used.commented = true;
        }
        self.write_unnamed(Some(used_index), unnamed)
    }
}

impl ProcessMemory {
    /// Writes the reasons a process uses more memory than the profile's total.
    fn comment<W: Write>(&self, out: &mut ProfileStream<'_, W>) -> io::Result<()> {
        if let Some(resident) = self.resident {
            out.comment(format_args!("process: {resident} bytes resident"))?;
        }
        if let (Some(used), Some(limit)) = (self.working_set, self.limit) {
            out.comment(format_args!(
                "process: {used} bytes count against the memory limit of {limit}"
            ))?;
        }
        out.comment(
            "process: in addition to the profile's total, resident memory includes allocator overhead, \
             freed memory kept for reuse, stacks, code, mapped files and allocations of C code; \
             allocations that were never written to are not resident",
        )
    }
}
