use super::*;
use crate::analysis::findings::fixture::{IncidentFixture, profile_table, summaries, with_label};

const MIB: i64 = 1 << 20;

/// Value that one sample stands for at the rate of an incident.
const WEIGHT: f64 = 65_536.0;

const INSERT: &[&str] = &["malloc", "alloc::vec::push", "orders::cache::insert", "orders::main"];
const PARSE: &[&str] = &["malloc", "serde_json::parse", "orders::api::parse", "orders::main"];

/// Returns the values of `seconds` seconds that rise from `first` to `last` at a constant rate.
fn line(seconds: u32, first: f64, last: f64) -> Vec<f64> {
    let rate = (last - first) / f64::from(seconds - 1);
    (0..seconds).map(|second| (first + rate * f64::from(second)) * MIB as f64).collect()
}

/// Returns values that approach `last` in the way of a cache that fills up.
fn approach(seconds: u32, first: f64, last: f64) -> Vec<f64> {
    let part = |second: u32| 1.0 - (-5.0 * f64::from(second) / f64::from(seconds)).exp();
    (0..seconds).map(|second| (first + (last - first) * part(second)) * MIB as f64).collect()
}

fn percent_of_gib(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value / (1 << 30) as f64 * 100.0).collect()
}

/// An incident of the rule `memory` with a limit of 1 GiB. `heap` has the live heap and `process`
/// the rest of the process's memory, from a minute before the incident on.
fn memory_incident(heap: &[f64], outside: f64) -> IncidentFixture {
    let process: Vec<f64> = heap.iter().map(|heap| heap + outside * MIB as f64).collect();
    incident(heap, &process).reason("memory", 80.5, 80.0, "memory at 80.5 %, above 80 %")
}

fn incident(heap: &[f64], process: &[f64]) -> IncidentFixture {
    IncidentFixture::new()
        .memory_limit(Bytes::gib(1))
        .vitals("memory.heap", -60, heap)
        .vitals("memory.rss", -60, process)
        .vitals("memory.working_set", -60, process)
        .vitals("memory", -60, &percent_of_gib(process))
}

/// Adds a heap profile with the live heap of two functions, in MiB.
fn with_heap(incident: IncidentFixture, second: i64, insert: i64, parse: i64) -> IncidentFixture {
    let rows: [(&[&str], i64); 2] = [(INSERT, insert * MIB), (PARSE, parse * MIB)];
    incident.heap(second, profile_table(WEIGHT, &rows))
}

fn found(incident: &IncidentFixture) -> Vec<String> {
    summaries(&find(&incident.evidence()))
}

#[test]
fn constant_rise_keeps_rising_and_approach_does_not() {
    let joined = |parts: &[Vec<f64>]| parts.concat();
    for (values, expected) in [
        (line(70, 100.0, 800.0), Some(true)),
        (joined(&[line(60, 100.0, 100.0), line(10, 100.0, 300.0)]), Some(true)),
        (joined(&[line(20, 10.0, 300.0), line(100, 300.0, 400.0)]), Some(true)),
        (joined(&[line(70, 100.0, 800.0), line(60, 100.0, 110.0)]), Some(true)),
        (approach(130, 100.0, 800.0), Some(false)),
        (joined(&[line(60, 100.0, 800.0), line(60, 800.0, 800.0)]), Some(false)),
        (line(7, 100.0, 800.0), None),
        (Vec::new(), None),
    ] {
        let incident = IncidentFixture::new().vitals("memory.heap", 0, &values);
        let series = incident.evidence().series("memory.heap");
        assert_eq!(keeps_rising(&series), expected, "{values:?}");
    }
}

#[test]
fn growth_of_the_heap_has_its_function_and_error() {
    let incident = memory_incident(&line(71, 100.0, 800.0), 50.0);
    let incident = with_heap(with_heap(incident, 0, 600, 100), 10, 880, 105);
    let candidates = find(&incident.evidence());
    assert_eq!(summaries(&candidates), ["heap-growth certain orders::cache::insert"]);
    let [candidate] = candidates.as_slice() else { unreachable!() };
    assert_eq!(
        candidate.text,
        "orders::cache::insert holds 280.0 MiB more than at the start of the incident (98 % of the \
         growth), +- 9.6 MiB"
    );
    assert!(candidate.explains_reason);
    assert_eq!(candidate.numbers["bytes"], (280 * MIB) as f64);
    assert_eq!(
        candidate.evidence[0].command,
        "go tool pprof -top -sample_index=inuse_space -base orders_eu-1.001.memory.pprof \
         orders_eu-1.002.memory.pprof"
    );
}

#[test]
fn confidence_of_growth_follows_from_error_and_course() {
    let fast = line(71, 100.0, 800.0);
    let slow = line(71, 780.0, 800.0);
    for (name, heap, weight, [before, after], expected) in [
        // Standard errors of 16 and 56 MiB.
        ("likely", fast.clone(), 16.0 * WEIGHT, [100, 150], "likely"),
        ("noise", fast.clone(), 200.0 * WEIGHT, [100, 150], ""),
        ("8 MiB", slow.clone(), 0.0, [100, 108], "certain"),
        ("7 MiB", slow, 0.0, [100, 107], ""),
        ("8 % of the process's growth", fast.clone(), 0.0, [100, 108], ""),
        ("4 % of the heap", fast, 0.0, [600, 624], "possible"),
        ("cache", approach(130, 100.0, 750.0), 0.0, [400, 700], "possible"),
        ("cache near the limit", approach(130, 100.0, 950.0), 0.0, [400, 700], "certain"),
    ] {
        let table = |mib: i64| profile_table(weight, &[(INSERT, mib * MIB)]);
        let incident = memory_incident(&heap, 10.0).heap(0, table(before)).heap(10, table(after));
        let mut found = found(&incident);
        found.retain(|found| found.starts_with("heap-growth"));
        let expected = match expected {
            "" => String::new(),
            expected => format!("heap-growth {expected} orders::cache::insert"),
        };
        assert_eq!(found.join(""), expected, "{name}");
    }
}

#[test]
fn growth_without_a_memory_reason_is_possible() {
    let heap = line(71, 100.0, 400.0);
    let incident = incident(&heap, &heap).reason("cpu.demand", 95.0, 90.0, "cpu at 95 %");
    let incident = with_heap(with_heap(incident, 0, 300, 50), 10, 400, 50);
    let candidates = find(&incident.evidence());
    assert_eq!(summaries(&candidates), ["heap-growth possible orders::cache::insert"]);
    assert!(!candidates[0].explains_reason);
}

#[test]
fn memory_that_changes_its_owner_is_no_growth() {
    let incident = memory_incident(&line(71, 400.0, 400.0), 50.0);
    let incident = with_heap(with_heap(incident, 0, 100, 300), 10, 300, 110);
    assert_eq!(found(&incident), [""; 0]);
}

#[test]
fn main_holder_is_reported_if_the_growth_came_before() {
    for (name, heap, tables, expected) in [
        ("plateau", line(71, 800.0, 800.0), [700, 90], "heap-growth possible"),
        ("slow leak", line(71, 780.0, 800.0), [700, 90], "heap-growth likely"),
        ("no main holder", line(71, 800.0, 800.0), [400, 390], ""),
        ("far from the limit", line(71, 300.0, 300.0), [250, 40], ""),
    ] {
        let incident = with_heap(memory_incident(&heap, 50.0), 0, tables[0], tables[1]);
        let expected = Some(format!("{expected} orders::cache::insert"));
        let expected = expected.filter(|text| !text.starts_with(' '));
        assert_eq!(found(&incident), Vec::from_iter(expected), "{name}");
    }
    let incident = with_heap(memory_incident(&line(71, 800.0, 800.0), 50.0), 0, 700, 90);
    let text = &find(&incident.evidence())[0].text;
    assert!(text.starts_with("orders::cache::insert holds 700.0 MiB of 790.0 MiB live heap"));
}

#[test]
fn leak_needs_three_profiles_that_grow() {
    let rising = line(71, 600.0, 900.0);
    for (name, insert, expected) in [
        ("two profiles", &[600, 700][..], ""),
        ("grows", &[600, 700, 800, 900], "leak-suspect likely orders::cache::insert"),
        ("slows down", &[600, 800, 880, 920], "leak-suspect possible orders::cache::insert"),
        ("shrank once", &[600, 700, 690, 900], ""),
        ("paused once", &[600, 700, 700, 900], ""),
        ("little noise", &[600, 690, 692, 790], "leak-suspect possible orders::cache::insert"),
    ] {
        let mut incident = memory_incident(&rising, 20.0);
        for (second, &insert) in (0..).step_by(10).zip(insert) {
            incident = with_heap(incident, second, insert, 50);
        }
        let mut found = found(&incident);
        found.retain(|found| found.starts_with("leak"));
        assert_eq!(found.join(""), expected, "{name}");
    }
}

#[test]
fn profiles_in_quick_succession_count_once() {
    let incident = memory_incident(&line(71, 600.0, 800.0), 20.0);
    let incident = with_heap(with_heap(incident, 0, 600, 50), 10, 800, 50);
    let incident = with_heap(incident, 11, 801, 50);
    assert!(!found(&incident).iter().any(|found| found.starts_with("leak")));
}

#[test]
fn label_is_added_if_most_of_the_function_must_have_it() {
    for (labelled, expected) in [(650, Some("import")), (200, None)] {
        let table = |insert: i64| {
            let rows: [(&[&str], i64); 2] = [(INSERT, insert * MIB), (PARSE, 100 * MIB)];
            with_label(profile_table(0.0, &rows), "task", "import", labelled * MIB)
        };
        let incident = memory_incident(&line(71, 100.0, 800.0), 50.0);
        let candidates = find(&incident.heap(0, table(300)).heap(10, table(600)).evidence());
        let label = candidates[0].labels.get("task").map(String::as_str);
        assert_eq!(label, expected);
    }
}

/// Returns the note of a heap profile, with sizes in MiB.
fn note(in_use: u32, malloc: u32, files: u32, stacks: u32) -> String {
    let total = malloc + files + stacks;
    format!(
        "memory: the heap profile explains at most {in_use}.0 MiB of {total}.0 MiB resident \
         (9.1 %): {malloc}.0 MiB anonymous, {files}.0 MiB of files, 0 B shared; by mapping: \
         malloc's heap {malloc}.0 MiB, other anonymous mappings 0 B, stacks {stacks}.0 MiB, files \
         with their private pages {files}.0 MiB, shared memory 0 B; 1.0 GiB are outside the \
         profile: memory of C code"
    )
}

#[test]
fn growth_outside_the_heap_has_its_largest_part() {
    let heap = line(71, 100.0, 100.0);
    for (name, notes, subject) in [
        ("malloc", [note(100, 200, 9, 1), note(100, 700, 9, 1)], "malloc's free memory or C code"),
        ("stacks", [note(100, 200, 9, 1), note(100, 210, 9, 500)], "stacks"),
        ("before", [note(100, 700, 9, 1), note(100, 710, 9, 1)], "malloc's free memory or C code"),
        (
            "unreadable",
            ["memory: ?".to_owned(), note(100, 700, 9, 1)],
            "malloc's free memory or C code",
        ),
        ("no note", [String::new(), String::new()], "memory outside the heap profile"),
    ] {
        let incident = incident(&heap, &line(71, 300.0, 870.0)).reason(
            "memory",
            80.5,
            80.0,
            "memory at 80.5 %, above 80 %",
        );
        let incident = with_heap(incident, 0, 60, 40).note(&notes[0]);
        let incident = with_heap(incident, 10, 60, 40).note(&notes[1]);
        let expected = format!("memory-outside-heap certain {subject}");
        assert_eq!(found(&incident), [expected], "{name}");
    }
}

#[test]
fn memory_outside_the_heap_is_not_reported_if_the_heap_explains_it() {
    let rising = line(71, 300.0, 870.0);
    let flat = line(71, 870.0, 870.0);
    for (name, heap, process, expected) in [
        ("heap grows as well", line(71, 200.0, 700.0), rising.clone(), ""),
        ("first write of an old block", line(71, 800.0, 800.0), rising, ""),
        ("heap has more than half", line(71, 500.0, 500.0), flat.clone(), ""),
        ("level", line(71, 200.0, 200.0), flat, "possible memory outside the heap profile"),
        (
            "ended",
            line(131, 100.0, 100.0),
            approach(131, 300.0, 850.0),
            "possible memory outside the heap profile",
        ),
    ] {
        let incident = incident(&heap, &process)
            .reason("memory", 80.5, 80.0, "memory at 80.5 %, above 80 %")
            .heap(0, profile_table(0.0, &[(INSERT, 50 * MIB), (PARSE, 50 * MIB)]));
        let mut found = found(&incident);
        found.retain(|found| found.starts_with("memory-outside-heap"));
        let expected = match expected {
            "" => String::new(),
            expected => format!("memory-outside-heap {expected}"),
        };
        assert_eq!(found.join(""), expected, "{name}");
    }
}

#[test]
fn page_cache_is_no_finding() {
    // A file of 600 MiB is read by `read`, or mapped.
    let flat = line(71, 200.0, 200.0);
    let mapped = line(71, 210.0, 810.0);
    for resident in [&flat, &mapped] {
        let incident = IncidentFixture::new()
            .reason("memory.high_events", 3.0, 0.0, "memory.high exceeded")
            .vitals("memory.heap", -60, &flat)
            .vitals("memory.rss", -60, resident)
            .vitals("memory.working_set", -60, &line(71, 210.0, 212.0))
            .vitals("memory", -60, &percent_of_gib(&line(71, 210.0, 212.0)));
        let incident = with_heap(with_heap(incident, 0, 100, 90), 10, 100, 90);
        assert_eq!(found(&incident), [""; 0]);
    }
}

#[test]
fn memory_of_other_processes_is_not_attributed_to_this_one() {
    let flat = line(71, 100.0, 100.0);
    let working_set = line(71, 200.0, 870.0);
    let incident = incident(&flat, &flat)
        .reason("memory", 80.5, 80.0, "memory at 80.5 %, above 80 %")
        .vitals("memory.working_set", -60, &working_set)
        .vitals("memory", -60, &percent_of_gib(&working_set));
    assert_eq!(
        found(&incident),
        ["memory-outside-heap likely other processes, tmpfs or kernel memory"]
    );
}

#[test]
fn nothing_is_found_without_data() {
    let incident = IncidentFixture::new().reason("memory", 80.5, 80.0, "memory at 80.5 %");
    assert_eq!(found(&incident), [""; 0]);
    assert_eq!(found(&incident.heap(0, profile_table(0.0, &[]))), [""; 0]);
}
