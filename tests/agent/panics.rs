//! Counting and listing of a service's panics. The hook and the count are process-wide, so each
//! test needs a process of its own (nextest); the test here tolerates no other panic.

use std::panic;
use std::thread;
use std::time::Duration;

use marple::internals::model::{CaptureKind, Metric, Rule};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};

/// Line of the panic in [`panic_on`], from which all panics come.
const PANIC_LINE: u32 = line!() + 5;

/// Panics on a thread named `name`.
fn panic_on(name: &str, message: &'static str) {
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        panic!("{message}");
    });
    assert!(thread.unwrap().join().is_err());
}

fn panic_count(host: &Host) -> f64 {
    let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
    status.vitals.values.get("panics").copied().unwrap_or(-1.0)
}

#[test]
fn panics_are_counted_once_and_listed_by_location() {
    let rule = Rule {
        abs: Some(0.0),
        capture: [CaptureKind::Threads].into(),
        duration: Duration::from_millis(100),
        ..Rule::new(Metric::Panics)
    };
    let host = Host::start(marple::Settings { rules: vec![rule], ..settings() });
    wait_for("a first second", || (panic_count(&host) == 0.0).then_some(()));
    // Installs the hook again; it chains to the first one.
    marple::metrics::count_panics();
    panic_on("orders-1", "order 1 is empty");
    panic_on("orders-2", "order 2 is empty");
    panic_on("orders-3", "order 3 is empty");
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    let reason = &manifest.reasons[0].text;
    let place = format!("{}:{PANIC_LINE}", file!());
    let expected = format!(" is above abs 0; most at {place} (");
    assert!(reason.contains(&expected), "{reason}");
    assert!(reason.ends_with(" is empty"), "{reason}");
    let listed = manifest.artifacts.iter().find(|artifact| artifact.kind == CaptureKind::Panics);
    assert!(listed.is_some_and(|artifact| artifact.file.ends_with(".panics.txt")), "{manifest:?}");
    let text = capture_panics(&host, 2);
    for part in [
        "# 3 panics until ",
        &format!("\n3 panics at {place}:9\n    message: order 3 is empty\n"),
        "    first message: order 1 is empty\n",
        " on thread `orders-3`\n",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }

    // A hook that replaces this one without chaining to it ends the counting; `count_panics`
    // installs the hook only once.
    panic::set_hook(Box::new(|_| ()));
    panic_on("orders-4", "order 4 is empty");
    let text = capture_panics(&host, 3);
    assert!(text.starts_with("# 3 panics until "), "{text}");
}

/// Requests an incident, which is the `nth`, and returns its list of panics.
fn capture_panics(host: &Host, nth: usize) -> String {
    let pending_capture = host.handle().capture([CaptureKind::Panics], Duration::from_millis(50));
    let id = pending_capture.wait(WAIT_TIMEOUT).unwrap().incident;
    let incidents = host.wait_for_closed(nth);
    let (dir, manifest) = incidents.iter().find(|(_, manifest)| manifest.id == id).unwrap();
    std::fs::read_to_string(dir.join(&manifest.artifacts[0].file)).unwrap()
}
