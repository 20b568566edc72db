//! Checks and tests of this repository, as named steps: `cargo xtask steps` lists them.
//!
//! A failed step does not stop the others. The last lines of a run are a table of the steps with
//! their results and seconds. The exit code is 0 if no step failed.

mod context;
mod example;
mod lanes;
mod manifest;
mod steps;
mod test_modules;
mod tools;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use context::Context;
use steps::{Level, STEPS, Step};

const USAGE: &str = "\
usage: cargo xtask COMMAND [--install]

  check           format, language, clippy, unit tests
  test            check, and all tests of a debug build
  full            all steps
  step NAME...    only these steps
  steps           the list of steps

  --install       installs missing tools: Debian packages as root, components and targets by rustup,
                  cargo-nextest and cargo-deny by cargo install. Without it, the parts that need a
                  missing tool are skipped. With it, or if CI is set, a missing tool is a failure.";

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let count = words.len();
    words.retain(|word| word != "--install");
    let install = words.len() < count;
    let Some((command, names)) = words.split_first() else {
        return usage_error("no command");
    };
    let level = match command.as_str() {
        "check" => Level::Check,
        "test" => Level::Test,
        "full" => Level::Full,
        "step" => return run_named(names, install),
        "steps" => {
            list_steps();
            return ExitCode::SUCCESS;
        }
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => return usage_error(&format!("unknown command {other}")),
    };
    if let Some(name) = names.first() {
        return usage_error(&format!("unexpected argument {name}"));
    }
    let steps: Vec<&Step> = STEPS.iter().filter(|step| step.level <= level).collect();
    run(&steps, install)
}

fn usage_error(problem: &str) -> ExitCode {
    eprintln!("{problem}\n\n{USAGE}");
    ExitCode::from(2)
}

fn list_steps() {
    for step in STEPS {
        println!("{:<17} {:<6} {}", step.name, step.level.command(), step.about);
    }
}

fn run_named(names: &[String], install: bool) -> ExitCode {
    if names.is_empty() {
        return usage_error("no step is named");
    }
    let known: BTreeSet<&str> = STEPS.iter().map(|step| step.name).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name.as_str())) {
        return usage_error(&format!("unknown step {name}: cargo xtask steps lists them"));
    }
    let steps: Vec<&Step> =
        STEPS.iter().filter(|step| names.iter().any(|name| name == step.name)).collect();
    run(&steps, install)
}

fn run(steps: &[&Step], install: bool) -> ExitCode {
    let context = Context::new(install);
    let started = Instant::now();
    let rows = lanes::run(steps, &context);
    println!();
    for row in &rows {
        println!("{}", row.text);
    }
    let seconds = lanes::whole_seconds(started.elapsed());
    println!("in all {} min {} s", seconds / 60, seconds % 60);
    let has_failed = rows.iter().any(|row| row.has_failed);
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
