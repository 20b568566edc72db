//! The command line: see `marple::cli`.

fn main() -> std::process::ExitCode {
    marple::cli::run(std::env::args_os())
}
