//! The command line `marple`, for the files of incidents.
//!
//! It works on the files that an agent left, on any machine, and does not access a running process.
//! `marple symbolize` adds source lines and inlined functions to profiles.
//!
//! Exit codes: 0 if everything succeeded, 1 if something failed (the reason is on standard error),
//! 2 if the command line is invalid.

mod symbolize;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Works on the files of marple's incidents.
#[derive(Parser)]
#[command(version, about)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Symbolize(Symbolize),
}

/// Adds source lines and inlined functions to pprof profiles.
///
/// A capture names functions by symbol tables alone. This command reads the debug information of
/// the binaries that ran: at the paths in the profile, below /usr/lib/debug, or as given by
/// --binary. A binary of another build is never used. Profiles are not modified; the result for
/// X.pprof is X.lines.pprof in the same directory.
#[derive(Args)]
struct Symbolize {
    /// Profiles of an incident (*.cpu.pprof, *.memory.pprof, threads.pprof, tasks.pprof)
    #[arg(required = true, value_name = "PROFILE")]
    profiles: Vec<PathBuf>,
    /// Binary that ran, or its debug file, at its present path; matched by build ID
    #[arg(short, long, value_name = "FILE")]
    binary: Vec<PathBuf>,
    /// Output file, for a single profile
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing output file
    #[arg(long)]
    force: bool,
}

/// Runs the command line `args`, of which the first is the name of the program. Prints a message
/// and exits the process if they are invalid or ask for help.
pub fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let Verb::Symbolize(args) = Command::parse_from(args).verb;
    match symbolize::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            for line in errors {
                eprintln!("marple: {line}");
            }
            ExitCode::FAILURE
        }
    }
}
