//! Runs of steps, one at a time or in two lanes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::context::{Context, StepError};
use crate::steps::{Lane, Step};

/// A line of the final table.
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) has_failed: bool,
}

/// Runs the steps and returns their rows in the same order. Consecutive steps with a lane run in
/// two lanes, if both lanes have steps.
pub(crate) fn run(steps: &[&Step], context: &Context) -> Vec<Row> {
    let mut rows = Vec::new();
    for group in steps.chunk_by(|a, b| a.lane != Lane::Alone && b.lane != Lane::Alone) {
        if group.iter().all(|step| step.lane == group[0].lane) {
            rows.extend(group.iter().map(|step| run_step(step, &mut context.clone())));
        } else {
            rows.extend(run_in_lanes(group, context));
        }
    }
    rows
}

fn run_in_lanes(steps: &[&Step], context: &Context) -> Vec<Row> {
    let run_lane = |lane: Lane| {
        let steps = steps.iter().enumerate().filter(move |(_, step)| step.lane == lane);
        steps.map(|(at, step)| (at, run_captured(step, context))).collect::<Vec<_>>()
    };
    let mut rows = thread::scope(|scope| {
        let others = scope.spawn(|| run_lane(Lane::Other));
        let mut rows = run_lane(Lane::Debug);
        rows.extend(others.join().expect("a lane without a panic"));
        rows
    });
    rows.sort_by_key(|(at, _)| *at);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Runs a step, and prints its output when it ends, so that those of two lanes do not mix. A step
/// that hangs is found in `target/steps/STEP.log`.
fn run_captured(step: &Step, context: &Context) -> Row {
    let path = context.target().join("steps").join(format!("{}.log", step.name));
    println!("... {}: started", step.name);
    flush();
    let log = fs::create_dir_all(path.parent().expect("a directory"))
        .and_then(|()| File::create(&path))
        .unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    let row = run_step(step, &mut context.with_log(log));
    let output = fs::read(&path).unwrap_or_default();
    print!("{}", String::from_utf8_lossy(&output));
    flush();
    row
}

fn run_step(step: &Step, context: &mut Context) -> Row {
    context.print(format_args!("\n=== {}: {}", step.name, step.about));
    let started = Instant::now();
    let result = (step.run)(context);
    let mut remarks = context.take_skipped_parts();
    let (outcome, reason) = match result {
        Ok(()) => ("passed", None),
        Err(StepError::Unavailable(reason)) => ("skipped", Some(reason)),
        Err(StepError::Missing(reason)) if !context.is_strict() => ("skipped", Some(reason)),
        Err(StepError::Missing(reason) | StepError::Failed(reason)) => ("FAILED", Some(reason)),
    };
    let has_failed = outcome == "FAILED";
    if let Some(reason) = reason {
        context.print(format_args!("{}{reason}", if has_failed { "" } else { "skipped: " }));
        if !has_failed {
            remarks.push(reason);
        }
    }
    let seconds = whole_seconds(started.elapsed());
    context.print(format_args!("=== {}: {outcome}, {seconds} s", step.name));
    flush();
    let text = format!("{outcome:<8} {:<17} {seconds:>5} s  {}", step.name, remarks.join("; "));
    Row { text: text.trim_end().to_owned(), has_failed }
}

pub(crate) fn whole_seconds(time: Duration) -> u64 {
    (time + Duration::from_millis(500)).as_secs()
}

/// Writes buffered output before a child process writes to the same file.
fn flush() {
    let _ = io::stdout().flush();
}
