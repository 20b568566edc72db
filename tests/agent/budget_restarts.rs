//! A service that crashes in a loop stays inside its budgets. Its processes are real, and each is
//! killed.
//!
//! The test runs itself as the service: with `MARPLE_TEST_SERVICE` set, `service_process` raises a
//! gauge until its rule has decided, prints the decision, and waits to be killed.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;
use std::{env, thread};

use marple::config::BudgetSettings;
use marple::internals::model::{IncidentState, Rule};
use marple::{Builder, CaptureKind, Settings};

use crate::support::host::{WAIT_TIMEOUT, gauge_rule, incidents, settings, wait_for};
use crate::support::rerun::{self, test_path};

const SERVICE_ENV: &str = "MARPLE_TEST_SERVICE";
const RESTARTS: usize = 20;
const INCIDENTS_PER_DAY: usize = 3;

#[test]
fn service_process() {
    let Some(dir) = env::var_os(SERVICE_ENV) else { return };
    let budget = BudgetSettings {
        incidents_per_day: INCIDENTS_PER_DAY,
        min_between_incidents: Duration::ZERO,
        ..BudgetSettings::default()
    };
    // No cooldown, so that only the budget limits the rule.
    let rule = Rule {
        cooldown: Duration::ZERO,
        ..gauge_rule("queue", [CaptureKind::Trace], Duration::from_secs(60))
    };
    let settings = Settings { dir: dir.into(), budget, rules: vec![rule], ..settings() };
    let agent = Builder::from_settings(settings).start().unwrap();
    agent.handle().gauge("queue").unwrap().set(100.0);
    let status = || agent.handle().status().wait(WAIT_TIMEOUT).unwrap();
    let rule = wait_for("a decision", || {
        let status = status();
        let captured = status.incidents.iter().any(|incident| incident.dir.is_some());
        (captured || status.rules[0].decision == "daily_budget_spent")
            .then(|| status.rules[0].clone())
    });
    println!("SAYS {} {}", rule.decision, rule.explanation);
    thread::sleep(WAIT_TIMEOUT);
}

#[test]
fn crash_loop_stays_within_budget() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let mut output_lines = Vec::new();
    for _ in 0..RESTARTS {
        let mut child = rerun::command(test_path!(service_process))
            .env(SERVICE_ENV, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.contains("SAYS "));
        child.kill().unwrap();
        child.wait().unwrap();
        output_lines.push(line.expect("the service says what it decided"));
    }
    let found = incidents(&dir);
    assert_eq!(found.len(), INCIDENTS_PER_DAY, "{output_lines:#?}");
    let spent_count =
        output_lines.iter().filter(|line| line.contains("SAYS daily_budget_spent")).count();
    assert_eq!(spent_count, RESTARTS - INCIDENTS_PER_DAY, "{output_lines:#?}");
    assert!(
        output_lines[RESTARTS - 1].contains("incidents_per_day is used up for another"),
        "{output_lines:#?}"
    );
    // Each incident was found by the process that followed, and marked as interrupted.
    for (_, manifest) in found {
        assert_eq!(manifest.state, IncidentState::Interrupted);
    }
}
