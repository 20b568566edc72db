//! The directory of a store: the configured one, or a private directory in it.
//!
//! Captures contain secrets, and a user who can write to the incident directory can make marple
//! delete or serve other files. So the directory must belong to this process's user and be writable
//! by that user only. The mount point of a volume is often neither: an `emptyDir` has mode 0777, a
//! volume with `fsGroup` has mode 2775 and belongs to root, and a random user ID owns nothing. In
//! such a directory the store creates `marple-{uid}` with mode 0700. The name is the same after a
//! restart, so the incidents of the previous process are found.
//!
//! Other users can write to the mount point, so no name in it is trusted. If `marple-{uid}` is a
//! link, a file or a directory of another user, the next name is used: `marple-{uid}-2`. The check
//! uses the open descriptor.
//!
//! Ownership depends on the file system. It may show files under another owner (root of an NFS
//! export with `root_squash`) or with fixed modes (vfat, SMB, object stores). A probe file, created
//! with `O_EXCL` and deleted at once, shows the owner and mode of new files. If modes are fixed, no
//! directory can be private. Then the configured directory is used as it is, with a warning.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jiff::Timestamp;
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir::{Dir, Modes, io_error, normalize_path, open_directory};
use super::error::Error;
use super::file_system::{FileSystem, FsFeature};
use crate::base::{IncidentId, warnings};

const TOPIC: &str = "store.place";

/// Maximum number of names tried for the private directory. Another user must occupy all of them to
/// keep this process out.
const MAX_NAMES: u32 = 64;

/// The location of a store: the configured directory and the one in use. Clones share it.
#[derive(Clone, Debug)]
pub struct Location(Arc<LocationInner>);

#[derive(Debug)]
struct LocationInner {
    configured: PathBuf,
    /// The directory of the store opened last.
    opened: Mutex<OpenedLocation>,
}

#[derive(Debug, Default)]
struct OpenedLocation {
    path: Option<PathBuf>,
    root: Weak<Dir>,
}

impl Location {
    /// Creates a location for the configured directory `dir`.
    pub fn new(dir: &Path) -> Self {
        let configured = normalize_path(dir);
        Self(Arc::new(LocationInner { configured, opened: Mutex::default() }))
    }

    /// Returns the incident directory in use, or the configured directory before a store is opened.
    pub fn path(&self) -> PathBuf {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.path.clone().unwrap_or_else(|| self.0.configured.clone())
    }

    pub(super) fn configured(&self) -> &Path {
        &self.0.configured
    }

    pub(super) fn set_opened(&self, root: &Arc<Dir>) {
        let opened =
            OpenedLocation { path: Some(root.path().to_owned()), root: Arc::downgrade(root) };
        *self.0.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// Returns the directory for reading. If this process has the store open, it is the writer's
    /// own descriptor, which cannot be replaced by another directory. Otherwise it is opened by
    /// path.
    pub(super) fn open_root(&self) -> Result<Arc<Dir>, Error> {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner).root.upgrade();
        match opened.filter(|root| !root.is_removed()) {
            Some(root) => Ok(root),
            None => open_existing(&self.0.configured).map(Arc::new),
        }
    }
}

/// The directory of a store, and a remark about the choice if it is not the configured one.
pub(super) struct ChosenDirectory {
    pub(super) dir: Dir,
    warning: Option<String>,
}

impl ChosenDirectory {
    /// Reports the chosen directory as a warning. Called after the lock is acquired.
    pub(super) fn report(&self) {
        match &self.warning {
            Some(warning) => warnings::set(TOPIC, warning.clone()),
            None => warnings::clear(TOPIC),
        }
    }
}

/// Creates the directory of a store at `path`, with its parents, or a private directory in `path`.
pub(super) fn open_or_create(path: &Path, group_read: bool) -> Result<ChosenDirectory, Error> {
    let path = normalize_path(path);
    make_directories(&path, group_read)?;
    let fd = open_directory(&path)?;
    let stat = read_stat(&fd, &path)?;
    let uid = geteuid().as_raw();
    if is_private(&stat, uid) {
        return Ok(ChosenDirectory { dir: new_dir(fd, path, uid, &stat), warning: None });
    }
    let warning_for = |private_dir: &Dir| {
        format!(
            "{} is writable by other users (mode {:04o}, owner {}): incidents are stored in {}, \
             which only this user can write to; to choose the path, set `dir` to a directory that \
             only this user can write to",
            path.display(),
            mode(&stat),
            stat.st_uid,
            private_dir.path().display(),
        )
    };
    // The directory of the previous process, if it exists. Finding it needs no free space, unlike
    // the probe.
    if let Some(dir) =
        private_dir_names(uid).find_map(|name| open_private(&fd, &path.join(&name), &name, uid))
    {
        let warning = Some(warning_for(&dir));
        return Ok(ChosenDirectory { dir, warning });
    }
    let probe = WriteProbe::run(&fd, &path, &stat, uid)?;
    if is_private(&stat, probe.owner) {
        return Ok(ChosenDirectory { dir: new_dir(fd, path, probe.owner, &stat), warning: None });
    }
    if !probe.supports_modes {
        let dir = new_dir(fd, path, probe.owner, &stat);
        dir.file_system().report_missing(FsFeature::Modes, |path| {
            format!(
                "the file system of {path} does not store file modes: other users may read \
                 captures, which contain secrets, and remove them; mount it with a umask of 077 \
                 and this user's ID, or set `dir` to another file system"
            )
        });
        return Ok(ChosenDirectory { dir, warning: None });
    }
    let dir_mode = Modes::new(group_read).dir;
    for name in private_dir_names(uid) {
        match fs::mkdirat(&fd, name.as_str(), dir_mode) {
            Ok(()) if group_read => set_group(&fd, &name, stat.st_gid),
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("create directory", path.join(name), errno)),
        }
        if let Some(dir) = open_private(&fd, &path.join(&name), &name, probe.owner) {
            let warning = Some(warning_for(&dir));
            return Ok(ChosenDirectory { dir, warning });
        }
    }
    Err(Error::WritableByOthers { path, mode: mode(&stat) })
}

/// Opens the directory of a store at `path` for reading.
fn open_existing(path: &Path) -> Result<Dir, Error> {
    let outer = Dir::open(path)?;
    let fd = open_directory(path)?;
    let uid = geteuid().as_raw();
    if is_private(&read_stat(&fd, path)?, uid) {
        return Ok(outer);
    }
    let private_dir =
        private_dir_names(uid).find_map(|name| open_private(&fd, &path.join(&name), &name, uid));
    Ok(private_dir.unwrap_or(outer))
}

/// Returns `true` if only the user `uid` can write to the directory of `stat`.
fn is_private(stat: &Stat, uid: u32) -> bool {
    stat.st_uid == uid && stat.st_mode & 0o022 == 0
}

#[allow(clippy::unnecessary_cast, reason = "the width differs between systems")]
fn mode(stat: &Stat) -> u32 {
    Mode::from_raw_mode(stat.st_mode).bits() as u32
}

fn read_stat(fd: &OwnedFd, path: &Path) -> Result<Stat, Error> {
    fs::fstat(fd).map_err(|errno| io_error("stat", path.to_owned(), errno))
}

fn new_dir(fd: OwnedFd, path: PathBuf, owner: u32, stat: &Stat) -> Dir {
    let file_system = FileSystem::new(&path, owner, stat.st_gid, stat.st_nlink > 0);
    Dir::new(fd, path, Arc::new(file_system))
}

fn private_dir_names(uid: u32) -> impl Iterator<Item = String> {
    let first = format!("marple-{uid}");
    let others = (2..=MAX_NAMES).map(move |number| format!("marple-{uid}-{number}"));
    std::iter::once(first).chain(others)
}

/// Opens the directory `name` in `parent` if it belongs to `owner` and only `owner` can write to
/// it.
fn open_private(parent: &OwnedFd, path: &Path, name: &str, owner: u32) -> Option<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(parent, name, flags, Mode::empty()).ok()?;
    let stat = fs::fstat(&fd).ok()?;
    is_private(&stat, owner).then(|| new_dir(fd, path.to_owned(), owner, &stat))
}

/// Sets the group of the directory `name` in `parent` to `group`, the group of the volume. Needed
/// if the mount point does not pass its group on. Without membership in `group` the call fails, and
/// the group stays unchanged.
fn set_group(parent: &OwnedFd, name: &str, group: u32) {
    let group = Some(Gid::from_raw(group));
    let _ = fs::chownat(parent, name, None, group, AtFlags::SYMLINK_NOFOLLOW);
}

/// Owner and mode that the file system gives to a new file.
struct WriteProbe {
    owner: u32,
    supports_modes: bool,
}

impl WriteProbe {
    /// Creates and deletes the probe file. `stat` describes the directory.
    fn run(dir: &OwnedFd, path: &Path, stat: &Stat, uid: u32) -> Result<Self, Error> {
        // The name is unique, so that no other user can create it first.
        let name = format!(".marple-{uid}-{}", IncidentId::new(Timestamp::now()));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::openat(dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
                match errno {
                    // More specific than "permission denied".
                    Errno::ACCESS | Errno::PERM if stat.st_uid != uid => {
                        Error::WrongOwner { path: path.to_owned(), owner: stat.st_uid, user: uid }
                    }
                    errno => io_error("create a file in", path.to_owned(), errno),
                }
            })?;
        let created = read_stat(&file, path);
        let _ = fs::unlinkat(dir, name.as_str(), AtFlags::empty());
        let created = created?;
        Ok(Self { owner: created.st_uid, supports_modes: created.st_mode & 0o077 == 0 })
    }
}

/// Creates the directory at `path` and its missing parents.
fn make_directories(path: &Path, group_read: bool) -> Result<(), Error> {
    let modes = Modes::new(group_read);
    let missing: Vec<&Path> =
        path.ancestors().take_while(|ancestor| ancestor.symlink_metadata().is_err()).collect();
    for path in missing.into_iter().rev() {
        match fs::mkdirat(CWD, path, modes.dir) {
            Ok(()) => {
                // The umask may have removed permissions, including those of the group.
                if let Ok(fd) = open_directory(path)
                    && let Ok(stat) = fs::fstat(&fd)
                {
                    modes.apply(&fd, &FileSystem::new(path, 0, stat.st_gid, true));
                }
            }
            // An existing entry is checked when it is opened, which gives a more specific error.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("create directory", path.to_owned(), errno)),
        }
    }
    Ok(())
}
