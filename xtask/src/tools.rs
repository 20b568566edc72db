//! Tools that steps need, and their installation.

use std::sync::{Mutex, PoisonError};

use crate::context::{Context, StepError, StepResult};

/// A program or library that a step needs.
pub(crate) struct Tool {
    name: &'static str,
    /// A command that succeeds if the tool is installed.
    probe: &'static [&'static str],
    source: Source,
}

enum Source {
    DebianPackage(&'static str),
    RustupComponent(&'static str),
    /// A program that `cargo install` builds.
    Crate(&'static str),
}

const fn debian(name: &'static str, package: &'static str, probe: &'static [&'static str]) -> Tool {
    Tool { name, probe, source: Source::DebianPackage(package) }
}

pub(crate) const PYTHON: Tool = debian("python3", "python3", &["python3", "--version"]);
pub(crate) const PIP: Tool = debian("pip", "python3-pip", &["python3", "-m", "pip", "--version"]);
pub(crate) const NODE: Tool = debian("node", "nodejs", &["node", "--version"]);
pub(crate) const PROMTOOL: Tool = debian("promtool", "prometheus", &["promtool", "--version"]);
pub(crate) const C_COMPILER: Tool = debian("cc", "gcc", &["cc", "--version"]);
/// A unit test loads it beside another allocator.
pub(crate) const LIBJEMALLOC: Tool = debian(
    "libjemalloc.so.2",
    "libjemalloc2",
    &["sh", "-c", "PATH=$PATH:/sbin:/usr/sbin; ldconfig -p | grep -q libjemalloc.so.2"],
);
pub(crate) const RUSTFMT: Tool = Tool {
    name: "rustfmt",
    probe: &["rustfmt", "--version"],
    source: Source::RustupComponent("rustfmt"),
};
pub(crate) const CLIPPY: Tool = Tool {
    name: "clippy",
    probe: &["cargo", "clippy", "--version"],
    source: Source::RustupComponent("clippy"),
};
/// Runs each test in a process of its own, which the tests rely on, and ends one that hangs.
pub(crate) const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    probe: &["cargo", "nextest", "--version"],
    source: Source::Crate("cargo-nextest"),
};
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    probe: &["cargo", "deny", "--version"],
    source: Source::Crate("cargo-deny"),
};

impl Tool {
    /// Returns the command that installs the tool.
    fn install_line(&self) -> String {
        match self.source {
            Source::DebianPackage(package) => {
                format!("apt-get install -y --no-install-recommends {package}")
            }
            Source::RustupComponent(component) => format!("rustup component add {component}"),
            Source::Crate(name) => format!("cargo install {name} --locked"),
        }
    }

    /// Returns the sentence that names the missing tool and the command that installs it.
    fn missing(&self) -> String {
        let line = self.install_line();
        match self.source {
            Source::DebianPackage(_) => format!("{} is missing (Debian: {line})", self.name),
            _ => format!("{} is missing ({line})", self.name),
        }
    }
}

/// Held during an installation: of two apt-get at once, one fails.
static INSTALLATION: Mutex<()> = Mutex::new(());

/// Returns `Ok` if the tool is installed, or could be installed in a run with `--install`.
pub(crate) fn need(context: &Context, tool: &Tool) -> StepResult {
    if has(context, tool) {
        return Ok(());
    }
    if context.installs() {
        let _guard = INSTALLATION.lock().unwrap_or_else(PoisonError::into_inner);
        if !has(context, tool) {
            install(context, tool);
        }
        if has(context, tool) {
            return Ok(());
        }
    }
    Err(StepError::Missing(tool.missing()))
}

pub(crate) fn has(context: &Context, tool: &Tool) -> bool {
    let (program, arguments) = tool.probe.split_first().expect("a program");
    context.succeeds(program, arguments)
}

fn install(context: &Context, tool: &Tool) {
    let line = tool.install_line();
    context.print(format_args!("$ {line}"));
    let words: Vec<&str> = line.split(' ').collect();
    let (program, arguments) = words.split_first().expect("a program");
    let install = || {
        let mut command = context.command(program, arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        context.output(&mut command)
    };
    // The list of packages of a fresh image is empty or old.
    let is_debian = matches!(tool.source, Source::DebianPackage(_));
    let result = match install() {
        Err(_) if is_debian && context.succeeds("apt-get", &["update"]) => install(),
        result => result,
    };
    if let Err(error) = result {
        context.print(error.reason());
    }
}

/// Returns `Ok` if the nightly toolchain is installed.
pub(crate) fn need_nightly(context: &Context) -> StepResult {
    let is_installed = || context.succeeds("cargo", &["+nightly", "--version"]);
    need_from_rustup(context, is_installed, "toolchain install nightly --profile minimal")
}

/// Returns `Ok` if the nightly toolchain has Miri and the source of the standard library.
pub(crate) fn need_miri(context: &Context) -> StepResult {
    need_nightly(context)?;
    let is_installed = || {
        let mut list = context.command("rustup", &["+nightly", "component", "list", "--installed"]);
        context
            .output(&mut list)
            .is_ok_and(|list| ["miri", "rust-src"].iter().all(|name| list.contains(name)))
    };
    need_from_rustup(context, is_installed, "+nightly component add miri rust-src")
}

/// Returns `Ok` if the standard library for another target is installed.
pub(crate) fn need_target(context: &Context, target: &str) -> StepResult {
    let is_installed = || {
        let mut list = context.command("rustup", &["target", "list", "--installed"]);
        context.output(&mut list).is_ok_and(|list| list.lines().any(|line| line == target))
    };
    need_from_rustup(context, is_installed, &format!("target add {target}"))
}

/// Returns `Ok` if the toolchain of this version is installed.
pub(crate) fn need_toolchain(context: &Context, version: &str) -> StepResult {
    let toolchain = format!("+{version}");
    let is_installed = || context.succeeds("cargo", &[&toolchain, "--version"]);
    let line = format!("toolchain install {version} --profile minimal");
    need_from_rustup(context, is_installed, &line)
}

fn need_from_rustup(
    context: &Context,
    is_installed: impl Fn() -> bool,
    rustup_line: &str,
) -> StepResult {
    if is_installed() {
        return Ok(());
    }
    let _guard = INSTALLATION.lock().unwrap_or_else(PoisonError::into_inner);
    let words: Vec<&str> = rustup_line.split(' ').collect();
    if context.installs() && context.succeeds("rustup", &words) && is_installed() {
        return Ok(());
    }
    let fate = if context.installs() { "failed" } else { "is needed" };
    Err(StepError::Unavailable(format!("rustup {rustup_line} {fate}")))
}
