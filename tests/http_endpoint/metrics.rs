//! Tests of `/metrics` with Prometheus' own tool (Debian: `prometheus`).

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use marple::config::HttpSettings;
use marple::{CaptureKind, Settings};

use crate::support::host::{gauge_rule, settings, wait_for};
use crate::support::web::{get, serve_with};

#[test]
fn promtool_accepts_metrics() {
    let rule = gauge_rule("queue", [CaptureKind::Trace], Duration::from_millis(50));
    let (host, url) =
        serve_with(HttpSettings::default(), Settings { rules: vec![rule], ..settings() });
    host.handle().gauge("queue").unwrap().set(100.0);
    host.handle().gauge("odd").unwrap().set(-1.5e-9);
    host.handle().counter("orders").unwrap().add(3);
    let wait = host.handle().histogram("wait").unwrap();
    [0.5, 0.5, 0.75, 3.0, f64::NAN].into_iter().for_each(|seconds| wait.record(seconds));
    wait_for("the incident to show", || {
        let text = get(&format!("{url}/metrics")).text();
        let has = |row| text.contains(row);
        (has("marple_incidents_total 1") && has("service_total{name=\"orders\"} 3")).then_some(())
    });
    let _ = get(&format!("{url}/nowhere"));
    let response = get(&format!("{url}/metrics"));
    assert_eq!(
        (response.status, response.header("content-type")),
        (200, Some("text/plain; version=0.0.4; charset=utf-8"))
    );
    let text = response.text();
    for row in [
        "marple_service_value{name=\"queue\"} 100\n",
        "marple_service_value{name=\"odd\"} -0.0000000015\n",
        "# TYPE marple_service_total counter\n",
        "marple_service_total{name=\"orders\"} 3\n",
        "# TYPE marple_service_distribution histogram\n",
        "marple_service_distribution_bucket{name=\"wait\",le=\"0.5\"} 2\n",
        "marple_service_distribution_bucket{name=\"wait\",le=\"1\"} 3\n",
        "marple_service_distribution_bucket{name=\"wait\",le=\"4\"} 4\n",
        "marple_service_distribution_bucket{name=\"wait\",le=\"+Inf\"} 4\n",
        "marple_service_distribution_count{name=\"wait\"} 4\n",
        "marple_rule_value{rule=\"queue\"} 100\n",
        "marple_rules_fired_total 1\n",
        "marple_http_requests_total{route=\"other\",code=\"404\"} ",
        "marple_http_requests_total{route=\"/metrics\",code=\"200\"} ",
        "marple_memory_rss_bytes ",
        "marple_store_limit_bytes ",
        "marple_store_free_bytes ",
        "marple_artifacts_removed_total ",
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
    promtool.stdin.take().unwrap().write_all(&response.body).unwrap();
    let promtool_output = promtool.wait_with_output().unwrap();
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(promtool_output.status.success(), "{}\n{text}", words(&promtool_output.stderr));
    assert_eq!(words(&promtool_output.stdout) + &words(&promtool_output.stderr), "", "{text}");
}
