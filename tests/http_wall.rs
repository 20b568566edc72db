//! Tests of wall-clock profiles of all threads over HTTP.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;
mod host;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;
use std::{fs, thread};

use cpu_support::StopOnDrop;
use host::settings;
use marple::Settings;
use marple::codec::pprof;
use marple::codec::pprof::proto::{Profile, Sample};
use marple::config::{HttpSettings, StacksSettings, ThreadsMode};
use web::{get, serve, serve_with};

/// Runs `body` while one thread waits and another burns CPU; their names say which.
fn beside_two_threads(body: impl FnOnce()) {
    let (over, (hold, wait)) = (AtomicBool::new(false), mpsc::channel::<()>());
    thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        named("waits").spawn_scoped(scope, move || wait.recv().is_err()).unwrap();
        let burn = || {
            while !over.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        };
        named("burns").spawn_scoped(scope, burn).unwrap();
        // Dropped even if `body` panics, so that a failure ends the test instead of hanging it.
        let _held = (StopOnDrop(&over), hold);
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
fn label<'a>(profile: &'a Profile, sample: &Sample, key: &str) -> Vec<&'a str> {
    let of_key = sample.label.iter().filter(|label| profile.text(label.key) == key);
    of_key.map(|label| profile.text(label.str)).collect()
}

#[test]
fn it_has_the_time_of_every_thread_by_name_and_state() {
    let (_host, url) = serve(HttpSettings::default());
    let mut answer = None;
    let mut most = 0;
    beside_two_threads(|| {
        let asked = Instant::now();
        answer = Some(get(&format!("{url}/debug/pprof/profile?mode=wall&seconds=1")));
        most = asked.elapsed().as_nanos() as i64;
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"profile\""));
    let profile = pprof::read(&answer.body).unwrap();
    let types = profile.sample_type.iter();
    let types: Vec<_> = types.map(|it| (profile.text(it.r#type), profile.text(it.unit))).collect();
    assert_eq!(types, [("samples", "count"), ("wall", "nanoseconds")]);
    assert_eq!(profile.text(profile.default_sample_type), "wall");
    assert!(profile.duration_nanos >= 1_000_000_000, "{}", profile.duration_nanos);

    let (mut states, mut spent) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::new());
    for sample in &profile.sample {
        let [thread, state] = ["thread", "state"].map(|key| label(&profile, sample, key));
        assert_eq!((thread.len(), state.len()), (1, 1), "{sample:?}");
        states.entry(thread[0]).or_default().insert(state[0]);
        *spent.entry(thread[0]).or_default() += sample.value[1];
    }
    for (thread, state) in [("waits", "sleeping"), ("burns", "running")] {
        assert!(states.get(thread).is_some_and(|it| it.contains(state)), "{states:?}");
        // The thread existed all the time. The last round may have exceeded the signal budget, and
        // then lacks a period.
        let whole: i64 = spent[thread];
        assert!(whole >= 500_000_000 && whole <= most, "{thread}: {whole} ns, {states:?}");
    }

    // The mode applies to its request only.
    let usual = get(&format!("{url}/debug/pprof/profile?seconds=1"));
    let profile = pprof::read(&usual.body).unwrap();
    let types: Vec<_> = profile.sample_type.iter().map(|it| profile.text(it.r#type)).collect();
    assert_eq!(types, ["samples", "cpu"]);
    let asked = get(&format!("{url}/debug/pprof/profile?mode=cpu&seconds=1"));
    let profile = pprof::read(&asked.body).unwrap();
    assert!(profile.sample_type.iter().any(|it| profile.text(it.r#type) == "cpu"));
}

#[test]
fn another_mode_is_refused_and_the_right_ones_are_named() {
    let (_host, url) = serve(HttpSettings::default());
    for mode in ["nonsense", "WALL", "wall%20", "cpu,wall"] {
        let answer = get(&format!("{url}/debug/pprof/profile?mode={mode}&seconds=1"));
        assert_eq!((answer.status, answer.header("x-go-pprof")), (400, Some("1")), "{mode}");
        let right = "invalid value for \"mode\" - must be \"cpu\" or \"wall\"";
        assert!(answer.text().contains(right), "{mode}: {}", answer.text());
    }
    assert!(get(&format!("{url}/status")).json()["streams"].as_array().unwrap().is_empty());
}

#[test]
fn where_threads_are_not_to_be_shown_it_says_so() {
    let stacks = StacksSettings { threads: ThreadsMode::Off, ..StacksSettings::default() };
    let (_host, url) = serve_with(HttpSettings::default(), Settings { stacks, ..settings() });
    let answer = get(&format!("{url}/debug/pprof/profile?mode=wall&seconds=1"));
    let text = answer.text();
    assert!(answer.status >= 400 && text.contains("stacks.threads"), "{}: {text}", answer.status);
}
