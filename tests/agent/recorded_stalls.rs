//! A poll that does not return, from its detection to the incident. The detector's exact decisions
//! are tested without a clock, in `stalls::recorded_polls`.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use marple::config::TraceSettings;
use marple::internals::model::{CaptureKind, Manifest, Metric, Rule};
use marple::task::Trace;

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::peers;
use crate::support::rerun::{self, test_path};

const THRESHOLD: Duration = Duration::from_millis(50);

#[inline(never)]
fn block_worker(released: &Receiver<()>) {
    let _ = released.recv_timeout(WAIT_TIMEOUT);
    std::hint::black_box(());
}

/// Starts an agent and waits until it records: polls that started earlier are not recorded.
fn start_recording_host(settings: marple::Settings) -> Host {
    let host = Host::start(settings);
    wait_for("the first tick", || {
        (host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks > 0).then_some(())
    });
    host
}

fn start_host_with_stall_rule(capture: &[CaptureKind]) -> Host {
    let rule = Rule {
        abs: Some(THRESHOLD.as_secs_f64()),
        capture: capture.iter().copied().collect(),
        duration: Duration::from_millis(100),
        ..Rule::new(Metric::Stall)
    };
    let trace = TraceSettings { stall_threshold: Some(THRESHOLD), ..TraceSettings::default() };
    start_recording_host(marple::Settings { rules: vec![rule], trace, ..settings() })
}

/// Blocks a worker of a runtime with `workers` workers until the stall's stack is on disk. Returns
/// the incident and the id of the blocked thread.
fn block_until_captured(
    host: &Host,
    workers: usize,
    busy: bool,
) -> (std::path::PathBuf, Manifest, u32) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        marple::instrument_runtime(builder.worker_threads(workers)).enable_all().build().unwrap();
    // A worker reports its index when it parks.
    wait_for("every worker to have parked", || {
        let parked = |worker| runtime.metrics().worker_park_count(worker) > 0;
        (0..workers).all(parked).then_some(())
    });
    if busy {
        for _ in 0..20 {
            runtime.spawn(
                async {
                    loop {
                        tokio::task::yield_now().await;
                    }
                }
                .traced("busy"),
            );
        }
    }
    let (release, released) = channel();
    let (sender, receiver) = channel();
    let stuck = runtime.spawn(
        async move {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            block_worker(&released);
        }
        .traced("sweeper"),
    );
    let tid = receiver.recv().unwrap();
    let (dir, manifest) = wait_for("the stuck thread's stack", || {
        let (dir, manifest) = host.incidents().pop()?;
        let is_stall = |phase: &Option<String>| phase.as_deref() == Some("stall");
        let all = manifest.artifacts.iter().filter(|artifact| is_stall(&artifact.phase)).count();
        (all == 2).then_some((dir, manifest))
    });
    release.send(()).unwrap();
    runtime.block_on(stuck).unwrap();
    runtime.shutdown_background();
    (dir, manifest, tid)
}

fn assert_stall_reported(host: &Host, workers: usize, busy: bool) {
    let (dir, manifest, tid) = block_until_captured(host, workers, busy);
    let reasons: Vec<&str> = manifest.reasons.iter().map(|reason| &*reason.text).collect();
    let about = reasons.join("\n");
    assert!(about.contains(&format!("`sweeper, {}:", file!())), "{about}");
    assert!(about.contains(&format!("on thread {tid} `")), "{about}");
    assert!(about.contains(", worker ") && about.contains(" of runtime "), "{about}");
    assert!(about.contains("agent::recorded_stalls::block_worker"), "{about}");
    let first = &manifest.reasons[0];
    assert_eq!(
        (first.rule.as_deref(), &first.metric),
        (Some("runtime-stall"), &Some(Metric::Stall))
    );
    assert!(first.value.unwrap() > THRESHOLD.as_secs_f64());

    // The stall's stack precedes all other artifacts.
    assert_eq!(manifest.artifacts[0].phase.as_deref(), Some("stall"), "{:?}", manifest.artifacts);
    let text = fs::read_to_string(dir.join(&manifest.artifacts[0].file)).unwrap();
    assert!(
        text.contains("# 1 thread at") && text.contains("agent::recorded_stalls::block_worker"),
        "{text}"
    );

    let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
    let reported = status.stalls.iter().find(|stall| stall.tid == tid).expect("told in the status");
    assert!(reported.task.starts_with("sweeper, ") && reported.lasted >= THRESHOLD, "{reported:?}");
    assert!(
        reported.function.as_deref().is_some_and(|name| name.contains("block_worker")),
        "{reported:?}"
    );
    assert!(status.counters.stalls > 0);
}

#[test]
fn stall_report_has_worker_start_time_and_first_artifact() {
    for (workers, busy) in [(1, false), (2, false), (1, true), (2, true)] {
        let host = start_host_with_stall_rule(&[CaptureKind::Threads]);
        assert_stall_reported(&host, workers, busy);
        host.wait_for_closed(1);
    }
}

#[test]
fn stall_is_reported_on_loaded_machine() {
    let load = thread::available_parallelism().map_or(2, |n| n.get());
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let burning: Vec<_> = (0..load)
        .map(|_| {
            let done = done.clone();
            thread::spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let host = start_host_with_stall_rule(&[CaptureKind::Threads]);
    assert_stall_reported(&host, 2, false);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    burning.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn trace_marks_stall_on_worker_track() {
    let host = start_host_with_stall_rule(&[CaptureKind::Trace, CaptureKind::Threads]);
    let (_, _, tid) = block_until_captured(&host, 2, false);
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    let kinds: Vec<_> = manifest.captures.iter().map(|capture| capture.kind).collect();
    // The blocked thread's stack, then the evidence that vanishes first.
    assert_eq!(kinds[..3], [CaptureKind::Threads, CaptureKind::Trace, CaptureKind::Threads]);
    let trace = manifest.artifacts.iter().find(|artifact| artifact.kind == CaptureKind::Trace);
    let rows = peers::perfetto_query(
        &dir.join(&trace.expect("a trace").file),
        &[
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
            "select distinct t.tid from slice s join thread_track tt on s.track_id = tt.id join \
             thread t using (utid) where s.name = 'stall'",
            "select count(*) > 0 from slice where name = 'sweeper' and (dur < 0 or dur >= 50000000)",
        ],
    );
    assert_eq!(rows[0].concat(), Vec::<String>::new());
    assert_eq!(rows[1].concat(), [tid.to_string()]);
    assert_eq!(rows[2].concat(), ["1"]);
}

#[test]
fn no_stall_is_reported_with_detector_disabled() {
    let trace = TraceSettings { stall_threshold: None, ..TraceSettings::default() };
    let host = start_recording_host(marple::Settings { rules: Vec::new(), trace, ..settings() });
    let ticks = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (release, released) = channel();
    let stuck = runtime.spawn(async move { block_worker(&released) }.traced("sweeper"));
    let ticks_at_start = ticks();
    // The metric shows the stall even so.
    wait_for("the metric", || {
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        let stall = status.vitals.values.get("runtime.stall").copied();
        (status.counters.ticks > ticks_at_start + 10 && stall > Some(0.1)).then_some(())
    });
    assert_eq!(host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.stalls, 0);
    release.send(()).unwrap();
    runtime.block_on(stuck).unwrap();
}

/// Environment variable with the child's directory; set only for the child.
const STOPPED_PROCESS_ENV: &str = "MARPLE_TEST_STANDING_STILL";

/// The child process: polls briefly without end and writes a line about itself after each tick.
#[test]
fn stopped_process() {
    let Some(dir) = std::env::var_os(STOPPED_PROCESS_ENV).map(std::path::PathBuf::from) else {
        return;
    };
    let rule = |metric| Rule {
        abs: Some(1.0),
        capture: [CaptureKind::Threads].into(),
        ..Rule::new(metric)
    };
    let trace =
        TraceSettings { stall_threshold: Some(Duration::from_secs(1)), ..TraceSettings::default() };
    let rules = vec![rule(Metric::Stall), rule(Metric::Lag)];
    let dir_of_incidents = dir.join("captures");
    // The default interval, at which the agent's thread sleeps nearly all of the time.
    let interval = Duration::from_millis(250);
    let settings = marple::Settings { rules, trace, interval, dir: dir_of_incidents, ..settings() };
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr);
    subscriber.init();
    let agent = marple::Builder::from_settings(settings).start().unwrap();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        marple::instrument_runtime(builder.worker_threads(2)).enable_all().build().unwrap();
    agent.handle().watch_runtime(runtime.handle().clone()).unwrap();
    for _ in 0..2 {
        runtime.spawn(
            async {
                loop {
                    let end = std::time::Instant::now() + Duration::from_millis(5);
                    while std::time::Instant::now() < end {
                        std::hint::spin_loop();
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
            .traced("orders"),
        );
    }
    loop {
        let status = agent.handle().status().wait(WAIT_TIMEOUT).unwrap();
        let (ticks, stalls) = (status.counters.ticks, status.counters.stalls);
        let fired = status.counters.fired;
        fs::write(dir.join("new"), format!("{ticks} {stalls} {fired}")).unwrap();
        fs::rename(dir.join("new"), dir.join("standing")).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
}

/// A process that was stopped reports no stall and no lag, and logs the pause.
#[test]
fn stopped_process_reports_no_stall_and_no_lag() {
    use rustix::process::{Pid, Signal, kill_process};

    let dir = tempfile::tempdir().unwrap();
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut child = rerun::command(test_path!(stopped_process))
        .env(STOPPED_PROCESS_ENV, dir.path())
        .stderr(log)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let read_counts = || -> Option<Vec<u64>> {
        let text = fs::read_to_string(dir.path().join("standing")).ok()?;
        Some(text.split(' ').map(|number| number.parse().unwrap()).collect())
    };
    let after =
        |ticks: u64| wait_for("ticks", || read_counts().filter(|standing| standing[0] >= ticks));
    let mut seen = after(8);
    for _ in 0..2 {
        kill_process(pid, Signal::STOP).unwrap();
        // Three times the stall threshold of this test.
        thread::sleep(Duration::from_secs(3));
        kill_process(pid, Signal::CONT).unwrap();
        seen = after(seen[0] + 8);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(seen[1..], [0, 0], "stalls and incidents: {log}");
    assert!(log.contains("the process did not run for "), "{log}");
}

fn default_rule(metric: &Metric) -> Rule {
    marple::config::default_rules().into_iter().find(|rule| rule.metric == *metric).unwrap()
}

#[test]
fn repeatedly_blocked_workers_open_incident_naming_function() {
    let rule = Rule { duration: Duration::from_millis(300), ..default_rule(&Metric::Stalled) };
    let lag = default_rule(&Metric::Lag);
    let interval = Duration::from_millis(250);
    let host = Host::start(marple::Settings { interval, rules: vec![rule, lag], ..settings() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    host.handle().watch_runtime(runtime.handle().clone()).unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for _ in 0..2 {
        let stopped = stopped.clone();
        runtime.spawn(async move {
            while !*stopped.borrow() {
                block_briefly();
                tokio::task::yield_now().await;
            }
        });
    }
    let (dir, manifest) = wait_for("an incident", || {
        let incidents = host.incidents().into_iter();
        incidents.rev().find(|(_, manifest)| {
            let threads = |file: &&String| file.ends_with("threads.txt");
            let is_stalled =
                manifest.reasons.iter().any(|reason| reason.text.contains("runtime.stalled"));
            is_stalled && manifest.artifacts.iter().any(|artifact| threads(&&artifact.file))
        })
    });
    let dumps = manifest.artifacts.iter().filter(|artifact| artifact.file.ends_with("threads.txt"));
    let texts: String =
        dumps.map(|artifact| fs::read_to_string(dir.join(&artifact.file)).unwrap()).collect();
    assert!(texts.contains("agent::recorded_stalls::block_briefly"), "{texts}");
    stop.send(true).unwrap();
    runtime.shutdown_background();
}

/// Blocks its worker for less time than the threshold of the lag rule.
#[inline(never)]
fn block_briefly() {
    thread::sleep(Duration::from_millis(700));
    std::hint::black_box(());
}

#[test]
fn recorded_stall_on_current_thread_runtime_is_reported_once() {
    let host = start_host_with_stall_rule(&[CaptureKind::Threads]);
    let (sender, receiver) = channel();
    let (release, released) = channel();
    let (start_sender, start_receiver) = tokio::sync::oneshot::channel::<()>();
    let driver = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.handle().clone()).unwrap();
        runtime.block_on(async move {
            start_receiver.await.unwrap();
            tokio::spawn(async move { block_worker(&released) }.traced("sweeper")).await.unwrap();
        });
    });
    // Also observed: its runtime counters would otherwise make it a suspected stall.
    host.handle().watch_runtime(receiver.recv().unwrap()).unwrap();
    let ticks = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    let first = ticks();
    wait_for("the probe to run", || (ticks() > first + 5).then_some(()));
    start_sender.send(()).unwrap();
    let stalls = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().stalls;
    let stall = wait_for("the stall", || stalls().pop());
    assert!(stall.task.starts_with("sweeper") && !stall.suspected, "{stall:?}");
    assert!(
        stall.function.is_some_and(|name| name.contains("agent::recorded_stalls::block_worker"))
    );
    let last = ticks();
    wait_for("more looks", || (ticks() > last + 30).then_some(()));
    assert_eq!(stalls().len(), 1);
    release.send(()).unwrap();
    driver.join().unwrap();
}
