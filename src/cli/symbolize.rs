//! Source lines and inlined functions for profiles captured without them.
//!
//! The profile is modified as protobuf messages, so fields unknown to marple are preserved. A
//! location without DWARF keeps its names. The flags of a mapping state which information is
//! present, and a reader does not symbolize a mapping with set flags. So they are set only if the
//! debug information was available.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::codec::pprof::proto::{Function, Line, Location, Mapping, Profile};
use crate::codec::pprof::{read, write_proto};
use crate::symbols::{self, Lines, SourceFrame};

use crate::cli::Symbolize;

/// A limit on the bytes read from a file, above the maximum size of a profile.
const MAX_FILE_BYTES: u64 = 65 << 20;

type Failure = Box<dyn std::error::Error>;

/// Symbolizes all profiles of the command line. Returns one line for each failure.
pub(crate) fn run(args: Symbolize) -> Result<(), Vec<String>> {
    if args.output.is_some() && args.profiles.len() > 1 {
        return Err(vec![
            "--output accepts one profile only; omit it to write each result next to its profile"
                .into(),
        ]);
    }
    let binaries = Binaries::open(&args.binary).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    for profile in &args.profiles {
        let output = args.output.clone().unwrap_or_else(|| default_output_path(profile));
        match symbolize(profile, &output, &binaries, args.force) {
            Ok(report) => print!("{report}"),
            Err(error) => errors.push(format!("{}: {error}", profile.display())),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Returns the output path: `X.cpu.lines.pprof` for `X.cpu.pprof`.
fn default_output_path(profile: &Path) -> PathBuf {
    profile.with_extension("lines.pprof")
}

/// Binaries from the command line by build ID. Those without one have an empty ID and match by file
/// name.
struct Binaries(Vec<(String, PathBuf)>);

impl Binaries {
    fn open(paths: &[PathBuf]) -> Result<Self, String> {
        let open = |path: &PathBuf| match symbols::build_id(path) {
            Ok(id) => Ok((id, path.clone())),
            Err(error) => Err(format!("--binary {error}")),
        };
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the files of the build that `path` with `build_id` was mapped from: those given on
    /// the command line, and `path` itself.
    fn files_for_build(&self, path: &Path, build_id: &str) -> Result<Vec<PathBuf>, Failure> {
        let is_same_build = |(id, binary): &&(String, PathBuf)| {
            id == build_id && (!id.is_empty() || binary.file_name() == path.file_name())
        };
        let mut files: Vec<PathBuf> =
            self.0.iter().filter(is_same_build).map(|(_, binary)| binary.clone()).collect();
        match symbols::build_id(path) {
            Ok(found) if found == build_id => files.push(path.to_owned()),
            Ok(_) if !files.is_empty() => {}
            Ok(found) => {
                return Err(format!(
                    "{} has build ID `{found}`, but the code that ran had `{build_id}`: \
                     pass the binary that ran with --binary",
                    path.display()
                )
                .into());
            }
            Err(_) if !files.is_empty() => {}
            Err(error) => return Err(format!("{error}; pass the binary with --binary").into()),
        }
        Ok(files)
    }
}

fn symbolize(
    input: &Path,
    output: &Path,
    binaries: &Binaries,
    force: bool,
) -> Result<String, Failure> {
    if !force && output.exists() {
        return Err(
            format!("{} already exists; use --force to replace it", output.display()).into()
        );
    }
    let mut bytes = Vec::new();
    File::open(input)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MAX_FILE_BYTES {
        return Err(format!(
            "the file has {MAX_FILE_BYTES} bytes or more; profiles of marple are smaller"
        )
        .into());
    }
    let mut profile = read(&bytes)?;
    drop(bytes);
    let mut tables = Tables::from_profile(&profile);
    let mut with_lines = 0;
    let mut inlined = 0;
    let mut problems = Vec::new();
    for at in 0..profile.mapping.len() {
        let Some(&mapping) = profile.mapping.get(at) else { continue };
        let mut locations: Vec<&mut Location> = profile
            .location
            .iter_mut()
            .filter(|location| location.mapping_id == mapping.id)
            .collect();
        let path = PathBuf::from(tables.text(mapping.filename));
        // "[vdso]" and similar names are not files.
        if locations.is_empty() || !path.is_absolute() {
            continue;
        }
        let opened = binaries
            .files_for_build(&path, tables.text(mapping.build_id))
            .and_then(|files| Ok(Lines::open(&files)?));
        let lines = match opened {
            Ok(lines) => lines,
            Err(error) => {
                problems.push(format!("{error} ({} frames)", locations.len()));
                continue;
            }
        };
        let mut damaged = None;
        for location in &mut locations {
            let Some(offset) = file_offset(&mapping, location.address) else { continue };
            let frames = match lines.frames_at(offset) {
                Ok(frames) => frames,
                Err(error) => {
                    damaged = Some(error);
                    continue;
                }
            };
            if frames.iter().all(|frame| frame.file.is_none()) {
                continue;
            }
            inlined += usize::from(frames.len() > 1);
            with_lines += 1;
            location.line = tables.lines(&frames, location.line.last());
        }
        problems.extend(damaged.map(|error| error.to_string()));
        if let Some(mapping) = profile.mapping.get_mut(at) {
            mapping.has_functions = true;
            mapping.has_filenames = true;
            mapping.has_line_numbers = true;
            mapping.has_inline_frames = true;
        }
    }
    if with_lines == 0 {
        problems.insert(0, "no frame has a source line; nothing was written".to_owned());
        return Err(problems.join("\n  ").into());
    }
    let frames = profile.location.len();
    tables.store_into(&mut profile);
    write(&profile, output, force)?;
    let mut report = format!(
        "{} -> {}\n  {with_lines} of {frames} frames have source lines, {inlined} of them inlined functions\n",
        input.display(),
        output.display()
    );
    for problem in problems {
        report += &format!("  {problem}\n");
    }
    Ok(report)
}

/// Returns the file offset of the code at `address`, or `None` if it is outside the mapping.
fn file_offset(mapping: &Mapping, address: u64) -> Option<u64> {
    let inside = (mapping.memory_start..mapping.memory_limit).contains(&address);
    inside.then(|| (address - mapping.memory_start).checked_add(mapping.file_offset)).flatten()
}

/// Writes the profile to a temporary file and renames it, so that a reader never gets a partial
/// file.
fn write(profile: &Profile, output: &Path, force: bool) -> io::Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut temp_file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    write_proto(profile, io::BufWriter::new(temp_file.as_file_mut()))?;
    temp_file.flush()?;
    temp_file.as_file().sync_all()?;
    let persisted: Result<File, _> =
        if force { temp_file.persist(output) } else { temp_file.persist_noclobber(output) };
    persisted.map(drop).map_err(|error| error.error)
}

/// Strings and functions of a profile, indexed for lookup and extension.
struct Tables {
    texts: Vec<String>,
    by_text: HashMap<String, i64>,
    functions: HashMap<u64, Function>,
    by_function: HashMap<(i64, i64, i64), u64>,
    /// The highest function ID.
    last_function_id: u64,
}

impl Tables {
    fn from_profile(profile: &Profile) -> Self {
        let texts = profile.string_table.clone();
        let by_text = texts.iter().cloned().zip(0..).collect();
        let all_functions = || profile.function.iter();
        let by_function =
            all_functions().map(|function| (function_key(function), function.id)).collect();
        let functions = all_functions().map(|function| (function.id, *function)).collect();
        let last_function_id = all_functions().map(|function| function.id).max().unwrap_or(0);
        Self { texts, by_text, functions, by_function, last_function_id }
    }

    fn text(&self, index: i64) -> &str {
        usize::try_from(index).ok().and_then(|at| self.texts.get(at)).map_or("", |text| text)
    }

    /// Returns the lines that DWARF gives for a location. The outermost function keeps its `known`
    /// name, because line tables alone contain names without their modules.
    fn lines(&mut self, frames: &[SourceFrame], known: Option<&Line>) -> Vec<Line> {
        let known = known.map(|line| line.function_id);
        let outermost = frames.len() - 1;
        frames
            .iter()
            .enumerate()
            .map(|(at, frame)| {
                let known = known.filter(|_| at == outermost);
                let function_id = self.function(frame, known);
                Line { function_id, line: frame.line.into(), column: frame.column.into() }
            })
            .collect()
    }

    fn function(&mut self, frame: &SourceFrame, known: Option<u64>) -> u64 {
        let known = known.and_then(|id| self.functions.get(&id)).copied();
        let (name, system_name) = match (&frame.system_name, frame.name(), known) {
            (_, _, Some(known)) => (known.name, known.system_name),
            (Some(system_name), Some(name), _) => (self.intern(&name), self.intern(system_name)),
            _ => (self.intern("[function unknown]"), 0),
        };
        let filename = frame.file.as_deref().map_or(0, |file| self.intern(file));
        let function =
            Function { id: self.last_function_id + 1, name, system_name, filename, start_line: 0 };
        *self.by_function.entry(function_key(&function)).or_insert_with(|| {
            self.last_function_id = function.id;
            self.functions.insert(function.id, function);
            function.id
        })
    }

    fn intern(&mut self, text: &str) -> i64 {
        if let Some(&known) = self.by_text.get(text) {
            return known;
        }
        let at = self.texts.len() as i64;
        self.texts.push(text.to_owned());
        self.by_text.insert(text.to_owned(), at);
        at
    }

    /// Stores the tables in the profile, without functions that no location uses.
    fn store_into(self, profile: &mut Profile) {
        let lines = profile.location.iter().flat_map(|location| &location.line);
        let used: BTreeSet<u64> = lines.map(|line| line.function_id).collect();
        profile.function = used.iter().filter_map(|id| self.functions.get(id)).copied().collect();
        profile.string_table = self.texts;
    }
}

fn function_key(function: &Function) -> (i64, i64, i64) {
    (function.name, function.system_name, function.filename)
}
