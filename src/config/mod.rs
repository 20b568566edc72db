//! Settings: their types, defaults and limits, and how a settings file is read, validated and
//! watched.
//!
//! ```text
//! file --load--> text --parse--> DeTable with spans --read--> Settings --validate--> Settings
//!                          |                            |                    |
//!                          +--------- Problems, each with its line ----------+
//! ```
//!
//! All problems of a file are reported at once, so reading continues after the first. `read` walks
//! the table key by key and records what is wrong. [`validate`](Settings::validate) checks the
//! values that could be read. Both add to one sorted list. `#[derive(Deserialize)]` on the structs
//! would stop at the first problem, and has no line for a conflict between two keys.
//!
//! Relative paths (`dir`, `toggle.trigger_file`, `http.token_file`, `unix:` sockets) are relative
//! to the working directory of the process, not to the directory of the file.

mod debounce;
mod default_rules;
mod defaults;
mod event_rate;
pub(crate) mod file_watcher;
mod list;
mod problem;
mod read;
mod renamed_keys;
mod secret;
mod section;
mod settings;
mod token_file;
mod validate;
mod value;
pub(crate) mod watched_file;

use crate::base::spare;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use default_rules::default_rules;
pub(crate) use file_watcher::FileWatcher;
pub use problem::{Error, Problem, Problems};
pub use secret::Secret;
pub use settings::{
    BudgetSettings, CpuSettings, DiskReserve, HeapSettings, HttpSettings, Listen,
    RuleStoreSettings, Settings, StacksSettings, StoreSettings, TasksMode, ThreadsMode,
    ToggleSettings, ToggleSignal, TraceSettings,
};
pub(crate) use watched_file::{FileChange, WatchedFile};

/// Maximum size of a settings file. It is a thousand times the longest plausible configuration, and
/// small enough for the watcher to keep and compare.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the settings in the file at `path`.
///
/// # Errors
///
/// If the file cannot be read, is larger than 1 MiB or is not valid. In the last case the error
/// lists every problem.
pub fn load(path: &Path) -> Result<Settings, Error> {
    parse_contents(path, read_bounded(path))
}

/// Reads settings from `text`; problems name `origin` as the file. Reads the files named by
/// `http.token_file` and the other `*_file` keys, if present.
///
/// # Errors
///
/// If the text is not valid. The error lists every problem.
pub fn parse(text: &str, origin: &Path) -> Result<Settings, Error> {
    read::read(text, origin).into_result()
}

/// Parses the contents read from `path`.
fn parse_contents(path: &Path, contents: io::Result<Vec<u8>>) -> Result<Settings, Error> {
    let contents =
        contents.map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    let text = str::from_utf8(&contents).map_err(|error| {
        let valid = String::from_utf8_lossy(contents.get(..error.valid_up_to()).unwrap_or(&[]));
        let message = "invalid UTF-8 from this position on: save the file as UTF-8".to_owned();
        Problems::new(
            Some(path),
            vec![Problem::at_offset(&valid, valid.len(), String::new(), message)],
        )
    })?;
    parse(text, path)
}

/// Reads the regular file at `path`. A pipe is an error: opening one would wait for a writer.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut contents = Vec::new();
    spare::open_with_retry(|| File::open(path))?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut contents)?;
    if contents.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(contents)
}
