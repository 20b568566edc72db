//! Where a store is: the directory of the settings, or one of its own in that.
//!
//! Captures hold secrets, and whoever can write into the directory of incidents can make marple delete or hand out
//! files of theirs. So the directory must be writable by its owner alone, and that must be us. The mount point of a
//! volume often is neither: an `emptyDir` is 0777, a volume with `fsGroup` 2775 and root's, a random user ID owns
//! nothing. In such a directory the store makes `marple-{uid}`, 0700. The name is the same after a restart, so that
//! the incidents of the process before are found.
//!
//! Others may write into the mount point, so nothing there is trusted by its name: a link, a file or a directory of
//! another user that has the name is passed over for the next, `marple-{uid}-2`. It is checked through the descriptor.
//!
//! What "ours" means is a question to the file system: it may show files under another owner (root of an NFS
//! export with `root_squash`) or with fixed modes (vfat, SMB, object stores). A probe, a file created exclusively and
//! removed at once, shows owner and mode of what we make. Where modes are fixed no directory is private; the one of
//! the settings is used as it is then, with a warning.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jiff::Timestamp;
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::dir::{Dir, Modes, failed, open_directory, plain};
use super::error::Error;
use super::file_system::{Feature, FileSystem};
use crate::base::{IncidentId, warnings};

/// The topic of the warning that says which directory is used.
const TOPIC: &str = "store.place";

/// How many names are tried for a directory of our own. Each but the first was taken by another user, who would
/// have to go on forever to keep us out.
const MOST_NAMES: u32 = 64;

/// The place of a store: what the settings say, and the directory that is in use. Clones share it.
#[derive(Clone, Debug)]
pub struct Location(Arc<Place>);

#[derive(Debug)]
struct Place {
    /// What the settings say.
    configured: PathBuf,
    /// The directory of the store that was opened last.
    opened: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    path: Option<PathBuf>,
    root: Weak<Dir>,
}

impl Location {
    /// The place that is to be at `dir`.
    pub fn new(dir: &Path) -> Self {
        let configured = plain(dir);
        Self(Arc::new(Place { configured, opened: Mutex::default() }))
    }

    /// The directory of incidents: the one in use, or what the settings say while none is.
    pub fn path(&self) -> PathBuf {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.path.clone().unwrap_or_else(|| self.0.configured.clone())
    }

    /// The directory that a store is to be made in.
    pub(super) fn configured(&self) -> &Path {
        &self.0.configured
    }

    pub(super) fn set(&self, root: &Arc<Dir>) {
        let opened = Opened { path: Some(root.path().to_owned()), root: Arc::downgrade(root) };
        *self.0.opened.lock().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    /// The directory, to be read: the writer's own descriptor, so that no other directory takes its place; without
    /// a writer in this process, what is there.
    pub(super) fn root(&self) -> Result<Arc<Dir>, Error> {
        let opened = self.0.opened.lock().unwrap_or_else(PoisonError::into_inner).root.upgrade();
        match opened.filter(|root| !root.is_removed()) {
            Some(root) => Ok(root),
            None => existing(&self.0.configured).map(Arc::new),
        }
    }
}

/// The directory of a store, and what is to be said about it.
pub(super) struct Chosen {
    pub(super) dir: Dir,
    remark: Option<String>,
}

impl Chosen {
    /// Reports which directory is used, once it is.
    pub(super) fn report(&self) {
        match &self.remark {
            Some(remark) => warnings::set(TOPIC, remark.clone()),
            None => warnings::clear(TOPIC),
        }
    }
}

/// Makes the directory for a store at `path`, with its parents, or one of its own in `path`.
pub(super) fn make(path: &Path, group_read: bool) -> Result<Chosen, Error> {
    let path = plain(path);
    make_directories(&path, group_read)?;
    let fd = open_directory(&path)?;
    let stat = look(&fd, &path)?;
    let us = geteuid().as_raw();
    if is_private(&stat, us) {
        return Ok(Chosen { dir: dir(fd, path, us, &stat), remark: None });
    }
    let remark = |own: &Dir| {
        format!(
            "{} can be written by others (mode {:04o}, user {}): incidents are in {}, which only this user can write; \
             set `dir` to a directory of this user's alone to choose the place",
            path.display(),
            mode(&stat),
            stat.st_uid,
            own.path().display(),
        )
    };
    // The one of the process before. It needs no room, which there may not be.
    if let Some(dir) = names(us).find_map(|name| own(&fd, &path.join(&name), &name, us)) {
        let remark = Some(remark(&dir));
        return Ok(Chosen { dir, remark });
    }
    let probe = Probe::make(&fd, &path, &stat, us)?;
    if is_private(&stat, probe.owner) {
        return Ok(Chosen { dir: dir(fd, path, probe.owner, &stat), remark: None });
    }
    if !probe.keeps_modes {
        let dir = dir(fd, path, probe.owner, &stat);
        dir.file_system().lacks(Feature::Modes, |path| {
            format!(
                "the file system of {path} keeps no modes: other users may read captures, which hold secrets, and \
                 remove them; mount it with a umask of 077 and this user's ID, or set `dir` to another one"
            )
        });
        return Ok(Chosen { dir, remark: None });
    }
    let wanted = Modes::of(group_read).dir;
    for name in names(us) {
        match fs::mkdirat(&fd, name.as_str(), wanted) {
            Ok(()) if group_read => hand_down(&fd, &name, stat.st_gid),
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make the directory", path.join(name), errno)),
        }
        if let Some(dir) = own(&fd, &path.join(&name), &name, probe.owner) {
            let remark = Some(remark(&dir));
            return Ok(Chosen { dir, remark });
        }
    }
    Err(Error::Writable { path, mode: mode(&stat) })
}

/// The directory of a store at `path`, to be read.
fn existing(path: &Path) -> Result<Dir, Error> {
    let outer = Dir::open(path)?;
    let fd = open_directory(path)?;
    let us = geteuid().as_raw();
    if is_private(&look(&fd, path)?, us) {
        return Ok(outer);
    }
    let own = names(us).find_map(|name| own(&fd, &path.join(&name), &name, us));
    Ok(own.unwrap_or(outer))
}

/// Whether only `us` can write into what `stat` is of.
fn is_private(stat: &Stat, us: u32) -> bool {
    stat.st_uid == us && stat.st_mode & 0o022 == 0
}

#[allow(clippy::unnecessary_cast, reason = "the width differs between systems")]
fn mode(stat: &Stat) -> u32 {
    Mode::from_raw_mode(stat.st_mode).bits() as u32
}

fn look(fd: &OwnedFd, path: &Path) -> Result<Stat, Error> {
    fs::fstat(fd).map_err(|errno| failed("look at", path.to_owned(), errno))
}

fn dir(fd: OwnedFd, path: PathBuf, owner: u32, stat: &Stat) -> Dir {
    let file_system = FileSystem::new(&path, owner, stat.st_gid, stat.st_nlink > 0);
    Dir::new(fd, path, Arc::new(file_system))
}

fn names(us: u32) -> impl Iterator<Item = String> {
    let first = format!("marple-{us}");
    let others = (2..=MOST_NAMES).map(move |number| format!("marple-{us}-{number}"));
    std::iter::once(first).chain(others)
}

/// The directory `name` in `parent` if it belongs to `owner` and nobody else can write into it.
fn own(parent: &OwnedFd, path: &Path, name: &str, owner: u32) -> Option<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(parent, name, flags, Mode::empty()).ok()?;
    let stat = fs::fstat(&fd).ok()?;
    is_private(&stat, owner).then(|| dir(fd, path.to_owned(), owner, &stat))
}

/// Gives the directory `name` in `parent` the group `group`, so that it is the volume's even if the mount point does
/// not hand its group down. A group that we are not in cannot be given; ours stays then.
fn hand_down(parent: &OwnedFd, name: &str, group: u32) {
    let group = Some(Gid::from_raw(group));
    let _ = fs::chownat(parent, name, None, group, AtFlags::SYMLINK_NOFOLLOW);
}

/// What a file system makes of a file of ours.
struct Probe {
    owner: u32,
    keeps_modes: bool,
}

impl Probe {
    /// `stat` is of the directory.
    fn make(dir: &OwnedFd, path: &Path, stat: &Stat, us: u32) -> Result<Self, Error> {
        // Not a name that another could have made first.
        let name = format!(".marple-{us}-{}", IncidentId::new(Timestamp::now()));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            fs::openat(dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
                match errno {
                    // It says more than "permission denied".
                    Errno::ACCESS | Errno::PERM if stat.st_uid != us => {
                        Error::NotOurs { path: path.to_owned(), owner: stat.st_uid, us }
                    }
                    errno => failed("create a file in", path.to_owned(), errno),
                }
            })?;
        let made = look(&file, path);
        let _ = fs::unlinkat(dir, name.as_str(), AtFlags::empty());
        let made = made?;
        Ok(Self { owner: made.st_uid, keeps_modes: made.st_mode & 0o077 == 0 })
    }
}

/// Makes the directory at `path` and those above it that are not there.
fn make_directories(path: &Path, group_read: bool) -> Result<(), Error> {
    let modes = Modes::of(group_read);
    let missing: Vec<&Path> =
        path.ancestors().take_while(|it| it.symlink_metadata().is_err()).collect();
    for path in missing.into_iter().rev() {
        match fs::mkdirat(CWD, path, modes.dir) {
            Ok(()) => {
                // The umask may have taken bits, the group's too.
                if let Ok(fd) = open_directory(path)
                    && let Ok(stat) = fs::fstat(&fd)
                {
                    modes.settle(&fd, &FileSystem::new(path, 0, stat.st_gid, true));
                }
            }
            // What is there is looked at when it is opened, which says more than "exists".
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make the directory", path.to_owned(), errno)),
        }
    }
    Ok(())
}
