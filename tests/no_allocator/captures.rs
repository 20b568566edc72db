//! The other captures work without the allocator, and what fails is reported.

use std::time::Duration;

use marple::Settings;
use marple::config::HttpSettings;
use marple::internals::model::{CaptureKind, Outcome};
use serde_json::Value;

use crate::support::host::{artifact_names, gauge_rule, settings, wait_for};
use crate::support::web::{get, send_request, serve, serve_with};

#[test]
fn status_reports_what_runs_and_what_is_disabled() {
    let rule = gauge_rule("queue", [CaptureKind::Trace], Duration::from_secs(1));
    let (host, url) =
        serve_with(HttpSettings::default(), Settings { rules: vec![rule], ..settings() });
    host.handle().gauge("queue").unwrap().set(5.0);
    let status = |what: &str, found: &dyn Fn(&Value) -> bool| {
        wait_for(what, || {
            let status = get(&format!("{url}/status")).json();
            found(&status).then_some(status)
        })
    };
    let status_value = status("the rule to have seen enough", &|status_json| {
        status_json["rules"][0]["value"] == 5.0
            && status_json["rules"][0]["decision"] != "warming_up"
    });
    let rule = &status_value["rules"][0];
    let decided = (&rule["name"], &rule["decision"]);
    assert_eq!(decided, (&"queue".into(), &"within_limits".into()), "{rule}");
    let why = rule["explanation"].as_str().unwrap();
    assert!(why.contains('5') && why.contains("10"), "{why}");
    assert_eq!(status_value["budget"]["admission"], "allowed");
    for part in ["incidents_per_day", "on_demand_captures_per_day", "incidents_in_a_day"] {
        assert!(status_value["budget"][part].is_u64(), "{part}: {status_value}");
    }
    assert!(status_value["cpu"].is_string(), "the engine and why: {status_value}");

    send_request("POST", &format!("{url}/monitor/notify?action=start"), &[], "");
    let status_value = status("the captures", &|status_json| {
        status_json["incidents"][0]["running"].as_array().is_some_and(|running| running.len() > 1)
    });
    assert!(
        status_value["toggle"]["on"] == true && status_value["toggle"]["until"].is_string(),
        "{status_value}"
    );
    let status_value = status("by what means, and the heap's failure", &|status_json| {
        status_json["engines"]["cpu"].is_string() && status_json["last_failure"].is_string()
    });
    assert!(
        status_value["failures"].to_string().contains("capture"),
        "{}",
        status_value["failures"]
    );
    drop(host);
}

#[test]
fn heap_capture_without_allocator_reports_reason_others_are_written() {
    let (host, url) = serve(HttpSettings::default());
    let notify =
        |action| send_request("POST", &format!("{url}/monitor/notify?action={action}"), &[], "");
    notify("start");
    wait_for("the captures to run", || {
        (host.incidents().pop()?.1.captures.len() == CaptureKind::ALL.len()).then_some(())
    });
    notify("stop");
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    for capture in &manifest.captures {
        let expected = match capture.kind {
            CaptureKind::Heap => Outcome::Failed,
            _ => Outcome::Done,
        };
        assert_eq!(capture.outcome, expected, "{capture:?}");
    }
    let heap = manifest.captures.iter().find(|capture| capture.kind == CaptureKind::Heap).unwrap();
    let error = heap.error.as_deref().unwrap();
    assert!(error.contains("#[global_allocator]"), "{error}");
    for kind in CaptureKind::ALL {
        let is_there = manifest.artifacts.iter().any(|artifact| artifact.kind == kind);
        assert_eq!(is_there, kind != CaptureKind::Heap, "{kind}: {:?}", artifact_names(&manifest));
    }
}
