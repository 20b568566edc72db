//! Custom collectors: complete, truncated, timed-out, failing and non-returning ones, and the files
//! they leave in incidents.

use std::fs;
use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use marple::Settings;
use marple::internals::agent::CollectorOptions;
use marple::internals::base::Bytes;
use marple::internals::model::{CaptureKind, CollectorSelection, Manifest, Outcome};
use sha2::{Digest, Sha256};

use crate::support::host::{self, Host, WAIT_TIMEOUT, gauge_rule, settings};

const SHORT: Duration = Duration::from_millis(20);

/// Returns the outcome, the error and the file content of the collector `name`.
fn collector_file(
    (dir, manifest): &(std::path::PathBuf, Manifest),
    name: &str,
) -> Option<(Outcome, Option<String>, Option<String>)> {
    let record = manifest.captures.iter().find(|capture| capture.engine == name)?;
    assert_eq!(record.kind, CaptureKind::Custom);
    let end = format!(".custom.{name}");
    let content =
        manifest.artifacts.iter().find(|recorded| recorded.file.ends_with(&end)).map(|artifact| {
            let content = fs::read(dir.join(&artifact.file)).unwrap();
            let hash: String =
                Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                (hash, content.len() as u64),
                (artifact.sha256.clone(), artifact.bytes.get())
            );
            String::from_utf8(content).unwrap()
        });
    Some((record.outcome, record.error.clone(), content))
}

#[test]
fn hanging_custom_collector_delays_no_incident() {
    let only = CollectorSelection::from_iter([
        "queries.txt".parse().unwrap(),
        "nobody.txt".parse().unwrap(),
    ]);
    let mut rule = gauge_rule("queue", [CaptureKind::Trace], SHORT);
    rule.collectors = only;
    let host = Host::start(Settings { rules: vec![rule], ..settings() });
    let handle = host.handle();
    // Printing a panic alone may take seconds.
    let default_options = CollectorOptions { timeout: WAIT_TIMEOUT, ..CollectorOptions::default() };
    let small = CollectorOptions { max_bytes: Bytes(1000), ..default_options };
    let brief = CollectorOptions { timeout: Duration::from_millis(200), ..default_options };
    let (wrote, in_time) = mpsc::channel();
    handle
        .add_collector("queries.txt", default_options, |out| Ok(writeln!(out, "select 1")?))
        .unwrap();
    handle
        .add_collector("large.txt", small, |out| {
            loop {
                out.write_all(&[b'x'; 300])?;
            }
        })
        .unwrap();
    handle
        .add_collector("panics.txt", default_options, |_| panic!("as a collector might"))
        .unwrap();
    handle.add_collector("fails.txt", default_options, |_| Err("no database".into())).unwrap();
    handle
        .add_collector("hangs.txt", brief, move |out| {
            wrote.send(out.write_all(b"half").is_ok())?;
            loop {
                thread::park();
            }
        })
        .unwrap();
    for (name, why) in [("queries.txt", "the name is in use"), ("../x", "not a valid file name")] {
        let error =
            handle.add_collector(name, default_options, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    for round in 0..2 {
        handle.capture([CaptureKind::Trace], SHORT).wait(WAIT_TIMEOUT).unwrap();
        let found = host.wait_for_closed(round + 1).remove(round);
        let (outcome, error, content) = collector_file(&found, "queries.txt").unwrap();
        assert_eq!((outcome, error, content.unwrap()), (Outcome::Done, None, "select 1\n".into()));
        let (outcome, error, content) = collector_file(&found, "large.txt").unwrap();
        assert_eq!((outcome, content.unwrap().len()), (Outcome::Cut, 1000));
        assert!(error.unwrap().contains("truncated at"));
        for (name, why) in [("panics.txt", "as a collector might"), ("fails.txt", "no database")] {
            let (outcome, error, content) = collector_file(&found, name).unwrap();
            assert_eq!((outcome, content), (Outcome::Failed, None), "{name}");
            assert!(error.unwrap().contains(why), "{name}");
        }
        let (outcome, error, content) = collector_file(&found, "hangs.txt").unwrap();
        if round == 0 {
            let error = error.unwrap();
            // On a busy machine the timeout may expire before the collector's thread starts.
            if in_time.recv_timeout(WAIT_TIMEOUT).unwrap() {
                assert_eq!((outcome, content.unwrap().as_str()), (Outcome::Cut, "half"));
                assert!(
                    error.contains("did not return within 200ms; truncated at 4 bytes"),
                    "{error}"
                );
            } else {
                assert_eq!((outcome, content), (Outcome::Failed, None));
                assert!(error.contains("did not return within 200ms"), "{error}");
            }
        } else {
            assert_eq!((outcome, content), (Outcome::Skipped, None));
            assert!(error.unwrap().contains("has not returned"));
        }
    }

    let gauge = handle.gauge("queue").unwrap();
    gauge.set(11.0);
    host::wait_for("the rule's incident", || (host.incidents().len() == 3).then_some(()));
    gauge.set(0.0);
    let found = host.wait_for_closed(3).remove(2);
    assert_eq!(collector_file(&found, "queries.txt").unwrap().0, Outcome::Done);
    let (outcome, error, _) = collector_file(&found, "nobody.txt").unwrap();
    assert_eq!(outcome, Outcome::Skipped);
    assert!(error.unwrap().contains("registered"));
    assert_eq!(collector_file(&found, "large.txt"), None, "the rule did not ask for it");
}
