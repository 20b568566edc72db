//! An open directory and the operations in it.
//!
//! All calls go through the descriptor (`openat` and related calls) with a single name, and none
//! follows a link. So renaming the directory, or replacing it by a link, during an operation cannot
//! redirect the operation. The stored path is used in messages only.

mod modes;
mod write;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::{Resource, geteuid, getrlimit};

use super::error::Error;
#[cfg(target_os = "linux")]
use super::file_system::is_refusal;
use super::file_system::{FileSystem, FsFeature};
use super::names::PART_SUFFIX;
use crate::base::{Bytes, spare};

pub(super) use modes::Modes;
pub(super) use write::NamingResult;

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// The process that opened the directory. A forked child has another pid and must not write.
    pid: u32,
    file_system: Arc<FileSystem>,
}

/// Size and free space of a file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskSpace {
    pub(super) total: u64,
    pub(super) free: u64,
}

impl Dir {
    pub(super) fn new(fd: OwnedFd, path: PathBuf, file_system: Arc<FileSystem>) -> Self {
        Self { fd, path, pid: std::process::id(), file_system }
    }

    /// Opens the directory at `path` for reading, regardless of its owner. The last component is
    /// not followed if it is a link.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let path = normalize_path(path);
        let fd = open_directory(&path)?;
        let stat = fs::fstat(&fd).map_err(|errno| io_error("stat", path.clone(), errno))?;
        let user = geteuid().as_raw();
        let file_system = FileSystem::new(&path, user, stat.st_gid, stat.st_nlink > 0);
        Ok(Self::new(fd, path, Arc::new(file_system)))
    }

    /// Opens the directory `name` in this one.
    pub(super) fn subdir(&self, name: &str) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file_system = Arc::clone(&self.file_system);
        open_at(&self.fd, name, flags, Mode::empty())
            .map(|fd| Self { fd, path: self.path_of(name), pid: self.pid, file_system })
            .map_err(|errno| self.error("open directory", name, errno))
    }

    /// Creates the directory `name` in this one.
    pub(super) fn make_subdir(&self, name: &str) -> Result<Self, Error> {
        self.check_process()?;
        fs::mkdirat(&self.fd, name, self.modes().dir)
            .map_err(|errno| self.error("create directory", name, errno))?;
        let dir = match self.subdir(name) {
            // The umask removed the permissions of the owner.
            Err(Error::Io { .. }) if self.modes().restore_owner_access(&self.fd, name) => {
                self.subdir(name)?
            }
            opened => opened?,
        };
        self.modes().apply(&dir.fd, &self.file_system);
        Ok(dir)
    }

    fn modes(&self) -> Modes {
        Modes::new(self.file_system.group_read())
    }

    /// Sets the modes of this directory and of all files and directories created later.
    pub(super) fn set_group_read(&self, group_read: bool) {
        self.file_system.set_group_read(group_read);
        // Group access is added but never removed: the user may have set the mode of the directory.
        if group_read && !self.is_inherited() {
            self.modes().apply(&self.fd, &self.file_system);
        }
    }

    pub(super) fn file_system(&self) -> &Arc<FileSystem> {
        &self.file_system
    }

    pub(super) fn with_path(self, path: PathBuf) -> Self {
        Self { path, ..self }
    }

    /// Returns an error in a process forked from the one that opened the directory.
    pub(super) fn check_process(&self) -> Result<(), Error> {
        if self.is_inherited() {
            return Err(Error::Forked { path: self.path.clone(), opener: self.pid });
        }
        Ok(())
    }

    /// Returns `true` in a process forked from the one that opened the directory.
    pub(super) fn is_inherited(&self) -> bool {
        std::process::id() != self.pid
    }

    /// Returns `true` if the directory was deleted after it was opened.
    pub(super) fn is_removed(&self) -> bool {
        self.file_system.has_link_counts && fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Returns the path at which the directory was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in the directory, or of the directory itself if `name` is empty.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }

    /// Returns all names except `.` and `..`. Invalid UTF-8 is replaced, so such a name matches no
    /// pattern.
    pub(super) fn entry_names(&self) -> Result<Vec<String>, Error> {
        let list = || -> rustix::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in spare::open_with_retry(|| fs::Dir::read_from(&self.fd))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        };
        list().map_err(|errno| self.error("list", "", errno))
    }

    /// Returns the status of `name` without following links, or `None` if it does not exist.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, Error> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("stat", name, errno)),
        }
    }

    /// Returns `true` if the directory belongs to this process's user.
    pub(super) fn is_owned_by_this_user(&self) -> bool {
        let own_users = [geteuid().as_raw(), self.file_system.owner];
        fs::fstat(&self.fd).is_ok_and(|stat| own_users.contains(&stat.st_uid))
    }

    /// Returns the space of the file system as available to unprivileged users. `None` if it
    /// reports no blocks, as object stores do.
    pub(super) fn disk_space(&self) -> Option<DiskSpace> {
        let stat = fs::fstatvfs(&self.fd).ok()?;
        let in_bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize.max(1));
        (stat.f_blocks > 0)
            .then(|| DiskSpace { total: in_bytes(stat.f_blocks), free: in_bytes(stat.f_bavail) })
    }

    /// Returns `true` if files are in memory (tmpfs, ramfs), where they count against the memory
    /// limit.
    #[cfg(target_os = "linux")]
    pub(super) fn is_in_memory(&self) -> bool {
        const TMPFS: fs::FsWord = 0x0102_1994;
        const RAMFS: fs::FsWord = 0x8584_58f6_u32 as fs::FsWord;
        fs::fstatfs(&self.fd).is_ok_and(|stat| [TMPFS, RAMFS].contains(&stat.f_type))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn is_in_memory(&self) -> bool {
        false
    }

    /// Creates the file `name`, which must not exist.
    pub(super) fn create(&self, name: &str) -> Result<File, Error> {
        self.check_process()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = open_at(&self.fd, name, flags, self.modes().file)
            .map_err(|errno| self.error("create", name, errno))?;
        self.modes().apply(&file, &self.file_system);
        Ok(File::from(file))
    }

    /// Opens the file `name` for reading and writing. Creates it with mode 0600 if it does not
    /// exist.
    pub(super) fn open_or_create(&self, name: &str) -> Result<File, Error> {
        self.check_process()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open_at(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|errno| self.error("open", name, errno))
    }

    /// Creates a file without a name, for [`Self::link`]. `None` if the file system does not
    /// support it.
    #[cfg(target_os = "linux")]
    pub(super) fn create_unnamed(&self) -> Result<Option<File>, Error> {
        self.check_process()?;
        if !self.file_system.supports(FsFeature::UnnamedFiles) {
            return Ok(None);
        }
        // Opened readable, so that the file can be copied if it cannot be linked.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match open_at(&self.fd, ".", flags, self.modes().file) {
            Ok(fd) => {
                self.modes().apply(&fd, &self.file_system);
                Ok(Some(File::from(fd)))
            }
            // Kernels and file systems without `O_TMPFILE` fail as if a directory were opened for
            // writing.
            Err(errno) if is_refusal(errno) || (errno == Errno::NOENT && !self.is_removed()) => {
                self.report_no_unnamed_files("open(O_TMPFILE)", errno);
                Ok(None)
            }
            Err(errno) => Err(self.error("create a file in", "", errno)),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn create_unnamed(&self) -> Result<Option<File>, Error> {
        Ok(None)
    }

    fn report_no_unnamed_files(&self, call: &str, errno: Errno) {
        self.file_system.report_missing(FsFeature::UnnamedFiles, |path| {
            format!(
                "unnamed files are not supported in {path} ({call}: {errno}): artifacts are \
                 written to files that end in `{PART_SUFFIX}` and renamed; after a kill, such a \
                 file remains until the next start"
            )
        });
    }

    /// Opens the regular file `name` for reading. `O_NONBLOCK` keeps a planted pipe or device from
    /// blocking.
    pub(super) fn open_file(&self, name: &str) -> Result<File, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match open_at(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            // FreeBSD returns EMLINK where other systems return ELOOP.
            Err(Errno::LOOP | Errno::MLINK) => {
                return Err(Error::NoArtifact { path: self.path_of(name) });
            }
            Err(errno) => return Err(self.error("open", name, errno)),
        };
        let stat = fs::fstat(&fd).map_err(|errno| self.error("stat", name, errno))?;
        if !is_file(&stat) {
            return Err(Error::NoArtifact { path: self.path_of(name) });
        }
        Ok(File::from(fd))
    }

    /// Reads the whole regular file `name`, or fails if it is larger than `limit`.
    pub(super) fn read(&self, name: &str, limit: Bytes) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.open_file(name)?
            .take(limit.get().saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::io("read", self.path_of(name), source))?;
        if bytes.len() as u64 > limit.get() {
            return Err(Error::TooLarge { path: self.path_of(name), limit });
        }
        Ok(bytes)
    }

    fn error(&self, operation: &'static str, name: &str, errno: Errno) -> Error {
        // The error of a call in a deleted directory differs between calls and file systems.
        if self.is_removed() {
            return Error::Removed { path: self.path_of(name) };
        }
        io_error(operation, self.path_of(name), errno)
    }
}

/// Opens `name` in `dir`, using a reserved descriptor if no other is free.
fn open_at(
    dir: &impl AsFd,
    name: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    spare::open_with_retry(|| fs::openat(dir, name, flags, mode))
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Opens the directory at `path` without following a link in the last component.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open_at(&CWD, path, flags, Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::LOOP | Errno::MLINK | Errno::NOTDIR) => {
            let is_link = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink());
            let file_type = if is_link { "a symbolic link" } else { "a file" };
            Err(Error::NotADirectory { path: path.to_owned(), file_type })
        }
        Err(errno) => Err(io_error("open directory", path.to_owned(), errno)),
    }
}

/// Returns the file size at which the kernel sends SIGXFSZ, which ends the process.
pub(super) fn file_size_limit() -> u64 {
    getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX)
}

pub(super) fn io_error(operation: &'static str, path: PathBuf, errno: Errno) -> Error {
    Error::io(operation, path, errno.into())
}

/// Returns `path` as an absolute path without a trailing slash or dot, with which the kernel would
/// follow a link in the last component.
pub(super) fn normalize_path(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
}
