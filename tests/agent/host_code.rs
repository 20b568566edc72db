//! Host code that blocks or panics where marple calls it: the `tracing` subscriber, callbacks,
//! wakers. Ticks, endpoint and captures continue, and the status reports the failure. Tests that
//! set the global subscriber re-execute themselves in a separate process.

use std::io::{PipeReader, Read, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use marple::config::HttpSettings;
use marple::internals::agent::{IncidentEvent, Status};
use marple::{AgentHandle, Builder, CaptureKind, Settings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::host::{self, Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::rerun::{self, test_path};
use crate::support::web::{self, get, serve};

const SHORT: Duration = Duration::from_millis(50);

fn rerun_alone(test: &str, body: impl FnOnce()) {
    rerun::under(test, &["env"], body);
}

fn status(handle: &AgentHandle) -> Box<Status> {
    handle.status().wait(WAIT_TIMEOUT).unwrap()
}

fn wait_for_tick(handle: &AgentHandle) {
    let before = status(handle).counters.ticks;
    wait_for("the next tick", || (status(handle).counters.ticks > before).then_some(()));
}

fn warning(handle: &AgentHandle, topic: &str) -> Option<String> {
    let warnings = status(handle).warnings;
    warnings.into_iter().find(|it| it.topic == topic).map(|it| it.text)
}

/// Captures incidents for `MARPLE_TEST_SECONDS` seconds, at least three of them. After each, checks
/// that the agent ticks and its endpoint responds.
fn capture_and_check_repeatedly(host: &Host, url: &str) {
    let seconds = std::env::var("MARPLE_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut captures = 0;
    while captures < 3 || Instant::now() < end {
        captures += 1;
        let captured =
            host.handle().capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
        let manifest = wait_for("the incident to be closed", || {
            let found = host.incidents().into_iter().find(|(dir, _)| *dir == captured.dir);
            found.map(|(_, manifest)| manifest).filter(|manifest| manifest.closed.is_some())
        });
        assert_eq!(manifest.artifacts.len(), 2);
        wait_for_tick(&host.handle());
        assert_eq!(get(&format!("{url}/status")).status, 200);
    }
    println!("{captures} captures");
}

/// Returns settings whose rate limit the tests cannot reach.
fn settings_without_rate_limit() -> HttpSettings {
    HttpSettings { max_requests_per_second: 10_000, ..HttpSettings::default() }
}

/// Sends 100 requests over one connection; the agent logs one line for each. No request may be
/// refused: refusals are delayed and log fewer lines.
fn log_requests(url: &str) {
    let mut client = web::connect(url);
    let request = "GET /debug/pprof HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = request.replace("Host:", "Connection: close\r\nHost:");
    client.write_all((request.repeat(99) + &last).as_bytes()).unwrap();
    let mut response_text = String::new();
    client.read_to_string(&mut response_text).unwrap();
    assert_eq!(response_text.matches("HTTP/1.1 3").count(), 100, "{response_text}");
}

/// Redirects the log to a pipe without a reader. The requests of the tests fill it.
fn full_log_pipe() -> PipeReader {
    let (reader, writer) = std::io::pipe().unwrap();
    // One page instead of 64 KiB, so that few requests fill it.
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let fmt = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Mutex::new(writer));
    // Only marple's events: those of the HTTP client would block this test. `DEBUG`, because
    // read-only requests are not logged at `INFO`.
    let ours = Targets::new().with_target("marple", LevelFilter::DEBUG);
    tracing_subscriber::registry().with(fmt.with_filter(ours)).init();
    reader
}

#[test]
fn blocked_log_does_not_stop_ticks_endpoint_or_captures() {
    let test = test_path!(blocked_log_does_not_stop_ticks_endpoint_or_captures);
    rerun_alone(test, || {
        let mut log = full_log_pipe();
        let (mut host, url) = serve(settings_without_rate_limit());
        let handle = host.handle();
        // The pipe takes one page and the queue 1024 events; further events are dropped.
        let lost = || status(&handle).log.dropped > 0;
        wait_for("the queue to be full", || {
            log_requests(&url);
            lost().then_some(())
        });
        wait_for_tick(&handle);
        let warning_text = warning(&handle, "log").unwrap();
        assert!(warning_text.contains("does not accept them in time"), "{warning_text}");
        capture_and_check_repeatedly(&host, &url);
        assert_eq!(get(&format!("{url}/status")).json()["log"]["queued"], 1024);

        // A reader resumes: it must receive the queued events and one line that counts the dropped
        // ones.
        let text = Arc::new(Mutex::new(Vec::new()));
        let reading = thread::spawn({
            let text = Arc::clone(&text);
            move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = log.read(&mut buffer) {
                    text.lock().unwrap().extend_from_slice(&buffer[..read]);
                }
            }
        });
        let has = |part: &str| String::from_utf8_lossy(&text.lock().unwrap()).contains(part);
        wait_for("a line about losses", || has("events of marple were not logged").then_some(()));
        wait_for("the end of the warning", || warning(&handle, "log").is_none().then_some(()));
        let closed = host.incidents().len();
        text.lock().unwrap().clear();
        host.handle().start_capture([CaptureKind::Threads]).wait(WAIT_TIMEOUT).unwrap();
        host.end();
        assert_eq!(host.incidents().len(), closed + 1);
        // The line is in the pipe, but the reader may be behind.
        wait_for("the last line", || has("incident closed").then_some(()));
        drop(reading);
    });
}

#[test]
fn agent_shuts_down_in_time_with_blocked_log() {
    let test = test_path!(agent_shuts_down_in_time_with_blocked_log);
    rerun_alone(test, || {
        let _log = full_log_pipe();
        let (mut host, url) = serve(settings_without_rate_limit());
        wait_for("the queue to be full", || {
            log_requests(&url);
            (status(&host.handle()).log.queued > 100).then_some(())
        });
        // Blocks for ever if shutdown waits for the log.
        host.end();
    });
}

/// A layer that panics at each event of marple.
struct PanickingLayer;

impl<S: tracing::Subscriber> Layer<S> for PanickingLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        assert!(!event.metadata().target().starts_with("marple"), "the layer has no disk");
    }
}

#[test]
fn panicking_subscriber_loses_only_its_events() {
    let test = test_path!(panicking_subscriber_loses_only_its_events);
    rerun_alone(test, || {
        tracing_subscriber::registry().with(PanickingLayer).init();
        let (host, url) = serve(HttpSettings::default());
        let handle = host.handle();
        capture_and_check_repeatedly(&host, &url);
        let warning_text = wait_for("a warning", || warning(&handle, "log"));
        assert!(warning_text.contains("panicked: the layer has no disk"), "{warning_text}");
        let log = status(&handle).log;
        assert!(log.panics >= 3 && log.delivered == 0, "{log:?}");
    });
}

#[test]
fn host_names_cannot_forge_log_lines() {
    let test = test_path!(host_names_cannot_forge_log_lines);
    rerun_alone(test, || {
        let mut log = full_log_pipe();
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("x\n1970-01-01T00:00:00Z ERROR forged");
        let settings = Settings { dir, ..settings() };
        let agent = Builder::from_settings(settings).start().unwrap();
        agent.handle().capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
        drop(agent);
        let mut text = vec![0; 64 << 10];
        let read = log.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        assert!(text.contains(r"x\n1970-01-01T00:00:00Z ERROR forged"), "{text}");
        assert!(text.lines().all(|line| !line.starts_with("1970")), "{text}");
    });
}

#[test]
fn callback_panicking_in_drop_affects_only_itself() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("a drop that panics");
        }
    }
    let _serial = host::serial_guard();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().join("captures"), ..settings() };
    let bad = PanicsInDrop;
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let agent = Builder::from_settings(settings)
        .on_event(move |_| {
            let _held = &bad;
            panic!("a callback that panics");
        })
        .on_event(move |event| {
            if matches!(event, IncidentEvent::Closed { .. }) {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        })
        .start()
        .unwrap();
    for number in 1..=2 {
        agent.handle().capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
        wait_for("the other callback", || (closed.load(Ordering::SeqCst) == number).then_some(()));
    }
}

/// The waker of an executor that blocks for ever or panics.
struct BadWaker {
    panics: bool,
    woken: AtomicBool,
}

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        assert!(!self.panics, "a waker that panics");
        loop {
            thread::park();
        }
    }
}

#[test]
fn blocking_or_panicking_waker_does_not_stop_agent() {
    let host = Host::start(settings());
    let handle = host.handle();
    for panics in [true, false] {
        let waker = Arc::new(BadWaker { panics, woken: AtomicBool::new(false) });
        let as_waker = Waker::from(Arc::clone(&waker));
        let mut pending = pin!(handle.capture([CaptureKind::Heap], SHORT));
        let polled = pending.as_mut().poll(&mut Context::from_waker(&as_waker));
        if polled.is_pending() {
            wait_for("the waker", || waker.woken.load(Ordering::SeqCst).then_some(()));
        }
        wait_for_tick(&handle);
        assert!(matches!(
            wait_for("the answer", || {
                let polled = pending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                polled.is_ready().then_some(polled)
            }),
            Poll::Ready(Ok(_))
        ));
    }
}
