//! The steps. Their order is cheap before expensive, so that a simple mistake shows early.
//!
//! Builds are shared where the features and flags are equal: `unit`, `integration`, `default-rules`
//! and `doctests` use one debug build; `http-go` and `example` use one release build. A full run
//! compiles them in two lanes, because one rustc alone leaves a core idle for most of the time that
//! a check of the crate takes. Tests run after that, one step at a time.

use std::collections::BTreeSet;
use std::process::Command;

use crate::context::{Context, StepError, StepResult};
use crate::example;
use crate::manifest;
use crate::test_modules;
use crate::tools::{self, need};

use self::Level::{Check, Full, Test};

pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) lane: Lane,
    pub(crate) about: &'static str,
    pub(crate) run: Run,
}

/// The smallest command that runs a step. Each command runs the steps of the smaller ones, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Check,
    Test,
    Full,
}

impl Level {
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Test => "test",
            Self::Full => "full",
        }
    }
}

/// The steps that may run beside this one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// None: tests measure time, CPU use and threads.
    Alone,
    /// Those of `Other`. The step compiles below `target/debug`, which cargo locks.
    Debug,
    /// Those of `Debug`. The step compiles below other directories.
    Other,
}

type Run = fn(&mut Context) -> StepResult;

const fn alone(level: Level, name: &'static str, about: &'static str, run: Run) -> Step {
    Step { name, level, lane: Lane::Alone, about, run }
}

const fn debug(level: Level, name: &'static str, about: &'static str, run: Run) -> Step {
    Step { name, level, lane: Lane::Debug, about, run }
}

const fn other(level: Level, name: &'static str, about: &'static str, run: Run) -> Step {
    Step { name, level, lane: Lane::Other, about, run }
}

pub(crate) const STEPS: &[Step] = &[
    alone(Full, "dependencies", "lock files of all packages are up to date", dependencies),
    alone(Check, "format", "rustfmt on all Rust files, also on those of no target", format),
    alone(Check, "language", "comments, documents and names, by tests/prose.py", language),
    other(Check, "xtask", "clippy and unit tests of xtask", xtask),
    debug(Check, "clippy", "all targets with all features, without warnings", clippy),
    debug(Full, "features", "clippy without features and with each feature alone", features),
    debug(Full, "docs", "rustdoc with all features, without warnings", docs),
    debug(Full, "package", "files and build of the published package", manifest::package),
    debug(Full, "targets", "aarch64 Linux, macOS and FreeBSD, compiled only", targets),
    other(Full, "msrv", "declared rust-version of crate and dependencies", manifest::rust_version),
    other(Full, "minimal-versions", "lowest declared dependencies", manifest::minimal_versions),
    other(Full, "deny", "licences, sources and duplicates of dependencies", deny),
    other(Test, "public-api", "public items are those of tests/public_api.txt", public_api),
    other(Test, "peers", "installs Go's pprof and Perfetto's trace processor", peers),
    other(Full, "miri", "unsafe code that Miri can run", miri),
    other(Full, "release-build", "http-go and example, compiled only", release_build),
    debug(Full, "debug-build", "tests of a debug build, compiled only", debug_build),
    debug(Test, "doctests", "examples of the documentation", doctests),
    alone(Check, "unit", "unit tests, in debug with all features", unit),
    alone(Test, "integration", "integration tests, in debug with all features", integration),
    alone(Test, "default-rules", "default rules against faulty services", default_rules),
    alone(Full, "tokio-unstable", "tokio's hooks, with --cfg tokio_unstable", tokio_unstable),
    alone(Full, "jemalloc", "tests/jemalloc, which builds jemalloc", jemalloc),
    alone(Full, "http-go", "endpoint of a release build, with Go's client and server", http_go),
    alone(Full, "example", "incident example in release, its profiles in Go", example::incident),
];

/// Fails in the package whose lock file is not up to date. Most of them are built by no other step.
fn dependencies(context: &mut Context) -> StepResult {
    let manifests =
        context.output(&mut context.command("git", &["ls-files", "Cargo.toml", "*/Cargo.toml"]))?;
    for manifest in manifests.lines() {
        context.run(context.cargo("fetch --locked --quiet --manifest-path").arg(manifest))?;
    }
    Ok(())
}

/// Checks every Rust file of the tree. `cargo fmt` alone reaches only files that belong to a target
/// of the root package.
fn format(context: &mut Context) -> StepResult {
    need(context, &tools::RUSTFMT)?;
    let files = context.output(&mut context.command(
        "git",
        &["ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.rs"],
    ))?;
    let files: Vec<&str> =
        files.split('\0').filter(|file| context.root().join(file).is_file()).collect();
    let mut rustfmt = context.command("rustfmt", &["--check", "--color", "never"]);
    let output = rustfmt.args(&files).output();
    let output =
        output.map_err(|error| StepError::Failed(format!("cannot run rustfmt: {error}")))?;
    if output.status.success() {
        context.print(format_args!("{} files", files.len()));
        return Ok(());
    }
    // rustfmt follows `mod` items, so a difference appears once for each file above it, too.
    let text = String::from_utf8_lossy(&output.stdout);
    let differences: BTreeSet<&str> = text.split("Diff in ").skip(1).collect();
    for difference in &differences {
        context.print(format_args!("Diff in {}", difference.trim_end()));
    }
    context.print(String::from_utf8_lossy(&output.stderr));
    Err(StepError::Failed(format!(
        "{} places differ: run rustfmt $(git ls-files '*.rs')",
        differences.len()
    )))
}

fn language(context: &mut Context) -> StepResult {
    need(context, &tools::PYTHON)?;
    context.run(&mut context.command("python3", &["tests/prose.py", "--gate"]))
}

fn xtask(context: &mut Context) -> StepResult {
    need(context, &tools::CLIPPY)?;
    let package = "--quiet --manifest-path xtask/Cargo.toml --target-dir target/xtask";
    context.run(&mut context.cargo(&format!("clippy {package} --all-targets -- -D warnings")))?;
    context.run(&mut context.cargo(&format!("test {package}")))
}

fn clippy(context: &mut Context) -> StepResult {
    need(context, &tools::CLIPPY)?;
    context.run(&mut context.cargo("clippy --all-targets --all-features -- -D warnings"))
}

/// Code that one feature alone leaves unused is a warning in the builds of users.
fn features(context: &mut Context) -> StepResult {
    need(context, &tools::CLIPPY)?;
    let manifest = manifest::read(context)?;
    let features = manifest::features(&manifest);
    if features.is_empty() {
        return Err(StepError::Failed("no features found in Cargo.toml".into()));
    }
    context.run(&mut context.cargo("clippy --quiet --no-default-features -- -D warnings"))?;
    for feature in features {
        context.run(&mut context.cargo(&format!(
            "clippy --quiet --no-default-features --features {feature} -- -D warnings"
        )))?;
    }
    Ok(())
}

fn docs(context: &mut Context) -> StepResult {
    let mut doc = context.cargo("doc --no-deps --all-features");
    context.run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Compiles for the other processor that has code of its own, with its tests, and for the systems
/// whose code replaces that of Linux. No dependency needs a C compiler for them.
fn targets(context: &mut Context) -> StepResult {
    need(context, &tools::CLIPPY)?;
    let checks = [
        ("aarch64-unknown-linux-gnu", "check --quiet --all-features --tests", ""),
        ("x86_64-apple-darwin", "clippy --quiet --all-features", "-- -D warnings"),
        ("x86_64-unknown-freebsd", "clippy --quiet --all-features", "-- -D warnings"),
    ];
    let mut unavailable = Vec::new();
    for (target, command, flags) in checks {
        match tools::need_target(context, target) {
            Ok(()) => {
                context.run(&mut context.cargo(&format!("{command} --target {target} {flags}")))?;
            }
            Err(error) => unavailable.push((target, error)),
        }
    }
    if unavailable.len() == checks.len() {
        let reasons: Vec<&str> = unavailable.iter().map(|(_, error)| error.reason()).collect();
        return Err(StepError::Unavailable(reasons.join(", ")));
    }
    for (target, error) in unavailable {
        context.skip_part(target, error.reason());
    }
    Ok(())
}

/// Advisories are not checked: their database is a repository that is fetched from the network.
fn deny(context: &mut Context) -> StepResult {
    need(context, &tools::DENY)?;
    context.run(&mut context.cargo("deny --all-features check licenses bans sources"))
}

fn public_api(context: &mut Context) -> StepResult {
    need(context, &tools::PYTHON)?;
    tools::need_nightly(context)?;
    context.run(&mut context.command("python3", &["tests/public_api.py"]))
}

/// Installs the independent readers of marple's files. The second call does nothing.
pub(crate) fn peers(context: &mut Context) -> StepResult {
    need(context, &tools::PYTHON)?;
    need(context, &tools::PIP)?;
    context.run(&mut context.command("bash", &["tests/peers/install"]))
}

fn unit(context: &mut Context) -> StepResult {
    need(context, &tools::NEXTEST)?;
    if let Err(error) = need(context, &tools::LIBJEMALLOC) {
        if context.is_strict() {
            return Err(error);
        }
        context.skip_part("tests beside jemalloc", error.reason());
    }
    context.run(&mut context.cargo("nextest run --all-features --lib"))
}

/// Runs all integration tests except `http_go` and `default_rules`, which have steps of their own.
/// Where a reader is missing, the test modules that use it are skipped; in a strict run they run
/// and fail.
fn integration(context: &mut Context) -> StepResult {
    need(context, &tools::NEXTEST)?;
    let mut filter = String::from("not (kind(lib) or binary(http_go) or binary(default_rules))");
    let mut missing = None;
    let readers = [
        (&["go_pprof", "perfetto_query", "python(", "GoServer"][..], peers(context)),
        (&["perfetto_query"][..], need(context, &tools::NODE)),
        (&["promtool"][..], need(context, &tools::PROMTOOL)),
    ];
    for (words, availability) in readers {
        let Err(error) = availability else { continue };
        if context.is_strict() {
            context.print(error.reason());
            missing.get_or_insert(error);
            continue;
        }
        let modules = test_modules::that_mention(context.root(), words);
        let modules = modules.map_err(|error| StepError::Failed(error.to_string()))?;
        let names: Vec<String> = modules.iter().map(|module| module.to_string()).collect();
        context.skip_part(&names.join(", "), error.reason());
        for module in &modules {
            filter += &format!(" and not ({})", module.nextest_filter());
        }
    }
    let mut nextest = context.cargo("nextest run --all-features -E");
    let result = context.run(nextest.arg(filter));
    match missing {
        Some(error) => Err(error),
        None => result,
    }
}

fn doctests(context: &mut Context) -> StepResult {
    context.run(&mut context.cargo("test --doc --all-features"))
}

/// No compilation may run beside the services, which burn, block and leak while rules measure them.
/// `.config/nextest.toml` states which of them may run at the same time.
fn default_rules(context: &mut Context) -> StepResult {
    need(context, &tools::NEXTEST)?;
    let nextest = "nextest run --all-features --test-threads 3 -E binary(default_rules)";
    context.run(&mut context.cargo(nextest))
}

/// Compiles the tests of the steps `unit` to `jemalloc`.
fn debug_build(context: &mut Context) -> StepResult {
    need(context, &tools::NEXTEST)?;
    context.run(&mut context.cargo("nextest run --no-run --all-features"))?;
    context.run(tokio_unstable_tests(context)?.arg("--no-run"))?;
    match need(context, &tools::C_COMPILER) {
        Ok(()) => context.run(jemalloc_tests(context).arg("--no-run")),
        // The step `jemalloc` reports it.
        Err(_) => Ok(()),
    }
}

/// Compiles what the steps `http-go` and `example` run.
fn release_build(context: &mut Context) -> StepResult {
    context.run(&mut context.cargo("build --release --test http_go --example incident"))
}

fn tokio_unstable(context: &mut Context) -> StepResult {
    context.run(&mut tokio_unstable_tests(context)?)
}

/// `--target` keeps `RUSTFLAGS` away from build scripts and procedural macros, which the debug
/// build has compiled before.
fn tokio_unstable_tests(context: &Context) -> StepResult<Command> {
    let version = context.output(&mut context.command("rustc", &["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| StepError::Failed("rustc -vV names no host".into()))?;
    let mut tests = context.cargo(&format!("test --test trace_hooks --target {host}"));
    tests.env("RUSTFLAGS", "--cfg tokio_unstable");
    Ok(tests)
}

/// Runs the tests of unsafe code that Miri can interpret: no system calls of its own, and no
/// instructions unknown to Miri. Each runs with several orders of the threads, and with the
/// reordered memory accesses that x86 does not show.
fn miri(context: &mut Context) -> StepResult {
    tools::need_miri(context)?;
    let mut tests = context.cargo(
        "+nightly miri test --quiet --lib --no-default-features --features trace \
         -- os::stack_snapshot os::mapped_memory stacks::waker",
    );
    context.run(tests.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-many-seeds=0..8"))
}

fn jemalloc(context: &mut Context) -> StepResult {
    need(context, &tools::C_COMPILER)?;
    context.run(&mut jemalloc_tests(context))
}

/// A package of its own, because it builds jemalloc.
fn jemalloc_tests(context: &Context) -> Command {
    let mut tests =
        context.cargo("test --locked --manifest-path tests/jemalloc/Cargo.toml --target-dir");
    tests.arg(context.target());
    tests
}

/// The features are those of the example, so that one release build serves both.
fn http_go(context: &mut Context) -> StepResult {
    peers(context)?;
    context.run(&mut context.cargo("test --release --test http_go"))
}
