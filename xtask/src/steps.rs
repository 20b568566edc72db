//! The steps. Their order is cheap before expensive, so that a simple mistake shows early.
//!
//! Builds are shared where the features and flags are equal: `unit`, `integration`, `default-rules`
//! and `doctests` use one debug build; `http-go` and `example` use one release build.

use std::collections::BTreeSet;

use crate::context::{Context, StepError, StepResult};
use crate::example;
use crate::manifest;
use crate::test_modules;
use crate::tools::{self, need};

use self::Level::{Check, Full, Test};

pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&mut Context) -> StepResult,
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

const fn step(
    level: Level,
    name: &'static str,
    about: &'static str,
    run: fn(&mut Context) -> StepResult,
) -> Step {
    Step { name, level, about, run }
}

pub(crate) const STEPS: &[Step] = &[
    step(Full, "dependencies", "lock files of all packages are up to date", dependencies),
    step(Check, "format", "rustfmt on all Rust files, also on those of no target", format),
    step(Check, "language", "comments, documents and names, by tests/prose.py", language),
    step(Check, "xtask", "clippy and unit tests of xtask", xtask),
    step(Check, "clippy", "all targets with all features, without warnings", clippy),
    step(Full, "features", "clippy without features and with each feature alone", features),
    step(Full, "docs", "rustdoc with all features, without warnings", docs),
    step(Full, "package", "files and build of the published package", manifest::package),
    step(Full, "targets", "aarch64 Linux, macOS and FreeBSD, compiled only", targets),
    step(Full, "msrv", "declared rust-version of crate and dependencies", manifest::rust_version),
    step(Full, "minimal-versions", "lowest declared dependencies", manifest::minimal_versions),
    step(Full, "deny", "licences, sources and duplicates of dependencies", deny),
    step(Test, "public-api", "public items are those of tests/public_api.txt", public_api),
    step(Test, "peers", "installs Go's pprof and Perfetto's trace processor", peers),
    step(Check, "unit", "unit tests, in debug with all features", unit),
    step(Test, "integration", "integration tests, in debug with all features", integration),
    step(Test, "doctests", "examples of the documentation", doctests),
    step(Test, "default-rules", "default rules against faulty services", default_rules),
    step(Full, "tokio-unstable", "tokio's hooks, with --cfg tokio_unstable", tokio_unstable),
    step(Full, "miri", "unsafe code that Miri can run", miri),
    step(Full, "jemalloc", "tests/jemalloc, which builds jemalloc", jemalloc),
    step(Full, "http-go", "endpoint of a release build, with Go's client and server", http_go),
    step(Full, "example", "incident example in release, its profiles in Go", example::incident),
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
        println!("{} files", files.len());
        return Ok(());
    }
    // rustfmt follows `mod` items, so a difference appears once for each file above it, too.
    let text = String::from_utf8_lossy(&output.stdout);
    let differences: BTreeSet<&str> = text.split("Diff in ").skip(1).collect();
    for difference in &differences {
        print!("Diff in {difference}");
    }
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
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
            println!("{}", error.reason());
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

/// The services burn, block and leak while the rules measure them, so each test runs alone: no
/// compilation may run beside them.
fn default_rules(context: &mut Context) -> StepResult {
    need(context, &tools::NEXTEST)?;
    context.run(&mut context.cargo("nextest run --all-features -E binary(default_rules)"))
}

/// `--target` keeps `RUSTFLAGS` away from build scripts and procedural macros, which the debug
/// build has compiled before.
fn tokio_unstable(context: &mut Context) -> StepResult {
    let version = context.output(&mut context.command("rustc", &["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| StepError::Failed("rustc -vV names no host".into()))?;
    let mut tests = context.cargo(&format!("test --test trace_hooks --target {host}"));
    context.run(tests.env("RUSTFLAGS", "--cfg tokio_unstable"))
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

/// A package of its own, because it builds jemalloc.
fn jemalloc(context: &mut Context) -> StepResult {
    need(context, &tools::C_COMPILER)?;
    let mut tests =
        context.cargo("test --locked --manifest-path tests/jemalloc/Cargo.toml --target-dir");
    context.run(tests.arg(context.target()))
}

/// The features are those of the example, so that one release build serves both.
fn http_go(context: &mut Context) -> StepResult {
    peers(context)?;
    context.run(&mut context.cargo("test --release --test http_go"))
}
