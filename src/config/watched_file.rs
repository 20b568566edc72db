//! The state of a watched file, and detection of its changes.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Settings, parse_contents, read_bounded};
use crate::base::Moment;
use crate::config::debounce::Debouncer;

/// Quiet time: a change must be stable for this time.
pub(super) const QUIET_TIME: Duration = Duration::from_millis(100);
/// The same for a configuration that has become empty.
const QUIET_TIME_IF_EMPTY: Duration = Duration::from_millis(700);

/// A file to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchedFile {
    /// A settings file; reported when its contents change.
    Config(PathBuf),
    /// A trigger file; reported when it is touched or created.
    Trigger(PathBuf),
}

impl WatchedFile {
    fn path(&self) -> &Path {
        match self {
            Self::Config(path) | Self::Trigger(path) => path,
        }
    }
}

/// A change of a watched file.
#[derive(Debug)]
pub enum FileChange {
    /// The contents of a settings file have changed. They are already parsed and validated, so the
    /// settings applied are those that were detected.
    Config {
        /// Path of the file.
        path: PathBuf,
        /// The settings in it, or the error; in that case the previous settings should stay in
        /// force.
        settings: Result<Box<Settings>, Error>,
    },
    /// A trigger file was touched or created.
    Trigger {
        /// Path of the file.
        path: PathBuf,
    },
}

/// Identity of a file or directory, independent of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(super) fn from_metadata(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// Identity and times of a file, compared to detect a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    identity: FileIdentity,
    mtime: (i64, i64),
    /// For settings, the time of the last change of any kind, which programs cannot set. `None` for
    /// a trigger, because `chmod` is not a touch.
    ctime: Option<(i64, i64)>,
    size: u64,
}

impl FileStamp {
    fn read(file: &WatchedFile) -> Option<Self> {
        let meta = fs::metadata(file.path()).ok()?;
        let mtime = (meta.mtime(), meta.mtime_nsec());
        let ctime = match file {
            WatchedFile::Config(_) => Some((meta.ctime(), meta.ctime_nsec())),
            WatchedFile::Trigger(_) => None,
        };
        Some(Self { identity: FileIdentity::from_metadata(&meta), mtime, ctime, size: meta.len() })
    }
}

/// Contents of a settings file, or the reason why it cannot be read.
type FileContent = Result<Arc<[u8]>, (io::ErrorKind, String)>;

/// A watched file and its state.
#[derive(Debug)]
pub(super) struct WatchedFileState {
    pub(super) file: WatchedFile,
    stamp: Option<FileStamp>,
    content: Option<FileContent>,
    content_debouncer: Debouncer<FileContent>,
    touch_debouncer: Debouncer<FileStamp>,
}

impl WatchedFileState {
    pub(super) fn new(file: WatchedFile) -> Self {
        let stamp = FileStamp::read(&file);
        let content = match &file {
            WatchedFile::Config(path) => read_content(path),
            WatchedFile::Trigger(_) => None,
        };
        let content_debouncer = Debouncer::new(content.clone());
        Self { file, stamp, content, content_debouncer, touch_debouncer: Debouncer::new(stamp) }
    }

    /// Returns the directory of the file.
    pub(super) fn directory(&self) -> &Path {
        let path = self.file.path();
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        }
    }

    /// Returns `true` if a change waits for its quiet time.
    pub(super) fn is_pending(&self) -> bool {
        self.content_debouncer.is_pending() || self.touch_debouncer.is_pending()
    }

    /// Checks the file. Reads its contents if its stamp differs or `read` is set by an event.
    pub(super) fn check(&mut self, now: Moment, force_read: bool) -> Option<FileChange> {
        let stamp = FileStamp::read(&self.file);
        match &self.file {
            WatchedFile::Trigger(path) => {
                self.touch_debouncer.update(now, stamp, QUIET_TIME)?;
                Some(FileChange::Trigger { path: path.clone() })
            }
            WatchedFile::Config(path) => {
                // Two writes within one clock tick of the file system have equal stamps, so it is
                // read until stable.
                if force_read || stamp != self.stamp || self.is_pending() {
                    self.stamp = stamp;
                    self.content = read_content(path);
                }
                let is_empty = matches!(&self.content, Some(Ok(content)) if content.is_empty());
                let quiet = if is_empty { QUIET_TIME_IF_EMPTY } else { QUIET_TIME };
                let content = self.content_debouncer.update(now, self.content.clone(), quiet)?;
                let content = content
                    .map(|content| content.to_vec())
                    .map_err(|(kind, message)| io::Error::new(kind, message));
                let settings = parse_contents(path, content).map(Box::new);
                Some(FileChange::Config { path: path.clone(), settings })
            }
        }
    }
}

/// Reads the contents of a settings file. Returns `None` if it does not exist.
fn read_content(path: &Path) -> Option<FileContent> {
    match read_bounded(path) {
        Ok(content) => Some(Ok(content.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err((error.kind(), error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "interval = \"2s\"";

    /// Checks `file` as the thread does after an event. Returns `true` if there is a change.
    fn has_change(file: &mut WatchedFileState, millis: u64) -> bool {
        file.check(Moment::from_nanos(millis * 1_000_000), true).is_some()
    }

    #[test]
    fn file_is_parsed_after_100_ms_without_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, "").unwrap();
        let mut file = WatchedFileState::new(WatchedFile::Config(path.clone()));
        for length in 1..TEXT.len() {
            fs::write(&path, &TEXT[..length]).unwrap();
            let at = length as u64 * 99;
            assert!(
                !has_change(&mut file, at) && !has_change(&mut file, at + 98),
                "half: {length}"
            );
        }
        fs::write(&path, TEXT).unwrap();
        assert!(!has_change(&mut file, 10_000) && !has_change(&mut file, 10_099));
        assert!(has_change(&mut file, 10_100) && !has_change(&mut file, 10_200));
    }

    #[test]
    fn detects_write_with_same_size_and_mtime_without_event() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, TEXT).unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut file = WatchedFileState::new(WatchedFile::Config(path.clone()));
        fs::write(&path, TEXT.replace('2', "3")).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let mut polled = |millis: u64| file.check(Moment::from_nanos(millis * 1_000_000), false);
        assert!(polled(0).is_none() && polled(100).is_some());
    }

    #[test]
    fn emptied_file_has_longer_quiet_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, TEXT).unwrap();
        let mut file = WatchedFileState::new(WatchedFile::Config(path.clone()));
        fs::write(&path, "").unwrap();
        assert!(!has_change(&mut file, 0) && !has_change(&mut file, 699));
        assert!(has_change(&mut file, 700) && !has_change(&mut file, 1400));
    }

    #[test]
    fn trigger_written_in_several_steps_is_one_touch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trigger");
        let mut file = WatchedFileState::new(WatchedFile::Trigger(path.clone()));
        fs::write(&path, "").unwrap();
        assert!(!has_change(&mut file, 0));
        fs::write(&path, "now").unwrap();
        assert!(!has_change(&mut file, 99) && !has_change(&mut file, 198));
        assert!(has_change(&mut file, 199) && !has_change(&mut file, 300));
    }
}
