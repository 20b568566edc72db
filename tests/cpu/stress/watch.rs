//! The watching process: starts a stress process, reads its progress and distinguishes a crash from
//! a hang.
//!
//! The output of a stress process, each line flushed:
//!
//! ```text
//! refused WHY             the engine does not run here; nothing follows
//! at NAME=N NAME=N ...    progress of each thread, ten times a second
//! told TEXT               a remark for the reader
//! count NAME=N            a number that the test checks
//! with SECONDS NAME=N ..  CPU time of a turn with a session, and each thread's progress in it
//! without SECONDS NAME=N  the same without a session
//! done                    everything has ended well
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::workers;
use crate::support::rerun;

const ENGINE_ENV: &str = "STRESS_ENGINE";
const SECONDS_ENV: &str = "STRESS_SECONDS";

/// Longest time without output, or without progress of a thread: a thousand times what it takes.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Result of a stress process.
pub(crate) enum RunResult {
    Completed(Totals),
    /// The engine does not run here; its message.
    Refused(String),
    /// The exit status and the last output.
    Crashed(ExitStatus, String),
    /// A description of what made no progress.
    Hung(String),
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed(_) => f.write_str("ended well"),
            Self::Refused(why) => write!(f, "does not run here: {why}"),
            Self::Crashed(status, last) => write!(f, "crashed, {status}; last: {last}"),
            Self::Hung(what) => write!(f, "hung: {what}"),
        }
    }
}

/// Progress of the threads, with the CPU seconds of the process and its children.
#[derive(Debug, Default)]
pub(crate) struct PhaseProgress {
    pub(crate) cpu: f64,
    pub(crate) iterations: BTreeMap<String, u64>,
}

impl PhaseProgress {
    fn add_line(&mut self, rest: &str) {
        let (cpu, turns) = rest.split_once(' ').unwrap_or((rest, ""));
        self.cpu += cpu.parse().unwrap_or(f64::NAN);
        for (name, count) in turns.split_ascii_whitespace().filter_map(parse_count) {
            *self.iterations.entry(name).or_default() += count;
        }
    }
}

/// Everything a stress process printed.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) progress: BTreeMap<String, u64>,
    pub(crate) with_session: PhaseProgress,
    pub(crate) without_session: PhaseProgress,
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) remarks: Vec<String>,
}

impl Totals {
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or_else(|| panic!("no `{name}` in {self:?}"))
    }
}

/// Returns the engine to stress if this process is a stress process, or `None`.
pub(crate) fn requested_engine() -> Option<String> {
    std::env::var(ENGINE_ENV).ok()
}

/// Returns the length of each part in seconds.
pub(crate) fn seconds() -> u64 {
    std::env::var(SECONDS_ENV).ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Prints a line of the protocol.
pub(crate) fn print_line(line: &str) {
    // `println!` would be captured by the test harness.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Starts `test` as the stress process of `engine` and watches it.
pub(crate) fn run(test: &str, engine: &str) -> RunResult {
    let mut child = rerun::command(test)
        .env(ENGINE_ENV, engine)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        lines.map_while(Result::ok).try_for_each(|line| sender.send(line)).is_ok()
    });
    let mut output = ProcessOutput::default();
    let failure = loop {
        match receiver.recv_timeout(PROGRESS_TIMEOUT) {
            Ok(line) => {
                if let Some(name) = output.parse_line(&line) {
                    break Some(format!("`{name}` got no further in {PROGRESS_TIMEOUT:?}"));
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Some(format!(
                    "nothing was heard for {PROGRESS_TIMEOUT:?}; last: {}",
                    output.last
                ));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
        }
    };
    if let Some(what) = failure {
        let where_it_is = thread_states(child.id());
        let _ = child.kill();
        let _ = child.wait();
        return RunResult::Hung(format!("{what}\n{where_it_is}"));
    }
    let _ = reader.join();
    match child.wait().unwrap() {
        status if !status.success() => RunResult::Crashed(status, output.last),
        _ if output.refused.is_some() => RunResult::Refused(output.refused.unwrap_or_default()),
        status if !output.done => RunResult::Crashed(status, output.last),
        _ => RunResult::Completed(output.totals),
    }
}

/// Returns the kernel's state of each thread of a process that hangs.
fn thread_states(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let line = |thread: std::fs::DirEntry| {
        let (name, call) = (thread.path().join("comm"), thread.path().join("syscall"));
        format!("{}: {}", read(name).trim(), read(call).trim())
    };
    threads.map(line).collect::<Vec<_>>().join("\n")
}

#[derive(Default)]
struct ProcessOutput {
    totals: Totals,
    last_progress: BTreeMap<String, Instant>,
    refused: Option<String>,
    last: String,
    done: bool,
}

impl ProcessOutput {
    /// Takes a line in. Returns the name of a thread that makes no progress, if there is one.
    fn parse_line(&mut self, line: &str) -> Option<String> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "refused" => self.refused = Some(rest.to_owned()),
            "told" => self.totals.remarks.push(rest.to_owned()),
            "count" => self.totals.counts.extend(parse_count(rest)),
            "with" => self.totals.with_session.add_line(rest),
            "without" => self.totals.without_session.add_line(rest),
            "done" => self.done = true,
            "at" => return self.parse_progress(rest),
            // Output of the test harness.
            _ => return None,
        }
        self.last = line.to_owned();
        None
    }

    fn parse_progress(&mut self, rest: &str) -> Option<String> {
        self.last = rest.to_owned();
        let now = Instant::now();
        for (name, count) in rest.split_ascii_whitespace().filter_map(parse_count) {
            let before = self.totals.progress.insert(name.clone(), count);
            if before != Some(count) || !self.last_progress.contains_key(&name) {
                self.last_progress.insert(name, now);
            }
        }
        let has_stopped =
            |(_, moved): &(&String, &Instant)| now.duration_since(**moved) > PROGRESS_TIMEOUT;
        let mut standing = self.last_progress.iter().filter(has_stopped).map(|(name, _)| name);
        standing.find(|name| !workers::MAY_MAKE_NO_PROGRESS.contains(&name.as_str())).cloned()
    }
}

fn parse_count(text: &str) -> Option<(String, u64)> {
    let (name, count) = text.split_once('=')?;
    Some((name.to_owned(), count.parse().ok()?))
}
