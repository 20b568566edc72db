//! Tests of wall-clock profiles of all threads over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;
use std::{fs, thread};

use marple::Settings;
use marple::config::{HttpSettings, StacksSettings, ThreadsMode};
use marple::internals::codec::pprof;
use marple::internals::codec::pprof::proto::{Profile, Sample};

use crate::support::cpu_load::StopOnDrop;
use crate::support::host::{self, settings};
use crate::support::web::{get, serve, serve_with};

/// Runs `body` while one thread waits and another burns CPU; their names say which.
fn with_two_threads(body: impl FnOnce()) {
    let (stop, (hold, wait)) = (AtomicBool::new(false), mpsc::channel::<()>());
    thread::scope(|scope| {
        let named_thread = |name: &str| thread::Builder::new().name(name.to_owned());
        named_thread("waits").spawn_scoped(scope, move || wait.recv().is_err()).unwrap();
        let burn = || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        };
        named_thread("burns").spawn_scoped(scope, burn).unwrap();
        // Dropped even if `body` panics, so that a failure ends the test instead of hanging it.
        let _held = (StopOnDrop(&stop), hold);
        // A thread sets its name itself, after its start.
        for (name, state) in [("waits", ") S "), ("burns", ") R ")] {
            host::wait_for("a thread of this name in this state", || {
                fs::read_dir("/proc/self/task").unwrap().flatten().find_map(|task| {
                    let stat = fs::read_to_string(task.path().join("stat")).ok()?;
                    (stat.contains(&format!("({name}{state}"))).then_some(())
                })
            });
        }
        body();
    });
}

/// The values of the label `key` of a sample.
fn label_values<'a>(profile: &'a Profile, sample: &Sample, key: &str) -> Vec<&'a str> {
    let of_key = sample.label.iter().filter(|label| profile.text(label.key) == key);
    of_key.map(|label| profile.text(label.str)).collect()
}

#[test]
fn wall_profile_has_time_of_every_thread_by_name_and_state() {
    let (_host, url) = serve(HttpSettings::default());
    let mut response = None;
    let mut max_gap = 0;
    with_two_threads(|| {
        let requested_at = Instant::now();
        response = Some(get(&format!("{url}/debug/pprof/profile?mode=wall&seconds=1")));
        max_gap = requested_at.elapsed().as_nanos() as i64;
    });
    let response = response.unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-disposition"), Some("attachment; filename=\"profile\""));
    let profile = pprof::read(&response.body).unwrap();
    let types = profile.sample_type.iter();
    let types: Vec<_> = types
        .map(|value_type| (profile.text(value_type.r#type), profile.text(value_type.unit)))
        .collect();
    assert_eq!(types, [("samples", "count"), ("wall", "nanoseconds")]);
    assert_eq!(profile.text(profile.default_sample_type), "wall");
    assert!(profile.duration_nanos >= 1_000_000_000, "{}", profile.duration_nanos);

    let (mut states, mut spent) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::new());
    for sample in &profile.sample {
        let [thread, state] = ["thread", "state"].map(|key| label_values(&profile, sample, key));
        assert_eq!((thread.len(), state.len()), (1, 1), "{sample:?}");
        states.entry(thread[0]).or_default().insert(state[0]);
        *spent.entry(thread[0]).or_default() += sample.value[1];
    }
    for (thread, state) in [("waits", "sleeping"), ("burns", "running")] {
        assert!(
            states.get(thread).is_some_and(|thread_states| thread_states.contains(state)),
            "{states:?}"
        );
        // The thread existed all the time. The last round may have exceeded the signal budget, and
        // then lacks a period.
        let total_time: i64 = spent[thread];
        assert!(
            total_time >= 500_000_000 && total_time <= max_gap,
            "{thread}: {total_time} ns, {states:?}"
        );
    }

    // The mode applies to its request only.
    let cpu_profile = get(&format!("{url}/debug/pprof/profile?seconds=1"));
    let profile = pprof::read(&cpu_profile.body).unwrap();
    let types: Vec<_> =
        profile.sample_type.iter().map(|value_type| profile.text(value_type.r#type)).collect();
    assert_eq!(types, ["samples", "cpu"]);
    let cpu_response = get(&format!("{url}/debug/pprof/profile?mode=cpu&seconds=1"));
    let profile = pprof::read(&cpu_response.body).unwrap();
    assert!(profile.sample_type.iter().any(|value_type| profile.text(value_type.r#type) == "cpu"));
}

#[test]
fn unknown_mode_is_rejected_with_valid_modes() {
    let (_host, url) = serve(HttpSettings::default());
    for mode in ["nonsense", "WALL", "wall%20", "cpu,wall"] {
        let response = get(&format!("{url}/debug/pprof/profile?mode={mode}&seconds=1"));
        assert_eq!((response.status, response.header("x-go-pprof")), (400, Some("1")), "{mode}");
        let right = "invalid value for \"mode\" - must be \"cpu\" or \"wall\"";
        assert!(response.text().contains(right), "{mode}: {}", response.text());
    }
    assert!(
        get(&format!("{url}/status")).json()["on_demand_captures"].as_array().unwrap().is_empty()
    );
}

#[test]
fn wall_profile_reports_disabled_thread_dumps() {
    let stacks = StacksSettings { threads: ThreadsMode::Off, ..StacksSettings::default() };
    let (_host, url) = serve_with(HttpSettings::default(), Settings { stacks, ..settings() });
    let response = get(&format!("{url}/debug/pprof/profile?mode=wall&seconds=1"));
    let text = response.text();
    assert!(
        response.status >= 400 && text.contains("stacks.threads"),
        "{}: {text}",
        response.status
    );
}
