//! End-to-end tests of the agent as a service embeds it: rules and toggles start incidents, and the
//! incident directories hold the expected files.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use marple::config::{CpuSettings, DiskReserve, StoreSettings, ToggleSettings};
use marple::internals::base::{Bytes, Hertz};
use marple::internals::model::{IncidentState, Origin, Outcome};
use marple::{Builder, CaptureKind, CaptureSet, Settings};

use crate::support::host::{Host, WAIT_TIMEOUT, artifact_names, gauge_rule, settings, wait_for};

const SHORT: Duration = Duration::from_millis(100);

#[test]
fn firing_rule_writes_complete_incident() {
    let host = Host::start(Settings {
        rules: vec![gauge_rule("queue", CaptureSet::all(), SHORT)],
        // Disabled because the look-back adds an artifact if the process was busy before the
        // incident.
        cpu: CpuSettings { lookback_frequency_hz: Hertz(0), ..CpuSettings::default() },
        ..settings()
    });
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(11.0);
    wait_for("the captures to end", || {
        let (_, manifest) = host.incidents().pop()?;
        (manifest.captures.len() == 7
            && manifest.captures.iter().all(|capture| capture.outcome != Outcome::Running))
        .then_some(())
    });
    assert_eq!(host.incidents()[0].1.state, IncidentState::Open, "the rule has not cleared");
    gauge.set(9.0);
    let (dir, manifest) = host.wait_for_closed(1).remove(0);

    assert_eq!(manifest.state, IncidentState::Closed);
    assert!(dir.file_name().unwrap().to_str().unwrap().contains("-queue-"), "{dir:?}");
    assert_eq!(manifest.reasons.len(), 1);
    let reason = &manifest.reasons[0];
    assert_eq!((reason.origin, reason.rule.as_deref()), (Origin::Rule, Some("queue")));
    assert_eq!((reason.value, reason.threshold), (Some(11.0), Some(10.0)));
    assert_eq!(
        artifact_names(&manifest),
        [
            "001.threads.txt",
            "002.threads.pprof",
            "003.tasks.txt",
            "004.tasks.json",
            "005.tasks.pprof",
            "006.descriptors.txt",
            "007.panics.txt",
            "008.memory.pprof",
            "009.runtime.trace",
            "010.cpu.pprof",
            "011.memory.pprof",
        ]
    );
    for capture in &manifest.captures {
        assert_eq!((capture.outcome, &capture.error), (Outcome::Done, &None), "{capture:?}");
        assert!(capture.stopped.is_some() && !capture.engine.is_empty());
    }
    for artifact in &manifest.artifacts {
        let path = dir.join(&artifact.file);
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), artifact.bytes.get(), "{path:?}");
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{path:?}");
        let is_heap = artifact.file.ends_with("memory.pprof");
        let explains = |note: &String| note.starts_with("memory: the heap profile explains ");
        assert_eq!(artifact.note.as_ref().is_some_and(explains), is_heap, "{artifact:?}");
    }
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(manifest.limits.memory.is_some() && manifest.limits.memory_source.is_some());
    assert!(!manifest.process.build_id.is_empty() || !cfg!(target_os = "linux"));
    assert!(manifest.vitals.iter().any(|row| row.values["gauge.queue"] == 11.0));
    assert_eq!(host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.captures, 7);
}

#[test]
fn works_with_any_runtime_and_without_one() {
    let captured = |host: &Host| {
        let response =
            host.handle().capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
        assert!(response.dir.is_dir(), "the directory is there when the answer is");
        host.wait_for_closed(1);
        host.handle().status().wait(WAIT_TIMEOUT).unwrap()
    };
    let host = Host::start(settings());
    assert!(!captured(&host).vitals.values.contains_key("tasks"), "there is no runtime to watch");
    drop(host);

    for mut builder in
        [tokio::runtime::Builder::new_multi_thread(), tokio::runtime::Builder::new_current_thread()]
    {
        let runtime = builder.enable_all().build().unwrap();
        let host = runtime.block_on(async {
            let host = Host::start(settings());
            for _ in 0..50 {
                tokio::spawn(std::future::pending::<()>());
            }
            host
        });
        let status = captured(&host);
        assert_eq!(status.vitals.values["tasks"], 50.0);
    }
}

#[test]
fn several_runtimes_are_observed() {
    let host = Host::start(settings());
    let runtimes: Vec<_> =
        (0..2).map(|_| tokio::runtime::Builder::new_multi_thread().build().unwrap()).collect();
    for runtime in &runtimes {
        host.handle().watch_runtime(runtime.handle().clone()).unwrap();
        for _ in 0..10 {
            runtime.spawn(std::future::pending::<()>());
        }
    }
    wait_for("both runtimes' tasks", || {
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        (status.vitals.values.get("tasks") == Some(&20.0)).then_some(())
    });
}

#[test]
fn second_agent_is_rejected_and_first_keeps_running() {
    let mut host = Host::start(settings());
    let elsewhere = tempfile::tempdir().unwrap();
    let second = Settings { dir: elsewhere.path().join("x"), ..settings() };
    let error = Builder::from_settings(second.clone()).start().err().expect("refused").to_string();
    assert!(error.contains("an agent is already running in this process"), "{error}");
    assert!(host.handle().status().wait(WAIT_TIMEOUT).is_ok());
    let old = host.handle();
    host.end();
    let next = Builder::from_settings(second).start().expect("the first is gone");
    let error = old.toggle().wait(WAIT_TIMEOUT).unwrap_err().to_string();
    assert!(error.contains("the agent has stopped"), "{error}");
    drop(next);
}

#[test]
fn dropping_guard_closes_open_incidents() {
    let mut host = Host::start(settings());
    let on = host.handle().toggle().wait(WAIT_TIMEOUT).unwrap();
    assert!(on.on && on.running == CaptureSet::all());
    host.end();
    let (dir, manifest) = host.incidents().remove(0);
    assert_eq!(Some(manifest.id), on.incident);
    assert_eq!(manifest.state, IncidentState::Closed);
    assert!(manifest.captures.iter().all(|capture| capture.outcome != Outcome::Running));
    for artifact in &manifest.artifacts {
        assert!(dir.join(&artifact.file).is_file());
    }
}

#[test]
fn toggle_returns_resulting_state() {
    let host = Host::start(settings());
    let handle = host.handle();
    let on = handle.start_capture([CaptureKind::Trace]).wait(WAIT_TIMEOUT).unwrap();
    assert!(on.on && on.since.is_some() && on.until > on.since);
    assert_eq!(on.running, [CaptureKind::Trace].into());
    assert!(on.dir.as_deref().is_some_and(Path::is_dir));
    assert_eq!(
        handle.start_capture([CaptureKind::Cpu]).wait(WAIT_TIMEOUT).unwrap(),
        on,
        "it is on already"
    );
    let off = handle.stop_capture().wait(WAIT_TIMEOUT).unwrap();
    assert_eq!((off.on, off.running, off.incident), (false, CaptureSet::EMPTY, on.incident));
    assert_eq!(
        handle.stop_capture().wait(WAIT_TIMEOUT).unwrap().incident,
        None,
        "it is off already"
    );
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.captures.len(), 1);
}

#[test]
fn toggle_stops_after_max_duration() {
    let host = Host::start(Settings {
        toggle: ToggleSettings { max_duration: SHORT, ..settings().toggle },
        ..settings()
    });
    assert!(host.handle().toggle().wait(WAIT_TIMEOUT).unwrap().on);
    host.wait_for_closed(1);
    assert!(!host.handle().status().wait(WAIT_TIMEOUT).unwrap().toggle.on);
}

#[test]
fn thousand_concurrent_toggles_leave_consistent_state() {
    let mut host = Host::start(Settings {
        store: StoreSettings { max_incidents: 1000, ..settings().store },
        ..settings()
    });
    let handle = host.handle();
    let threads: Vec<_> = (0..50)
        .map(|_| {
            let handle = handle.clone();
            thread::spawn(move || {
                (0..20)
                    .map(|_| handle.toggle().wait(WAIT_TIMEOUT).expect("every toggle is answered"))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let responses: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(responses.iter().filter(|answer| answer.on).count(), 500, "they alternate");
    assert!(!handle.status().wait(WAIT_TIMEOUT).unwrap().toggle.on, "an even number leaves it off");
    let reported_ids: HashSet<_> = responses.iter().filter_map(|answer| answer.incident).collect();
    host.end();
    let remaining_ids: HashSet<_> =
        host.incidents().into_iter().map(|(_, manifest)| manifest.id).collect();
    assert_eq!(remaining_ids, reported_ids, "each incident that was named is there, and no other");
    assert!(host.incidents().iter().all(|(_, manifest)| manifest.state == IncidentState::Closed));
}

#[test]
fn rule_firing_during_incident_joins_incident() {
    let host = Host::start(Settings {
        rules: vec![gauge_rule("queue", [CaptureKind::Heap], SHORT)],
        ..settings()
    });
    let on = host.handle().start_capture([CaptureKind::Trace]).wait(WAIT_TIMEOUT).unwrap();
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(11.0);
    wait_for("the rule's reason in the toggle's incident", || {
        let (_, manifest) = host.incidents().pop()?;
        (manifest.reasons.len() == 2 && manifest.artifacts.len() == 2).then_some(())
    });
    gauge.set(0.0);
    host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(Some(manifest.id), on.incident);
    assert_eq!(manifest.reasons[1].rule.as_deref(), Some("queue"));
}

#[test]
fn status_reports_why_rule_does_not_fire() {
    let host = Host::start(Settings {
        rules: vec![gauge_rule("queue", [CaptureKind::Heap], SHORT)],
        ..settings()
    });
    let rule = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().rules.remove(0);
    wait_for("a decision", || (rule().decision == "no_value").then_some(()));
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(3.0);
    wait_for("a decision on the value", || (rule().value == Some(3.0)).then_some(()));
    wait_for("the ring to fill", || (rule().decision == "within_limits").then_some(()));
    gauge.set(30.0);
    wait_for("it to fire", || host.incidents().pop());
    gauge.set(3.0);
    host.wait_for_closed(1);
    gauge.set(30.0);
    wait_for("the cooldown", || (rule().decision == "cooling_down").then_some(()));
}

#[test]
fn all_invalid_settings_are_reported_together() {
    let mut rule = gauge_rule("queue", [CaptureKind::Heap], Duration::ZERO);
    rule.abs = None;
    let wrong = Settings { interval: Duration::ZERO, rules: vec![rule], ..settings() };
    let error = Builder::from_settings(wrong).start().err().expect("refused").to_string();
    for part in ["interval", "duration", "abs"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
}

#[test]
fn retention_limits_keep_first_and_latest_incidents() {
    let host = Host::start(Settings {
        store: StoreSettings {
            max_incidents: 3,
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        ..settings()
    });
    let mut ids = Vec::new();
    for _ in 0..5 {
        let captured =
            host.handle().capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
        ids.push(captured.incident);
        wait_for("it to close", || {
            host.handle().status().wait(WAIT_TIMEOUT).unwrap().incidents.is_empty().then_some(())
        });
    }
    let remaining_ids: Vec<_> =
        host.wait_for_closed(3).into_iter().map(|(_, manifest)| manifest.id).collect();
    assert_eq!(remaining_ids, [ids[0], ids[3], ids[4]], "the first and the last stay longest");
    let store = host.handle().status().wait(WAIT_TIMEOUT).unwrap().store;
    assert_eq!(store.incidents_removed, 2);
    let stored_bytes = |(dir, _): &(PathBuf, _)| -> u64 {
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    assert_eq!(store.bytes.get(), host.incidents().iter().map(stored_bytes).sum::<u64>());
    assert!(store.free.is_some_and(|free| free > Bytes(0)), "{store:?}");
}

#[test]
fn disabled_dumps_are_skipped_with_reason_in_manifest() {
    use marple::config::{StacksSettings, TasksMode, ThreadsMode};

    let stacks = StacksSettings {
        threads: ThreadsMode::ProcOnly,
        tasks: TasksMode::Off,
        ..StacksSettings::default()
    };
    let host = Host::start(Settings { stacks, ..settings() });
    let kinds = [CaptureKind::Threads, CaptureKind::Tasks];
    host.handle().capture(kinds, SHORT).wait(WAIT_TIMEOUT).unwrap();
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(artifact_names(&manifest), ["001.threads.txt", "002.threads.pprof"]);
    let [threads, tasks] = &manifest.captures[..] else { panic!("{manifest:?}") };
    assert_eq!((threads.outcome, threads.engine.as_str()), (Outcome::Done, "/proc"));
    assert_eq!(tasks.outcome, Outcome::Skipped);
    assert!(tasks.error.as_ref().is_some_and(|why| why.contains("stacks.tasks")), "{tasks:?}");
    let text = fs::read_to_string(dir.join(&manifest.artifacts[0].file)).unwrap();
    assert!(text.contains("\"marple\"") && text.contains("threads are not signalled"), "{text}");
    let counters = host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters;
    assert_eq!((counters.captures, counters.captures_failed), (1, 0));
}

#[test]
fn artifacts_contain_task_name_and_spawn_location() {
    use marple::task::{self, Trace as _};

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(async { Host::start(settings()) });
    let before = line!() + 1;
    drop(runtime.spawn(std::future::pending::<()>().traced("forever")));
    runtime.block_on(async { drop(task::spawn(tokio::time::sleep(WAIT_TIMEOUT))) });
    for _ in 0..3 {
        drop(runtime.spawn(std::future::pending::<()>()));
    }
    wait_for("a tick that counts them", || {
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        (status.vitals.values.get("tasks") == Some(&5.0)).then_some(())
    });
    host.handle().capture([CaptureKind::Tasks], SHORT).wait(WAIT_TIMEOUT).unwrap();
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(artifact_names(&manifest), ["001.tasks.txt", "002.tasks.json", "003.tasks.pprof"]);
    assert!(manifest.artifacts.iter().all(|artifact| artifact.phase.is_none()));
    let [text, json, profile] =
        [0, 1, 2].map(|at| fs::read(dir.join(&manifest.artifacts[at].file)).unwrap());
    let text = String::from_utf8(text).unwrap();
    let place = format!("{}:{before}", file!());
    assert!(
        text.contains(&format!("1 task \"forever\" spawned at {place}, waiting (no waker)")),
        "{text}"
    );
    assert!(text.contains("tokio::time::sleep::Sleep"), "{text}");
    assert!(text.contains("3 more not listed: not spawned by marple::task"), "{text}");

    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let tasks = json["tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &json["unwrapped"]), (2, &3.into()));
    let sleeper = tasks.iter().find(|task| task["name"] == "").unwrap();
    let stack = sleeper["stacks"][0].as_u64().unwrap() as usize;
    let frames = json["stacks"][stack].to_string();
    assert!(frames.contains("tokio::time::sleep::Sleep"), "{frames}");

    let profile = marple::internals::codec::pprof::read(&profile).unwrap();
    let tasks: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert_eq!(tasks, 2);
}
