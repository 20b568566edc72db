//! State of a run, and the commands that its steps start.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Reason for a step that did not pass.
pub(crate) enum StepError {
    /// A command failed, or the tree breaks a rule.
    Failed(String),
    /// A tool is not installed: a failure in strict runs, otherwise the step is skipped.
    Missing(String),
    /// A toolchain or a target cannot be had from rustup: the step is skipped in all runs, because
    /// a machine without that server has no other source, and the tree is not at fault.
    Unavailable(String),
}

impl StepError {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Failed(reason) | Self::Missing(reason) | Self::Unavailable(reason) => reason,
        }
    }
}

pub(crate) type StepResult<T = ()> = Result<T, StepError>;

#[derive(Clone)]
pub(crate) struct Context {
    root: PathBuf,
    target: PathBuf,
    installs: bool,
    is_strict: bool,
    skipped_parts: Vec<String>,
    /// File for the output of a step that runs beside another, or `None` for the terminal.
    log: Option<Arc<File>>,
    environment: Vec<(&'static str, OsString)>,
}

impl Context {
    pub(crate) fn new(installs: bool) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the parent of xtask");
        let target = root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
        let is_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
        let peers = env::var_os("MARPLE_PEERS").unwrap_or_else(|| "target/peers".into());
        let mut environment = vec![
            ("MARPLE_PEERS", root.join(peers).into_os_string()),
            // Go looks for neither another Go nor modules on the network.
            ("GOTOOLCHAIN", "local".into()),
            ("GOPROXY", "off".into()),
            // Nothing is installed but by `--install`.
            ("RUSTUP_AUTO_INSTALL", "0".into()),
        ];
        if is_ci {
            // Files for a second, incremental build cost time and are not used.
            environment.push(("CARGO_INCREMENTAL", "0".into()));
            environment.push(("CARGO_TERM_COLOR", "never".into()));
        }
        if !std::io::stdout().is_terminal() {
            environment.push(("CARGO_TERM_PROGRESS_WHEN", "never".into()));
        }
        Self {
            root: root.to_owned(),
            target,
            installs,
            is_strict: installs || is_ci,
            skipped_parts: Vec::new(),
            log: None,
            environment,
        }
    }

    /// Returns a context whose steps and commands write to a file.
    pub(crate) fn with_log(&self, log: File) -> Self {
        Self { log: Some(Arc::new(log)), ..self.clone() }
    }

    /// The root of the repository, which is the working directory of all commands.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The target directory of cargo's commands.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The directory of the installed readers: `$MARPLE_PEERS`, or `target/peers`.
    pub(crate) fn peers(&self) -> PathBuf {
        let peers = self.environment.iter().find(|(name, _)| *name == "MARPLE_PEERS");
        PathBuf::from(&peers.expect("set in every run").1)
    }

    pub(crate) fn installs(&self) -> bool {
        self.installs
    }

    /// Returns true if a missing tool is a failure.
    pub(crate) fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Reports a part of a step that is skipped while the rest of the step runs.
    pub(crate) fn skip_part(&mut self, part: &str, reason: &str) {
        self.print(format_args!("skipped: {part}: {reason}"));
        self.skipped_parts.push(format!("without {part}: {reason}"));
    }

    pub(crate) fn take_skipped_parts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.skipped_parts)
    }

    /// Prints a line of the output of a step.
    pub(crate) fn print(&self, line: impl Display) {
        match &self.log {
            Some(log) => writeln!(&**log, "{line}").expect("a log that can be written"),
            None => println!("{line}"),
        }
    }

    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Returns the command `cargo LINE`, where `line` is split at spaces.
    pub(crate) fn cargo(&self, line: &str) -> Command {
        self.command("cargo", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Prints the command and runs it; its output goes where that of the step goes.
    pub(crate) fn run(&self, command: &mut Command) -> StepResult {
        let line = self.line_of(command);
        self.print(format_args!("$ {line}"));
        let _ = std::io::stdout().flush();
        if let Some(log) = &self.log {
            let clone = || log.try_clone().expect("a descriptor for the log");
            command.stdout(clone()).stderr(clone());
        }
        let status = command.status().map_err(|error| cannot_run(&line, &error))?;
        if status.success() { Ok(()) } else { Err(StepError::Failed(format!("{status}: {line}"))) }
    }

    /// Runs the command and returns its standard output. On failure, prints all of its output.
    pub(crate) fn output(&self, command: &mut Command) -> StepResult<String> {
        let line = self.line_of(command);
        let output = command.output().map_err(|error| cannot_run(&line, &error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        self.print(text + &String::from_utf8_lossy(&output.stderr));
        Err(StepError::Failed(format!("{}: {line}", output.status)))
    }

    /// Returns true if the command can be run and succeeds. Its output is not shown.
    pub(crate) fn succeeds(&self, program: &str, arguments: &[&str]) -> bool {
        self.command(program, arguments).output().is_ok_and(|output| output.status.success())
    }

    /// Returns the command as a person would type it, without the variables of all commands.
    fn line_of(&self, command: &Command) -> String {
        let is_common = |name: &str| self.environment.iter().any(|(common, _)| *common == name);
        let mut words = Vec::new();
        for (name, value) in command.get_envs() {
            let name = name.to_string_lossy();
            if let Some(value) = value.filter(|_| !is_common(&name)) {
                words.push(format!("{name}={:?}", value.to_string_lossy()));
            }
        }
        words.push(command.get_program().to_string_lossy().into_owned());
        for argument in command.get_args() {
            let argument = argument.to_string_lossy();
            let needs_quotes = argument.contains([' ', '(', '$']);
            words.push(if needs_quotes { format!("'{argument}'") } else { argument.into_owned() });
        }
        words.join(" ")
    }
}

fn cannot_run(line: &str, error: &std::io::Error) -> StepError {
    StepError::Failed(format!("cannot run {line}: {error}"))
}
