//! The incident example, and its profiles in Go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::context::{Context, StepError, StepResult};
use crate::steps::peers;

/// Runs the example in release. Each of its profiles must open in Go, the functions that it blames
/// must come first, and the leak must come first in the difference of two heap profiles.
pub(crate) fn incident(context: &mut Context) -> StepResult {
    let captures = context.target().join("incident");
    match fs::remove_dir_all(&captures) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StepError::Failed(format!("cannot remove {captures:?}: {error}")));
        }
        _ => {}
    }
    let mut example = context.cargo("run --release --example incident -- --dir");
    context.run(example.arg(&captures))?;

    if let Err(error) = peers(context) {
        if context.is_strict() {
            return Err(error);
        }
        context.skip_part("its profiles in Go", error.reason());
        return Ok(());
    }
    let profiles = profiles_of(&captures)
        .map_err(|error| StepError::Failed(format!("cannot list {captures:?}: {error}")))?;
    for profile in &profiles {
        go_pprof(context, &["-raw"], &[profile])?;
    }
    context.print(format_args!("{} profiles open in go tool pprof", profiles.len()));

    let of_kind = |incident: &str, ending: &str| -> Vec<&Path> {
        let is_wanted = |path: &&PathBuf| {
            let text = path.to_string_lossy();
            text.contains(incident) && text.ends_with(ending)
        };
        profiles.iter().filter(is_wanted).map(PathBuf::as_path).collect()
    };
    let memory = of_kind("-memory-", ".memory.pprof");
    let cpu = of_kind("-cpu-", ".cpu.pprof");
    let (Some(first), Some(last), Some(busy)) = (memory.first(), memory.last(), cpu.last()) else {
        return Err(StepError::Failed("a memory or cpu incident left no profile".into()));
    };
    expect_first(context, "keep_every_report_ever_made", &["-top", "-base"], &[first, last])?;
    expect_first(context, "search_for_a_proof_of_work", &["-top"], &[busy])
}

/// Returns the profiles of all incidents, in the order of their names.
fn profiles_of(captures: &Path) -> io::Result<Vec<PathBuf>> {
    let mut profiles = Vec::new();
    for incident in fs::read_dir(captures)? {
        let incident = incident?.path();
        if incident.is_dir() {
            for file in fs::read_dir(&incident)? {
                profiles.push(file?.path());
            }
        }
    }
    profiles.retain(|file| file.extension().is_some_and(|ending| ending == "pprof"));
    profiles.sort();
    Ok(profiles)
}

fn go_pprof(context: &Context, options: &[&str], files: &[&Path]) -> StepResult<String> {
    let peers = context.peers();
    let go = peers.join("venv/bin/go");
    let mut command = context.command(&go.to_string_lossy(), &["tool", "pprof", "-symbolize=none"]);
    // The caches that tests/peers/install has filled.
    command.env("GOCACHE", peers.join("go-cache")).env("GOPATH", peers.join("go-path"));
    context.output(command.args(options).args(files))
}

/// Fails unless `function` is in the first row of `go tool pprof -top`.
fn expect_first(
    context: &Context,
    function: &str,
    options: &[&str],
    files: &[&Path],
) -> StepResult {
    let top = go_pprof(context, options, files)?;
    for line in top.lines().take(12) {
        context.print(line);
    }
    match first_function(&top) {
        Some(first) if first.ends_with(&format!("::{function}")) => Ok(()),
        first => Err(StepError::Failed(format!("{function} is not the first, but {first:?}"))),
    }
}

/// Returns the function of the first row below the heading, which contains `flat%`.
fn first_function(top: &str) -> Option<&str> {
    let mut rows = top.lines().skip_while(|line| !line.contains("flat%"));
    rows.nth(1)?.split_whitespace().last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_function_is_read_below_the_heading() {
        let top = "Type: cpu\nShowing nodes\n  flat  flat%   sum%  cum  cum%\n \
                   10s 90% 90% 10s 90%  a::b\n 1s 9% 99% 1s 9%  c\n";
        assert_eq!(first_function(top), Some("a::b"));
        assert_eq!(first_function("Type: cpu\n"), None);
    }
}
