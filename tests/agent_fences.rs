//! Host code that blocks or panics where marple calls it: the `tracing` subscriber, callbacks,
//! wakers. Ticks, endpoint and captures continue, and the status reports the failure. Tests that
//! set the global subscriber re-execute themselves in a separate process.

mod host;
mod store;
mod web;

use std::alloc::System;
use std::io::{PipeReader, Read, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use host::{Host, PATIENCE, settings, wait_for};
use marple::agent::{IncidentEvent, Status};
use marple::config::HttpSettings;
use marple::{Agent, AgentHandle, CaptureKind, Settings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use web::{get, serve};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const SHORT: Duration = Duration::from_millis(50);

fn alone(test: &str, body: impl FnOnce()) {
    store::again(test, &["env"], body);
}

fn status(handle: &AgentHandle) -> Box<Status> {
    handle.status().wait(PATIENCE).unwrap()
}

fn ticks_go_on(handle: &AgentHandle) {
    let before = status(handle).counters.ticks;
    wait_for("the next tick", || (status(handle).counters.ticks > before).then_some(()));
}

fn warning(handle: &AgentHandle, topic: &str) -> Option<String> {
    let warnings = status(handle).warnings;
    warnings.into_iter().find(|it| it.topic == topic).map(|it| it.text)
}

/// Captures incidents for `MARPLE_TEST_SECONDS` seconds, at least three of them. After each, checks
/// that the agent ticks and its endpoint responds.
fn works_for_long(host: &Host, url: &str) {
    let seconds = std::env::var("MARPLE_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut captures = 0;
    while captures < 3 || Instant::now() < end {
        captures += 1;
        let taken = host.handle().capture([CaptureKind::Heap], SHORT).wait(PATIENCE).unwrap();
        let manifest = wait_for("the incident to be closed", || {
            let found = host.incidents().into_iter().find(|(dir, _)| *dir == taken.dir);
            found.map(|(_, manifest)| manifest).filter(|manifest| manifest.closed.is_some())
        });
        assert_eq!(manifest.artifacts.len(), 2);
        ticks_go_on(&host.handle());
        assert_eq!(get(&format!("{url}/status")).status, 200);
    }
    println!("{captures} captures");
}

/// Returns settings whose rate limit the tests cannot reach.
fn unpaced() -> HttpSettings {
    HttpSettings { max_requests_per_second: 10_000, ..HttpSettings::default() }
}

/// Sends 100 requests over one connection; the agent logs one line for each. No request may be
/// refused: refusals are delayed and log fewer lines.
fn log_requests(url: &str) {
    let mut client = web::connect(url);
    let request = "GET /debug/pprof HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = request.replace("Host:", "Connection: close\r\nHost:");
    client.write_all((request.repeat(99) + &last).as_bytes()).unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 3").count(), 100, "{answers}");
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
fn a_log_that_nobody_reads_stops_neither_ticks_nor_endpoint_nor_captures() {
    let test = "a_log_that_nobody_reads_stops_neither_ticks_nor_endpoint_nor_captures";
    alone(test, || {
        let mut log = full_log_pipe();
        let (mut host, url) = serve(unpaced());
        let handle = host.handle();
        // The pipe takes one page and the queue 1024 events; further events are dropped.
        let lost = || status(&handle).log.dropped > 0;
        wait_for("the queue to be full", || {
            log_requests(&url);
            lost().then_some(())
        });
        ticks_go_on(&handle);
        let told = warning(&handle, "log").unwrap();
        assert!(told.contains("does not take them"), "{told}");
        works_for_long(&host, &url);
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
        host.handle().start([CaptureKind::Threads]).wait(PATIENCE).unwrap();
        host.end();
        assert_eq!(host.incidents().len(), closed + 1);
        // The line is in the pipe, but the reader may be behind.
        wait_for("the last line", || has("incident closed").then_some(()));
        drop(reading);
    });
}

#[test]
fn an_agent_ends_in_time_though_nobody_reads_its_log() {
    let test = "an_agent_ends_in_time_though_nobody_reads_its_log";
    alone(test, || {
        let _log = full_log_pipe();
        let (mut host, url) = serve(unpaced());
        wait_for("the queue to be full", || {
            log_requests(&url);
            (status(&host.handle()).log.queued > 100).then_some(())
        });
        // Blocks for ever if shutdown waits for the log.
        host.end();
    });
}

/// A layer that panics at each event of marple.
struct Panics;

impl<S: tracing::Subscriber> Layer<S> for Panics {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        assert!(!event.metadata().target().starts_with("marple"), "the layer has no disk");
    }
}

#[test]
fn a_subscriber_that_panics_costs_its_events_only() {
    let test = "a_subscriber_that_panics_costs_its_events_only";
    alone(test, || {
        tracing_subscriber::registry().with(Panics).init();
        let (host, url) = serve(HttpSettings::default());
        let handle = host.handle();
        works_for_long(&host, &url);
        let told = wait_for("a warning", || warning(&handle, "log"));
        assert!(told.contains("panicked: the layer has no disk"), "{told}");
        let log = status(&handle).log;
        assert!(log.panics >= 3 && log.delivered == 0, "{log:?}");
    });
}

#[test]
fn names_of_the_host_cannot_forge_a_line_of_the_log() {
    let test = "names_of_the_host_cannot_forge_a_line_of_the_log";
    alone(test, || {
        let mut log = full_log_pipe();
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("x\n1970-01-01T00:00:00Z ERROR forged");
        let settings = Settings { dir, ..settings() };
        let agent = Agent::from_settings(settings).start().unwrap();
        agent.handle().capture([CaptureKind::Heap], SHORT).wait(PATIENCE).unwrap();
        drop(agent);
        let mut text = vec![0; 64 << 10];
        let read = log.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        assert!(text.contains(r"x\n1970-01-01T00:00:00Z ERROR forged"), "{text}");
        assert!(text.lines().all(|line| !line.starts_with("1970")), "{text}");
    });
}

#[test]
fn a_callback_that_panics_even_when_it_is_dropped_costs_itself_only() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("a drop that panics");
        }
    }
    let _one = host::alone();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().join("captures"), ..settings() };
    let bad = PanicsWhenDropped;
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let agent = Agent::from_settings(settings)
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
        agent.handle().capture([CaptureKind::Heap], SHORT).wait(PATIENCE).unwrap();
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
fn a_waker_that_blocks_or_panics_does_not_stop_the_agent() {
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
        ticks_go_on(&handle);
        assert!(matches!(
            wait_for("the answer", || {
                let polled = pending.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                polled.is_ready().then_some(polled)
            }),
            Poll::Ready(Ok(_))
        ));
    }
}
