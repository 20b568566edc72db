//! Runs a test of this program in another process: under a limit, in another place, or to be
//! killed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Returns the path by which the test harness selects this test of the calling module: its modules
/// and its name, without the crate. Does not compile if there is no such test.
macro_rules! test_path {
    ($test:ident) => {{
        let _ = $test;
        $crate::support::rerun::path_in_crate(concat!(module_path!(), "::", stringify!($test)))
    }};
}
pub(crate) use test_path;

/// Returns `path` without its first segment, which is the crate.
pub(crate) fn path_in_crate(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_, path)| path)
}

/// Returns the arguments with which a test program runs only the test at `path`, and prints its
/// output.
pub(crate) fn args(path: &str) -> [&str; 3] {
    ["--exact", path, "--nocapture"]
}

/// Returns the command that runs the test at `path` in a process of its own.
pub(crate) fn command(path: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(args(path));
    command
}

const RERUN_ENV: &str = "MARPLE_TEST_RERUN";

/// Runs `body` in a copy of this test binary started by `wrapper`, a command that takes a program
/// and its arguments, with `RERUN_ENV` set. `path` is that of the calling test. Returns `false` if
/// the wrapper is not available on this machine; this fails under `CI=true` and prints one line
/// elsewhere.
pub(crate) fn under(path: &str, wrapper: &[&str], body: impl FnOnce()) -> bool {
    if std::env::var_os(RERUN_ENV).is_some() {
        body();
        return true;
    }
    let (program, arguments) = wrapper.split_first().unwrap();
    let possible = Command::new(program)
        .args(arguments)
        .arg("true")
        .output()
        .is_ok_and(|result| result.status.success());
    if !possible {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "`{program}` must work in CI"
        );
        eprintln!("{path}: not run, `{}` does not work here", wrapper.join(" "));
        return false;
    }
    // Copies the binary to a place that any user can read.
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = temp.path().join("again");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(program)
        .args(arguments)
        .arg(copy)
        .args(args(path))
        .env(RERUN_ENV, "1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    true
}
