//! The state of a watched file, and detection of its changes.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Settings, judge, read_bounded};
use crate::base::Moment;
use crate::config::debounce::Debouncer;

/// Quiet time: a change must be stable for this time.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// The same for a configuration that has become empty.
const QUIET_IF_EMPTY: Duration = Duration::from_millis(700);

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
    pub(super) fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// Identity and times of a file, compared to detect a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    identity: FileIdentity,
    modified: (i64, i64),
    /// For settings, the time of the last change of any kind, which programs cannot set. `None` for
    /// a trigger, because `chmod` is not a touch.
    changed: Option<(i64, i64)>,
    size: u64,
}

impl FileStamp {
    fn of(watched: &WatchedFile) -> Option<Self> {
        let meta = fs::metadata(watched.path()).ok()?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        let changed = match watched {
            WatchedFile::Config(_) => Some((meta.ctime(), meta.ctime_nsec())),
            WatchedFile::Trigger(_) => None,
        };
        Some(Self { identity: FileIdentity::of(&meta), modified, changed, size: meta.len() })
    }
}

/// Contents of a settings file, or the reason why it cannot be read.
type FileContent = Result<Arc<[u8]>, (io::ErrorKind, String)>;

/// A watched file and its state.
#[derive(Debug)]
pub(super) struct File {
    pub(super) watched: WatchedFile,
    stamp: Option<FileStamp>,
    content: Option<FileContent>,
    contents: Debouncer<FileContent>,
    touches: Debouncer<FileStamp>,
}

impl File {
    pub(super) fn new(watched: WatchedFile) -> Self {
        let stamp = FileStamp::of(&watched);
        let content = match &watched {
            WatchedFile::Config(path) => read_content(path),
            WatchedFile::Trigger(_) => None,
        };
        let contents = Debouncer::new(content.clone());
        Self { watched, stamp, content, contents, touches: Debouncer::new(stamp) }
    }

    /// Returns the directory of the file.
    pub(super) fn directory(&self) -> &Path {
        let path = self.watched.path();
        match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        }
    }

    /// Returns `true` if a change waits for its quiet time.
    pub(super) fn is_unsettled(&self) -> bool {
        self.contents.is_unsettled() || self.touches.is_unsettled()
    }

    /// Checks the file. Reads its contents if its stamp differs or `read` is set by an event.
    pub(super) fn look(&mut self, now: Moment, read: bool) -> Option<FileChange> {
        let stamp = FileStamp::of(&self.watched);
        match &self.watched {
            WatchedFile::Trigger(path) => {
                self.touches.look(now, stamp, QUIET)?;
                Some(FileChange::Trigger { path: path.clone() })
            }
            WatchedFile::Config(path) => {
                // Two writes within one clock tick of the file system have equal stamps, so it is
                // read until stable.
                if read || stamp != self.stamp || self.is_unsettled() {
                    self.stamp = stamp;
                    self.content = read_content(path);
                }
                let empty = matches!(&self.content, Some(Ok(content)) if content.is_empty());
                let quiet = if empty { QUIET_IF_EMPTY } else { QUIET };
                let content = self.contents.look(now, self.content.clone(), quiet)?;
                let content = content
                    .map(|content| content.to_vec())
                    .map_err(|(kind, why)| io::Error::new(kind, why));
                let settings = judge(path, content).map(Box::new);
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
    fn changed(file: &mut File, millis: u64) -> bool {
        file.look(Moment::from_nanos(millis * 1_000_000), true).is_some()
    }

    #[test]
    fn a_file_is_judged_when_it_was_quiet_for_a_tenth_of_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, "").unwrap();
        let mut file = File::new(WatchedFile::Config(path.clone()));
        for half in 1..TEXT.len() {
            fs::write(&path, &TEXT[..half]).unwrap();
            let at = half as u64 * 99;
            assert!(!changed(&mut file, at) && !changed(&mut file, at + 98), "half: {half}");
        }
        fs::write(&path, TEXT).unwrap();
        assert!(!changed(&mut file, 10_000) && !changed(&mut file, 10_099));
        assert!(changed(&mut file, 10_100) && !changed(&mut file, 10_200));
    }

    #[test]
    fn a_write_that_restores_size_and_modification_time_is_seen_without_an_event() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, TEXT).unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut file = File::new(WatchedFile::Config(path.clone()));
        fs::write(&path, TEXT.replace('2', "3")).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let mut polled = |millis: u64| file.look(Moment::from_nanos(millis * 1_000_000), false);
        assert!(polled(0).is_none() && polled(100).is_some());
    }

    #[test]
    fn an_emptied_file_is_given_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marple.toml");
        fs::write(&path, TEXT).unwrap();
        let mut file = File::new(WatchedFile::Config(path.clone()));
        fs::write(&path, "").unwrap();
        assert!(!changed(&mut file, 0) && !changed(&mut file, 699));
        assert!(changed(&mut file, 700) && !changed(&mut file, 1400));
    }

    #[test]
    fn a_trigger_made_in_several_steps_is_one_touch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trigger");
        let mut file = File::new(WatchedFile::Trigger(path.clone()));
        fs::write(&path, "").unwrap();
        assert!(!changed(&mut file, 0));
        fs::write(&path, "now").unwrap();
        assert!(!changed(&mut file, 99) && !changed(&mut file, 198));
        assert!(changed(&mut file, 199) && !changed(&mut file, 300));
    }
}
