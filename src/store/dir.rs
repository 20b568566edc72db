//! A directory held open, and everything that is done in it.
//!
//! All calls go through the descriptor (`openat` and its kin) with a single name, and none follows a
//! link: a directory that is renamed, or swapped for a link to somewhere else, while we work cannot lead
//! us astray. The path kept beside the descriptor is for messages only.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Resource, geteuid, getrlimit};

use super::error::{Bound, Error};
use super::names::PART;
use crate::base::Bytes;

const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// The process that opened it.
    pid: u32,
}

/// What a file system has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
}

impl Dir {
    /// The directory at `path`, made with its parents (0700) when it is not there. It must be ours,
    /// not writable by others, and not a link.
    pub(super) fn make(path: &Path) -> Result<Self, Error> {
        let path = plain(path);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        // What is there already is looked at below, which tells more than "exists".
        if let Err(source) = made
            && path.symlink_metadata().is_err()
        {
            return Err(Error::io("make the directory", path, source));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::MLINK | Errno::NOTDIR) => {
                let link = path.symlink_metadata().is_ok_and(|it| it.file_type().is_symlink());
                let what = if link { "a symbolic link" } else { "a file" };
                return Err(Error::NotADirectory { path, what });
            }
            Err(errno) => return Err(failed("open the directory", path, errno)),
        };
        let dir = Self { fd, path, pid: std::process::id() };
        let stat = fs::fstat(&dir.fd).map_err(|errno| dir.failed("look at", "", errno))?;
        let us = geteuid().as_raw();
        if stat.st_uid != us {
            return Err(Error::NotOurs { path: dir.path, owner: stat.st_uid, us });
        }
        if stat.st_mode & 0o022 != 0 {
            let mode = Mode::from_raw_mode(stat.st_mode).bits() as u32;
            return Err(Error::Writable { path: dir.path, mode });
        }
        Ok(dir)
    }

    /// The directory at `path`, to be read, whoever it belongs to.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let path = plain(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path, pid: std::process::id() }),
            Err(errno) => Err(failed("open the directory", path, errno)),
        }
    }

    /// The directory called `name` in this one.
    pub(super) fn subdir(&self, name: &str) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.fd, name, flags, Mode::empty())
            .map(|fd| Self { fd, path: self.at(name), pid: self.pid })
            .map_err(|errno| self.failed("open the directory", name, errno))
    }

    /// A new directory called `name` in this one.
    pub(super) fn make_subdir(&self, name: &str) -> Result<Self, Error> {
        self.check_process()?;
        fs::mkdirat(&self.fd, name, DIR_MODE)
            .map_err(|errno| self.failed("make the directory", name, errno))?;
        self.subdir(name)
    }

    /// The same directory, which has been renamed to `path`.
    pub(super) fn moved_to(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// An error in a process that was forked from the one that opened it.
    pub(super) fn check_process(&self) -> Result<(), Error> {
        if self.is_inherited() {
            return Err(Error::Forked { path: self.path.clone(), opener: self.pid });
        }
        Ok(())
    }

    /// Whether this process was forked from the one that opened it.
    pub(super) fn is_inherited(&self) -> bool {
        std::process::id() != self.pid
    }

    /// Whether it was removed since it was opened.
    pub(super) fn is_removed(&self) -> bool {
        fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Where this directory was when it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where `name` is in it.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// Every name in it but `.` and `..`. One that is not UTF-8 comes out as one that fits no pattern.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let list = || -> rustix::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::Dir::read_from(&self.fd)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        };
        list().map_err(|errno| self.failed("list", "", errno))
    }

    /// What `name` is, itself and not what it may link to; none when it is not there.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, Error> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at", name, errno)),
        }
    }

    /// Whether this directory is the effective user's.
    pub(super) fn is_ours(&self) -> bool {
        fs::fstat(&self.fd).is_ok_and(|stat| stat.st_uid == geteuid().as_raw())
    }

    /// What the file system it is on has, as the file system counts for unprivileged users.
    pub(super) fn space(&self) -> Result<Space, Error> {
        let stat = fs::fstatvfs(&self.fd)
            .map_err(|errno| self.failed("measure the space at", "", errno))?;
        let in_bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total: in_bytes(stat.f_blocks), free: in_bytes(stat.f_bavail) })
    }

    /// Whether what is written here stays in memory (tmpfs, ramfs), where it counts against our own limit.
    #[cfg(target_os = "linux")]
    pub(super) fn is_in_memory(&self) -> bool {
        const TMPFS: fs::FsWord = 0x0102_1994;
        const RAMFS: fs::FsWord = 0x8584_58f6_u32 as fs::FsWord;
        fs::fstatfs(&self.fd).is_ok_and(|it| [TMPFS, RAMFS].contains(&it.f_type))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn is_in_memory(&self) -> bool {
        false
    }

    /// A new file called `name`, 0600.
    pub(super) fn create(&self, name: &str) -> Result<File, Error> {
        self.check_process()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.fd, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(|errno| self.failed("create", name, errno))
    }

    /// The file called `name`, to be read and written, made 0600 when it is not there.
    pub(super) fn open_or_create(&self, name: &str) -> Result<File, Error> {
        self.check_process()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.fd, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(|errno| self.failed("open", name, errno))
    }

    /// A file without a name, 0600, for [`Self::link`]; none where the file system has no such thing.
    #[cfg(target_os = "linux")]
    pub(super) fn unnamed(&self) -> Result<Option<File>, Error> {
        self.check_process()?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match fs::openat(&self.fd, ".", flags, FILE_MODE) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(errno) => Err(self.failed("create a file in", "", errno)),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn unnamed(&self) -> Result<Option<File>, Error> {
        Ok(None)
    }

    /// The regular file called `name`, to be read. A pipe or device planted there does not block.
    pub(super) fn open_file(&self, name: &str) -> Result<File, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            // FreeBSD answers EMLINK where others answer ELOOP.
            Err(Errno::LOOP | Errno::MLINK) => {
                return Err(Error::NoArtifact { path: self.at(name) });
            }
            Err(errno) => return Err(self.failed("open", name, errno)),
        };
        let stat = fs::fstat(&fd).map_err(|errno| self.failed("look at", name, errno))?;
        if !is_file(&stat) {
            return Err(Error::NoArtifact { path: self.at(name) });
        }
        Ok(File::from(fd))
    }

    /// All of the regular file called `name`, unless it is larger than `limit`.
    pub(super) fn read(&self, name: &str, limit: Bytes) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.open_file(name)?
            .take(limit.get().saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::io("read", self.at(name), source))?;
        if bytes.len() as u64 > limit.get() {
            return Err(Error::TooLarge { path: self.at(name), limit });
        }
        Ok(bytes)
    }

    /// Makes `bytes` the file called `name`, in place of what has that name.
    ///
    /// 1. Write `{name}.part`. A crash leaves it, half written; the next start sweeps it.
    /// 2. Sync it. A crash leaves it, whole; swept too: the old file is still the true one.
    /// 3. Rename it over `name`. A reader sees the old file or the new one, never a mixture; a link
    ///    planted as `name` is replaced, not followed. After a power cut either may be there.
    /// 4. Sync the directory. From here the new file stays.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.check_process()?;
        if bytes.len() as u64 > file_size_limit() {
            return Err(Error::Full { path: self.at(name), bound: Bound::FileSize });
        }
        let part = format!("{name}{PART}");
        self.unlink(&part)?;
        let mut file = self.create(&part)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| Error::io("write", self.at(name), source))
            .and_then(|()| {
                fs::renameat(&self.fd, &part, &self.fd, name)
                    .map_err(|errno| self.failed("replace", name, errno))
            });
        if let Err(error) = written {
            // What stays of it takes room until the next start; the first error is the one to tell.
            let _ = self.unlink(&part);
            return Err(error);
        }
        self.sync()
    }

    /// Gives an unnamed file a name. False when something has that name.
    pub(super) fn link(&self, file: &File, name: &str) -> Result<bool, Error> {
        self.check_process()?;
        use std::os::fd::AsRawFd;
        // Through the thread and not the process: `/proc/self` is dead once the main thread has left.
        let unnamed = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        match fs::linkat(CWD, unnamed, &self.fd, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.failed("name the file", name, errno)),
        }
    }

    /// Gives the file called `from` another name. False when something has that name.
    pub(super) fn rename_file(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.check_process()?;
        let renamed = match self.rename_new(from, to) {
            // Other systems have no such call, some network file systems do not know its flag. A
            // link never replaces either; a first name that cannot be removed, the next start sweeps.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let linked = fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty());
                if linked.is_ok() {
                    let _ = fs::unlinkat(&self.fd, from, AtFlags::empty());
                }
                linked
            }
            other => other,
        };
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.failed("rename a file to", to, errno)),
        }
    }

    /// Gives the directory called `from` another name, which nothing must have.
    pub(super) fn rename_dir(&self, from: &str, to: &str) -> Result<(), Error> {
        self.check_process()?;
        match self.rename_new(from, to) {
            // Without that call a directory can take the place of an empty directory, of nothing else.
            Err(Errno::INVAL | Errno::NOSYS) => fs::renameat(&self.fd, from, &self.fd, to),
            other => other,
        }
        .map_err(|errno| self.failed("rename a directory to", to, errno))
    }

    /// Removes the file or link called `name`; no error when it is not there.
    pub(super) fn unlink(&self, name: &str) -> Result<(), Error> {
        self.check_process()?;
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", name, errno)),
        }
    }

    /// Removes the empty directory called `name`.
    pub(super) fn rmdir(&self, name: &str) -> Result<(), Error> {
        self.check_process()?;
        fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|errno| self.failed("remove", name, errno))
    }

    /// Makes the names in it last.
    pub(super) fn sync(&self) -> Result<(), Error> {
        match fs::fsync(&self.fd) {
            // Some file systems (FUSE, CIFS) do not sync directories; there is nothing else to call.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(self.failed("sync", "", errno)),
        }
    }

    /// Renames without replacing.
    #[cfg(target_os = "linux")]
    fn rename_new(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        fs::renameat_with(&self.fd, from, &self.fd, to, fs::RenameFlags::NOREPLACE)
    }

    #[cfg(not(target_os = "linux"))]
    fn rename_new(&self, _from: &str, _to: &str) -> rustix::io::Result<()> {
        Err(Errno::NOSYS)
    }

    fn failed(&self, doing: &'static str, name: &str, errno: Errno) -> Error {
        // What the system says of a directory that was removed differs between calls and file systems.
        if fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0) {
            return Error::Removed { path: self.at(name) };
        }
        failed(doing, self.at(name), errno)
    }
}

/// Whether it is a directory.
pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether it is a regular file.
pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The size beyond which the kernel answers a write with SIGXFSZ, which ends the process.
pub(super) fn file_size_limit() -> u64 {
    getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX)
}

fn failed(doing: &'static str, path: PathBuf, errno: Errno) -> Error {
    Error::io(doing, path, errno.into())
}

/// `path` from the root on, and without the trailing slash or dot that would make the system follow a
/// link in its last place.
fn plain(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}
