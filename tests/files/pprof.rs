//! Profiles as read by Go's pprof and by the crate's own reader.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use marple::internals::codec::{Error, pprof};
use marple::internals::model::{
    Function, FunctionHandle, Line, Mapping, MappingHandle, Profile, Sample, StackHandle, ValueType,
};
use proptest::prelude::*;
use prost::Message;

use crate::support::counting;
use crate::support::peers;

const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };
const SAMPLES: ValueType = ValueType { name: "samples", unit: "count" };
const SPACE_BYTES: ValueType = ValueType { name: "space", unit: "bytes" };
const HEAP: [ValueType; 4] = [
    ValueType { name: "alloc_objects", unit: "count" },
    ValueType { name: "alloc_space", unit: "bytes" },
    ValueType { name: "inuse_objects", unit: "count" },
    ValueType { name: "inuse_space", unit: "bytes" },
];

fn start_time() -> Timestamp {
    "2026-11-23T02:57:33.5Z".parse().unwrap()
}

fn mapping(start: u64, path: &str, build_id: &str, has_functions: bool) -> Mapping {
    Mapping {
        start,
        end: start + 0x10_0000,
        file_offset: 0x1000,
        path: path.into(),
        build_id: build_id.to_owned(),
        has_functions,
        file: None,
    }
}

/// Names the frame at `address`, innermost inlined function first.
fn name_frame(profile: &mut Profile, address: u64, mapping: u32, names: &[(&str, &str, u32)]) {
    let frame = profile.frames.intern(address);
    let lines = names
        .iter()
        .map(|&(name, file, line)| {
            let function = Function {
                name: profile.strings.intern(name),
                system_name: profile.strings.intern(&format!("_R{name}")),
                file: profile.strings.intern(file),
            };
            profile.functions.push(function);
            Line { function: FunctionHandle(profile.functions.len() as u32 - 1), line }
        })
        .collect();
    let frame = profile.frames.iter_mut().nth(frame.index()).unwrap();
    (frame.mapping, frame.lines) = (Some(MappingHandle(mapping)), lines);
}

fn push_sample(profile: &mut Profile, stack: Option<StackHandle>, values: &[i64]) {
    profile.samples.push(Sample { stack, values: values.to_vec(), labels: Vec::new() });
}

/// Builds a CPU profile with these stacks:
///
/// * `main -> serve -> parse`, where `parse` inlines `validate`,
/// * `main -> serve -> render`,
/// * an address without a symbol,
/// * a stack that could not be read.
fn cpu_profile() -> Profile {
    let mut profile = Profile::new(&[SAMPLES, CPU], CPU, 10_101_010, start_time());
    profile.default_sample_type = "cpu";
    profile.duration = Duration::from_secs(10);
    profile.mappings = vec![
        mapping(0x40_0000, "/srv/orders", "c0ffee", true),
        mapping(0x7f00_0000, "/lib/libz.so", "", false),
    ];
    name_frame(&mut profile, 0x40_1000, 0, &[("main", "main.rs", 3)]);
    name_frame(&mut profile, 0x40_2000, 0, &[("serve", "serve.rs", 14)]);
    let inlined = [("validate", "check.rs", 15), ("parse", "parse.rs", 92)];
    name_frame(&mut profile, 0x40_3000, 0, &inlined);
    name_frame(&mut profile, 0x40_4000, 0, &[("render", "render.rs", 65)]);
    name_frame(&mut profile, 0x7f00_0100, 1, &[]);

    let parse = profile.intern_stack(&[0x40_3000, 0x40_2000, 0x40_1000]);
    let render = profile.intern_stack(&[0x40_4000, 0x40_2000, 0x40_1000]);
    let native = profile.intern_stack(&[0x7f00_0100, 0x40_1000]);
    let mut labels =
        vec![profile.text_label("thread", "worker-0"), profile.number_label("tid", 4243, "")];
    labels.push(profile.number_label("bytes", 4096, "bytes"));
    for (stack, n) in [(parse, 30), (render, 50), (native, 15), (None, 5)] {
        push_sample(&mut profile, stack, &[n, n * 10_000_000]);
    }
    profile.samples[0].labels = labels;
    profile.comments.push("engine: perf".to_owned());
    profile.losses.add("samples dropped: ring full", 12);
    profile
}

/// Builds a heap profile: `steady` has the same bytes in each, `leak` has `leaked` blocks of 1 MiB.
fn heap_profile(leaked: i64) -> Profile {
    let mut profile = Profile::new(&HEAP, SPACE_BYTES, 524_288, start_time());
    profile.default_sample_type = "inuse_space";
    profile.mappings = vec![mapping(0x40_0000, "/srv/orders", "c0ffee", true)];
    // The strings and frames of the leaking function come first in one profile and last in the
    // other.
    let mut functions = [(0x40_1000, "main"), (0x40_2000, "steady"), (0x40_3000, "leak")];
    if leaked > 1 {
        functions.reverse();
    }
    for (address, function) in functions {
        name_frame(&mut profile, address, 0, &[(function, "", 0)]);
    }
    let steady = profile.intern_stack(&[0x40_2000, 0x40_1000]);
    let leak = profile.intern_stack(&[0x40_3000, 0x40_1000]);
    push_sample(&mut profile, steady, &[100, 100 << 10, 10, 10 << 10]);
    push_sample(&mut profile, leak, &[leaked, leaked << 20, leaked, leaked << 20]);
    profile
}

fn encode(profile: &Profile) -> Vec<u8> {
    let mut bytes = Vec::new();
    pprof::write(profile, &mut bytes).unwrap();
    bytes
}

fn write_file(dir: &tempfile::TempDir, name: &str, profile: &Profile) -> PathBuf {
    let path = dir.path().join(name);
    pprof::write(profile, File::create(&path).unwrap()).unwrap();
    path
}

fn go_pprof(options: &[&str], files: &[&Path]) -> String {
    let files = files.iter().map(|file| file.to_str().unwrap());
    peers::go_pprof(&options.iter().copied().chain(files).collect::<Vec<_>>())
}

/// Parses the rows of a table: flat value, cumulative value and function of each, as printed.
fn top_rows(output: &str) -> Vec<(String, String, String)> {
    let rows = output.lines().skip_while(|line| !line.contains("flat%")).skip(1);
    rows.map(|row| {
        let cells: Vec<&str> = row.split_whitespace().collect();
        (cells[0].to_owned(), cells[3].to_owned(), cells[5..].join(" "))
    })
    .collect()
}

fn expected_rows(expected: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    let owned = |&(a, b, c): &(&str, &str, &str)| (a.to_owned(), b.to_owned(), c.to_owned());
    expected.iter().map(owned).collect()
}

#[test]
fn go_top_shows_functions_and_their_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_file(&dir, "a.cpu.pprof", &cpu_profile());
    let output = go_pprof(&["-top", "-nodecount=50", "-nodefraction=0"], &[&path]);
    assert!(output.contains("File: orders") && output.contains("Build ID: c0ffee"), "{output}");
    assert!(output.contains("Type: cpu"), "{output}");
    assert!(output.contains("\nlost: 12 samples dropped: ring full\n"), "{output}");
    assert!(output.contains("Duration: 10s, Total samples = 1000ms (10.00%)"), "{output}");
    assert_eq!(
        top_rows(&output),
        expected_rows(&[
            ("500ms", "500ms", "render"),
            ("300ms", "300ms", "validate (inline)"),
            ("150ms", "150ms", "[libz.so]"),
            ("50ms", "50ms", "[stack unknown]"),
            ("0", "950ms", "main"),
            ("0", "300ms", "parse"),
            ("0", "800ms", "serve"),
        ]),
        "{output}"
    );
}

#[test]
fn go_reads_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_file(&dir, "a.cpu.pprof", &cpu_profile());
    let output = go_pprof(&["-raw"], &[&path]);
    for line in [
        "Comment: engine: perf",
        "Comment: lost: 12 samples dropped: ring full",
        "PeriodType: cpu nanoseconds",
        "Period: 10101010",
        "Time: 2026-11-23 02:57:33.5 +0000 UTC",
        "Duration: 10s",
        "samples/count cpu/nanoseconds[dflt]",
        "30  300000000: 3 2 1",
        "bytes:[4096 bytes] tid:[4243]",
        "thread:[worker-0]",
        "50  500000000: 4 2 1",
        "15  150000000: 5 1",
        "5   50000000: 6",
        "1: 0x401000 M=1 main main.rs:3:0 s=0(_Rmain)",
        "3: 0x403000 M=1 validate check.rs:15:0 s=0(_Rvalidate)",
        "parse parse.rs:92:0 s=0(_Rparse)",
        "5: 0x7f000100 M=2",
        "6: 0x0 [stack unknown] :0:0 s=0",
        "1: 0x400000/0x500000/0x1000 /srv/orders c0ffee [FN][FL][LN][IN]",
        "2: 0x7f000000/0x7f100000/0x1000 /lib/libz.so",
    ] {
        let found = output.lines().any(|found| {
            let words: Vec<&str> = found.split_whitespace().collect();
            words.join(" ") == line.split_whitespace().collect::<Vec<_>>().join(" ")
        });
        assert!(found, "no line `{line}` in\n{output}");
    }
}

#[test]
fn go_diffs_two_heap_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (
        write_file(&dir, "1.pprof", &heap_profile(1)),
        write_file(&dir, "2.pprof", &heap_profile(33)),
    );
    let base = format!("-base={}", before.display());
    let all = ["-top", "-nodefraction=0", &base];
    let in_use = go_pprof(&all, &[&after]);
    assert!(in_use.contains("Type: inuse_space"), "{in_use}");
    assert_eq!(
        top_rows(&in_use),
        expected_rows(&[("32MB", "32MB", "leak"), ("0", "32MB", "main")]),
        "{in_use}"
    );
    for (index, leaked) in
        [("alloc_objects", "32"), ("alloc_space", "32MB"), ("inuse_objects", "32")]
    {
        let index = format!("-sample_index={index}");
        let output = go_pprof(&["-top", "-nodefraction=0", &base, &index], &[&after]);
        let expected = expected_rows(&[(leaked, leaked, "leak"), ("0", leaked, "main")]);
        assert_eq!(top_rows(&output), expected, "{output}");
    }
    let after_only = go_pprof(&["-top", "-nodefraction=0"], &[&after]);
    assert_eq!(
        top_rows(&after_only),
        expected_rows(&[
            ("33792kB", "33792kB", "leak"),
            ("10kB", "10kB", "steady"),
            ("0", "33802kB", "main")
        ]),
        "{after_only}"
    );
}

#[test]
fn empty_profile_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let empty = Profile::new(&[SAMPLES, CPU], CPU, 1, start_time());
    let output = go_pprof(&["-raw"], &[&write_file(&dir, "a.cpu.pprof", &empty)]);
    assert!(output.contains("samples/count[dflt] cpu/nanoseconds"), "{output}");
}

#[test]
fn invalid_handles_and_value_counts_drop_only_their_samples() {
    let dir = tempfile::tempdir().unwrap();
    let mut profile = cpu_profile();
    push_sample(&mut profile, None, &[1]);
    for frame in profile.frames.iter_mut() {
        frame.lines.push(Line { function: FunctionHandle(999), line: 1 });
    }
    if let Some(frame) = profile.frames.iter_mut().last() {
        frame.mapping = Some(MappingHandle(999));
    }
    let output = go_pprof(&["-raw"], &[&write_file(&dir, "a.cpu.pprof", &profile)]);
    assert!(
        output.contains(
            "Comment: lost: 1 samples omitted: number of values differs from number of types"
        ),
        "{output}"
    );
    assert!(output.contains("30  300000000: 3 2 1"), "{output}");
}

#[test]
fn mapping_flags_are_set_only_for_symbolized_mappings() {
    let promises = |change: fn(&mut Profile)| {
        let mut profile = cpu_profile();
        change(&mut profile);
        let read = pprof::read(&encode(&profile)).unwrap();
        let of = |mapping: &pprof::proto::Mapping| {
            [
                mapping.has_functions,
                mapping.has_filenames,
                mapping.has_line_numbers,
                mapping.has_inline_frames,
            ]
        };
        read.mapping.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(promises(|_| ()), [[true; 4], [false; 4]]);
    let unknown = promises(|profile| profile.mappings[0].has_functions = false);
    assert_eq!(unknown, [[false; 4], [false; 4]]);
    let names_only = promises(|profile| {
        for function in &mut profile.functions {
            function.file = marple::internals::model::StringHandle::EMPTY;
        }
        for frame in profile.frames.iter_mut() {
            frame.lines.iter_mut().for_each(|line| line.line = 0);
            frame.lines.truncate(1);
        }
    });
    assert_eq!(names_only, [[true, false, false, false], [false; 4]]);
}

#[test]
fn written_profile_reads_back_equal() {
    let profile = cpu_profile();
    let read = pprof::read(&encode(&profile)).unwrap();
    assert_eq!(read.string_table[0], "");
    assert_eq!(read.text(read.default_sample_type), "cpu");
    assert_eq!(read.sample.len(), 4);
    assert_eq!(read.sample[0].location_id, [3, 2, 1]);
    assert_eq!(read.sample[1].value, [50, 500_000_000]);
    let label = read.sample[0].label[2];
    assert_eq!(
        (read.text(label.key), label.num, read.text(label.num_unit)),
        ("bytes", 4096, "bytes")
    );
    assert_eq!(read.location[2].line.len(), 2);
    assert_eq!(read.text(read.function[0].name), "main");

    let plain = read.encode_to_vec();
    assert_eq!(pprof::read(&plain).unwrap(), read);
}

#[test]
fn gzip_bomb_is_rejected() {
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..65 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let error = pprof::read(&bomb.finish().unwrap()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }) && error.to_string().contains("64.0 MiB"));
}

/// Returns `first`, followed by `unit` as often as it fits into the 64 MiB that are read.
fn fill_with_repeats(first: &[u8], unit: &[u8]) -> Vec<u8> {
    // Not compressed: compression takes half a minute for each in an unoptimized build.
    let times = ((64 << 20) - first.len()) / unit.len();
    [first, &unit.repeat(times)].concat()
}

#[test]
fn reader_memory_is_bounded_for_any_profile() {
    // The tests of `codec::pprof::size` cover all kinds of messages on a smaller scale.
    let long_list = |field: u8| {
        let length = prost::length_delimiter_len(60 << 20);
        let mut bytes = vec![0x12];
        prost::encode_length_delimiter((60 << 20) + 1 + length, &mut bytes).unwrap();
        bytes.push(field);
        prost::encode_length_delimiter(60 << 20, &mut bytes).unwrap();
        bytes.resize(bytes.len() + (60 << 20), 1);
        bytes
    };
    let (mut refused, mut read) = (0, 0);
    for (what, bytes) in [
        ("samples with a label", fill_with_repeats(b"", b"\x12\x02\x1a\0")),
        ("a sample with many values", fill_with_repeats(&long_list(0x12), b"\x68\0")),
    ] {
        let mut outcome = None;
        let peak_bytes = counting::peak_bytes(|| outcome = Some(pprof::read(&bytes)));
        match outcome.unwrap() {
            Ok(_) => read += 1,
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty(), "{error}");
            }
        }
        println!("{what}: {} MiB from {} KiB", peak_bytes >> 20, bytes.len() >> 10);
        assert!(peak_bytes < 420 << 20, "{what}: {} MiB", peak_bytes >> 20);
    }
    assert_eq!((refused, read), (2, 0));
}

#[test]
fn largest_own_profile_is_readable() {
    use pprof::proto::{Location, Profile, ValueType};

    let sample = |stack: u64| pprof::proto::Sample {
        location_id: (0..40).map(|frame| 1 + (stack + frame) % 50_000).collect(),
        value: vec![1 << 30; 4],
        label: vec![Default::default(); 2],
    };
    let location = |id| Location { id, address: id << 40, ..Location::default() };
    let written = Profile {
        sample_type: vec![ValueType::default(); 4],
        sample: (0..100_000).map(sample).collect(),
        location: (1..=50_000).map(location).collect(),
        string_table: vec![String::new()],
        ..Profile::default()
    };
    assert_eq!(pprof::read(&written.encode_to_vec()).unwrap().sample.len(), 100_000);
}

#[test]
fn inconsistent_profile_error_names_inconsistency() {
    let sound = pprof::read(&encode(&cpu_profile())).unwrap();
    type Corrupt = fn(&mut pprof::proto::Profile);
    let cases: [(&str, Corrupt); 8] = [
        ("location 99", |profile| profile.sample[0].location_id[0] = 99),
        ("function 99", |profile| profile.location[0].line[0].function_id = 99),
        ("mapping 99", |profile| profile.location[0].mapping_id = 99),
        ("string -1", |profile| profile.comment[0] = -1),
        ("string 999", |profile| profile.sample[0].label[0].key = 999),
        ("3 values for 2 types", |profile| profile.sample[0].value.push(1)),
        ("function id 1 ", |profile| profile.function[1].id = 1),
        ("first string", |profile| profile.string_table[0].push('x')),
    ];
    for (named, change) in cases {
        let mut profile = sound.clone();
        change(&mut profile);
        let error = pprof::read(&profile.encode_to_vec()).unwrap_err();
        assert!(matches!(error, Error::Inconsistent(_)), "{error}");
        assert!(error.to_string().contains(named), "`{error}` does not name {named}");
    }
}

/// Checks that the IDs and indices of a parsed profile refer to existing items.
fn check_references(profile: &pprof::proto::Profile) {
    for sample in &profile.sample {
        assert_eq!(sample.value.len(), profile.sample_type.len());
        for id in &sample.location_id {
            assert!(profile.location.iter().any(|location| location.id == *id));
        }
    }
    for function in &profile.function {
        assert!(usize::try_from(function.name).unwrap() < profile.string_table.len().max(1));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        if let Ok(profile) = pprof::read(&bytes) {
            check_references(&profile);
        }
    }

    #[test]
    fn damaged_profiles_are_read_or_rejected(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
        gzip in any::<bool>(),
    ) {
        let mut damaged = encode(&cpu_profile());
        if !gzip {
            damaged = pprof::read(&damaged).unwrap().encode_to_vec();
        }
        for (at, byte) in damage {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        if cut {
            damaged.truncate(length.index(damaged.len()));
        }
        if let Ok(profile) = pprof::read(&damaged) {
            check_references(&profile);
        }
    }
}
