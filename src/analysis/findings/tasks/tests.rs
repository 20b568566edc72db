use std::time::Duration;

use super::super::fixture::{IncidentFixture, summaries, task_table};
use super::*;

const SITE: &str = "src/hooks.rs:17";
const RECV: &[&str] = &["<tokio::sync::oneshot::Receiver<T> as F>::poll", "hooks::deliver"];
const SLEEP: &[&str] = &["tokio::time::sleep::Sleep::poll", "hooks::serve::{{closure}}"];

/// Tasks of [`SITE`] and of another site.
fn table(tasks: u64, others: u64) -> TaskTable {
    task_table(&[(SITE, tasks, RECV), ("src/main.rs:5", others, SLEEP)])
}

/// Tasks of [`SITE`] without a waker, the oldest of which was polled `idle` seconds ago.
fn without_waker(tasks: u64, idle: u64) -> TaskTable {
    let mut table = task_table(&[(SITE, tasks, &[]), ("src/main.rs:5", 100, SLEEP)]);
    table.groups[0].state = TaskState::WaitingWithoutWaker;
    table.groups[0].longest_since_poll = Some(Duration::from_secs(idle));
    table
}

fn idle(tasks: u64, idle: u64) -> TaskTable {
    let mut table = table(tasks, 100);
    table.groups[0].longest_since_poll = Some(Duration::from_secs(idle));
    table
}

fn rule(metric: &str) -> IncidentFixture {
    IncidentFixture::new().reason(metric, 1000.0, 250.0, "")
}

fn found(fixture: &IncidentFixture) -> String {
    summaries(&find(&fixture.evidence())).join(", ")
}

#[test]
fn growth_names_spawn_site_of_most_tasks() {
    let doubled = rule("memory").vitals("tasks", -3, &[100.0, 200.0, 900.0, 1100.0]);
    for (fixture, expected) in [
        (rule("tasks").tasks(0, table(9000, 500)), "task-growth certain src/hooks.rs:17"),
        (rule("tasks").tasks(0, table(520, 480)), "task-growth possible src/hooks.rs:17"),
        (
            rule("tasks.rise").vitals("tasks", 0, &[1100.0]).tasks(0, table(1000, 100)),
            "task-growth certain src/hooks.rs:17",
        ),
        // 1000 more than before, and the site may have had the 1000 that existed.
        (
            rule("tasks.rise").vitals("tasks", 0, &[2000.0]).tasks(0, table(1450, 550)),
            "task-growth possible src/hooks.rs:17",
        ),
        (
            rule("tasks.growth").tasks(0, table(20, 500)).tasks(30, table(1000, 520)),
            "task-growth certain src/hooks.rs:17",
        ),
        // Most tasks are not of `marple::task`.
        (rule("tasks").vitals("tasks", 0, &[150_000.0]).tasks(0, table(9000, 500)), ""),
        (rule("tasks").tasks(0, task_table(&[(UNKNOWN_SITE, 5000, RECV)])), ""),
        (rule("tasks").tasks(0, TaskTable::default()), ""),
        (rule("tasks"), ""),
        (doubled.tasks(0, table(1000, 100)), "task-growth possible src/hooks.rs:17"),
        (rule("memory").tasks(0, table(9000, 500)), ""),
    ] {
        assert_eq!(found(&fixture), expected);
    }
}

#[test]
fn growth_text_names_place_where_most_tasks_wait() {
    let mut named = table(9000, 500);
    named.sites[0].name = "deliver".into();
    named.groups[0].name = "deliver".into();
    let level = find(&rule("tasks").tasks(0, named).evidence()).remove(0);
    assert_eq!(
        level.text,
        "9000 of 9500 tasks (95 %) were spawned at src/hooks.rs:17; 9000 of them wait in \
         hooks::deliver"
    );
    assert!(level.explains_reason);
    assert_eq!(level.labels["name"], "deliver");
    assert_eq!(level.stack.len(), RECV.len());
    let mut last = table(9000, 500);
    last.is_sample = true;
    last.groups[0].state = TaskState::Scheduled;
    let two = rule("tasks.rise").tasks(0, table(1000, 500)).tasks(180, last);
    let growth = find(&two.evidence()).remove(0);
    assert_eq!(
        growth.text,
        "src/hooks.rs:17 has 8000 more tasks than 3 min before (100 % of the growth), 9000 of 9500 \
         in total; about 9000 of them were woken and not polled yet"
    );
    assert_eq!(growth.numbers["growth"], 8000.0);
}

#[test]
fn leak_is_likely_if_tasks_without_waker_grow_and_are_not_polled() {
    let two = |first: u64, last: u64, seconds| {
        let fixture = rule("memory").tasks(0, without_waker(first, 5));
        fixture.tasks(60, without_waker(last, seconds))
    };
    for (fixture, expected) in [
        (two(50, 200, 65), "task-leak likely src/hooks.rs:17"),
        (two(50, 200, 59), "task-leak possible src/hooks.rs:17"),
        (two(50, 60, 65), "task-leak possible src/hooks.rs:17"),
        (two(200, 50, 65), "task-leak possible src/hooks.rs:17"),
        (rule("memory").tasks(0, without_waker(200, 65)), "task-leak possible src/hooks.rs:17"),
        (rule("memory").tasks(0, without_waker(10, 65)), "task-leak possible src/hooks.rs:17"),
        (rule("memory").tasks(0, without_waker(9, 65)), ""),
        (rule("memory").tasks(0, table(200, 100)), ""),
    ] {
        assert_eq!(found(&fixture), expected);
    }
    let leak = find(&two(50, 200, 300).evidence()).remove(0);
    assert_eq!(
        leak.text,
        "200 tasks spawned at src/hooks.rs:17 wait and registered no waker when the dump polled \
         them, so no known event wakes them; 150 more than 60 s before; the longest was last \
         polled 5 min ago"
    );
    assert!(!leak.explains_reason);
    assert_eq!(leak.evidence.len(), 2);
}

#[test]
fn idle_tasks_that_grow_in_each_dump_are_a_possible_leak() {
    let fixture = |counts: &[u64], seconds| {
        let tables = counts.iter().map(|&count| idle(count, seconds));
        let dumps = (0..).step_by(20).zip(tables);
        dumps.fold(rule("memory"), |fixture, (second, table)| fixture.tasks(second, table))
    };
    for (fixture, expected) in [
        (fixture(&[50, 90, 200], 61), "task-leak possible src/hooks.rs:17"),
        (fixture(&[50, 90, 200], 59), ""),
        (fixture(&[50, 40, 200], 61), ""),
        (fixture(&[50, 55, 60], 61), ""),
        (fixture(&[200], 61), ""),
    ] {
        assert_eq!(found(&fixture), expected);
    }
}
