//! `/metrics`, judged by Prometheus' own tool (Debian: `prometheus`).

mod host;
mod web;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use host::{gauge_rule, settings, wait_for};
use marple::config::HttpSettings;
use marple::{CaptureKind, Settings};
use web::{get, serve_with};

#[test]
fn prometheus_finds_nothing_to_complain_about() {
    let rule = gauge_rule("queue", [CaptureKind::Trace], Duration::from_millis(50));
    let (host, url) =
        serve_with(HttpSettings::default(), Settings { rules: vec![rule], ..settings() });
    host.handle().gauge("queue").unwrap().set(100.0);
    host.handle().gauge("odd").unwrap().set(-1.5e-9);
    wait_for("the incident to show", || {
        let text = get(&format!("{url}/metrics")).text();
        text.contains("marple_incidents_total 1").then_some(())
    });
    let _ = get(&format!("{url}/nowhere"));
    let answer = get(&format!("{url}/metrics"));
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    let text = answer.text();
    for row in [
        "marple_service_value{name=\"queue\"} 100\n",
        "marple_service_value{name=\"odd\"} -0.0000000015\n",
        "marple_rule_value{rule=\"queue\"} 100\n",
        "marple_rules_fired_total 1\n",
        "marple_http_requests_total{route=\"other\",code=\"404\"} ",
        "marple_http_requests_total{route=\"/metrics\",code=\"200\"} ",
        "marple_memory_rss_bytes ",
    ] {
        assert!(text.contains(row), "{row} in\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: install it (Debian: apt-get install prometheus)");
    promtool.stdin.take().unwrap().write_all(&answer.body).unwrap();
    let told = promtool.wait_with_output().unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(told.status.success(), "{}\n{text}", words(&told.stderr));
    assert_eq!(words(&told.stdout) + &words(&told.stderr), "", "{text}");
}
