//! Tests of the service's incident callbacks: they are called, and a slow one does not delay the
//! agent.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use marple::internals::agent::IncidentEvent;
use marple::{Builder, CaptureKind, Settings};

use crate::support::host::{self, WAIT_TIMEOUT, incidents, settings, wait_for};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn callbacks_are_called_and_slow_one_delays_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let (sender, events) = channel();
    let settings = Settings { dir: dir.clone(), rules: Vec::new(), ..settings() };
    let agent = Builder::from_settings(settings)
        .on_event(|_| panic!("a callback that is wrong"))
        .on_event(move |event| drop(sender.send(event.clone())))
        .start()
        .unwrap();
    let handle = agent.handle();
    for round in 0..2 {
        let response = handle.capture([CaptureKind::Trace], SHORT).wait(WAIT_TIMEOUT).unwrap();
        let next = || events.recv_timeout(WAIT_TIMEOUT).expect("an event");
        let IncidentEvent::Opened { id, name, dir } = next() else { panic!("round {round}") };
        assert_eq!((id, name.as_str(), &dir), (response.incident, "call", &response.dir));
        let IncidentEvent::Written { path, artifact, .. } = next() else { panic!("round {round}") };
        assert_eq!(path.metadata().unwrap().len(), artifact.bytes.get());
        let report = |event| match event {
            IncidentEvent::Reported { id: reported, path, .. } => {
                assert_eq!((reported, path), (id, dir.join("incident.md")));
            }
            other => panic!("round {round}: {other:?}"),
        };
        report(next());
        report(next());
        assert_eq!(next(), IncidentEvent::Closed { id, dir: dir.clone() });
    }
    // The callback runs before the loop counts the end.
    let counted = wait_for("both to be counted as closed", || {
        let counted = handle.status().wait(WAIT_TIMEOUT).unwrap().counters;
        (counted.incidents_closed == 2).then_some(counted)
    });
    assert_eq!((counted.incidents, counted.artifacts), (2, 2));
    drop(agent);

    // A callback that never returns: captures continue, and the agent shuts down.
    let settings = Settings { dir: dir.clone(), rules: Vec::new(), ..host::settings() };
    let agent = Builder::from_settings(settings)
        .on_event(|_| {
            loop {
                thread::park();
            }
        })
        .start()
        .unwrap();
    let handle = agent.handle();
    // Three events each: more than the queue holds.
    for round in 0..90 {
        handle.capture([CaptureKind::Trace], Duration::from_millis(1)).wait(WAIT_TIMEOUT).unwrap();
        wait_for("it to be closed", || {
            handle.status().wait(WAIT_TIMEOUT).unwrap().incidents.is_empty().then_some(())
        });
        assert!(!incidents(&dir).is_empty(), "round {round}");
    }
    let failures = handle.status().wait(WAIT_TIMEOUT).unwrap().failures;
    assert!(failures.iter().any(|loss| loss.cause == "event not delivered"), "{failures:?}");
    drop(agent);
}
