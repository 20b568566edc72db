//! Atomic and durable creation of files and directories under unused names.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;

use rustix::fs::{self, AtFlags, CWD};
use rustix::io::Errno;

use super::super::error::{Error, StoreLimit};
use super::super::file_system::{FsFeature, is_refusal, is_sync_unsupported};
use super::super::names::PART_SUFFIX;
use super::{Dir, file_size_limit};

/// Result of an attempt to name a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum NamingResult {
    /// The file has the name.
    Named,
    /// Another file has the name.
    NameExists,
    /// The name is too long for the file system.
    NameTooLong,
}

impl Dir {
    /// Writes `bytes` to the file `name`, replacing an existing one; see [`Self::replace_with`].
    pub(in crate::store) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.replace_with(name, bytes.len() as u64, |file| file.write_all(bytes))
    }

    /// Replaces the file `name` by the output of `write`, which has about `size` bytes.
    ///
    /// 1. Write `{name}.part`. A crash leaves an incomplete file, which the next start deletes.
    /// 2. Sync it. A crash leaves a complete file, which the next start deletes too: the old file
    ///    is still the valid one.
    /// 3. Rename it over `name`. A reader gets the old file or the new one, never a mixture. A link
    ///    planted as `name` is replaced, not followed. After a power failure either file may exist.
    /// 4. Sync the directory. The new file is durable from here on.
    pub(in crate::store) fn replace_with(
        &self,
        name: &str,
        size: u64,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.check_process()?;
        if size > file_size_limit() {
            return Err(Error::Full { path: self.path_of(name), limit: StoreLimit::FileSize });
        }
        let part = format!("{name}{PART_SUFFIX}");
        self.unlink(&part)?;
        let mut file = self.create(&part)?;
        let written = write(&mut file)
            .and_then(|()| self.sync_file(&file))
            .map_err(|source| Error::io("write", self.path_of(name), source))
            .and_then(|()| {
                fs::renameat(&self.fd, &part, &self.fd, name)
                    .map_err(|errno| self.error("replace", name, errno))
            });
        if let Err(error) = written {
            // A remaining part file takes space until the next start. The first error is the one to
            // report.
            let _ = self.unlink(&part);
            return Err(error);
        }
        self.sync()
    }

    /// Links `file`, which [`Self::create_unnamed`] created, as `name`. `None` if the file system
    /// does not support it.
    pub(in crate::store) fn link(
        &self,
        file: &File,
        name: &str,
    ) -> Result<Option<NamingResult>, Error> {
        self.check_process()?;
        // Uses the thread, not the process: `/proc/self` is unusable after the main thread has
        // exited.
        let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        let linked = match fs::linkat(CWD, path, &self.fd, name, AtFlags::SYMLINK_FOLLOW) {
            // Without `/proc`, Linux 6.10 and privileged processes can link the descriptor itself.
            Err(errno) if errno == Errno::NOENT || is_refusal(errno) => {
                let name_errors = [Errno::EXIST, Errno::NAMETOOLONG];
                link_descriptor(file, self, name)
                    .map_err(|other| if name_errors.contains(&other) { other } else { errno })
            }
            linked => linked,
        };
        match linked {
            Err(errno) if is_refusal(errno) || (errno == Errno::NOENT && !self.is_removed()) => {
                self.report_no_unnamed_files("linkat", errno);
                Ok(None)
            }
            linked => self.naming_result(linked, "create", name).map(Some),
        }
    }

    /// Copies `file` to a new file named `part` and syncs it.
    pub(in crate::store) fn copy(&self, mut file: &File, part: &str) -> Result<File, Error> {
        let mut copy = self.create(part)?;
        let copied = file
            .rewind()
            .and_then(|()| io::copy(&mut file, &mut copy))
            .and_then(|_| self.sync_file(&copy));
        match copied {
            Ok(()) => Ok(copy),
            Err(source) => {
                let _ = self.unlink(part);
                Err(Error::io("copy to", self.path_of(part), source))
            }
        }
    }

    /// Renames the file `from` to `to` without replacing.
    pub(in crate::store) fn rename_file(
        &self,
        from: &str,
        to: &str,
    ) -> Result<NamingResult, Error> {
        self.check_process()?;
        if self.file_system.supports(FsFeature::RenameNoReplace) {
            match self.rename_no_replace(from, to) {
                Err(errno) if is_refusal(errno) => self.report_no_rename_no_replace(errno),
                result => return self.naming_result(result, "rename a file to", to),
            }
        }
        if self.file_system.supports(FsFeature::HardLinks) {
            match fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty()) {
                Ok(()) => {
                    // If the old name cannot be removed, the next start deletes it.
                    let _ = fs::unlinkat(&self.fd, from, AtFlags::empty());
                    return Ok(NamingResult::Named);
                }
                // The kernel refuses to link a file with a link count of 0, which some file systems
                // report for every file.
                Err(errno)
                    if is_refusal(errno) || (errno == Errno::NOENT && !self.is_removed()) =>
                {
                    self.file_system.report_missing(FsFeature::HardLinks, |path| {
                        format!(
                            "hard links are not supported in {path} (linkat: {errno}): each rename \
                             first checks that the name is free, which does not exclude another \
                             process that creates files there"
                        )
                    });
                }
                Err(errno) => return self.naming_result(Err(errno), "rename a file to", to),
            }
        }
        // No other program creates files here: the directory is private, and the incident belongs
        // to this process.
        if self.stat(to)?.is_some() {
            return Ok(NamingResult::NameExists);
        }
        self.naming_result(fs::renameat(&self.fd, from, &self.fd, to), "rename a file to", to)
    }

    /// Renames the directory `from` to `to` without replacing. Returns `false` if the file system
    /// cannot rename directories.
    pub(in crate::store) fn rename_dir(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.check_process()?;
        if !self.file_system.supports(FsFeature::RenameDir) {
            return Ok(false);
        }
        let can_refuse_replace = self.file_system.supports(FsFeature::RenameNoReplace);
        let renamed = match can_refuse_replace.then(|| self.rename_no_replace(from, to)) {
            Some(Err(errno)) if is_refusal(errno) => None,
            result => result,
        };
        // Plain `rename` can replace an empty directory, but nothing else.
        let is_plain = renamed.is_none();
        match renamed.unwrap_or_else(|| fs::renameat(&self.fd, from, &self.fd, to)) {
            Ok(()) => Ok(true),
            Err(errno) if is_plain && is_refusal(errno) => {
                self.file_system.report_missing(FsFeature::RenameDir, |path| {
                    format!(
                        "directories in {path} cannot be renamed (renameat: {errno}): incidents \
                         are created and removed in place, so a kill at that moment leaves an \
                         incident with missing files"
                    )
                });
                Ok(false)
            }
            Err(errno) => Err(self.error("rename a directory to", to, errno)),
        }
    }

    /// Deletes the file or link `name`. Succeeds if it does not exist.
    pub(in crate::store) fn unlink(&self, name: &str) -> Result<(), Error> {
        self.check_process()?;
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// Deletes the empty directory `name`.
    pub(in crate::store) fn rmdir(&self, name: &str) -> Result<(), Error> {
        self.check_process()?;
        fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|errno| self.error("remove", name, errno))
    }

    /// Syncs `file`. Reports a warning and succeeds if the file system does not support it.
    pub(in crate::store) fn sync_file(&self, file: &File) -> io::Result<()> {
        if !self.file_system.supports(FsFeature::Sync) {
            return Ok(());
        }
        let fsync_error = match fs::fsync(file) {
            Err(errno) if is_sync_unsupported(errno) => errno,
            result => return result.map_err(io::Error::from),
        };
        match file.sync_data() {
            Err(error) if Errno::from_io_error(&error).is_some_and(is_sync_unsupported) => {
                self.file_system.report_missing(FsFeature::Sync, |path| {
                    format!(
                        "files in {path} cannot be synced (fsync: {fsync_error}): after a power \
                         failure or a system crash, the last incident may be missing or truncated; \
                         set `dir` to a local disk"
                    )
                });
                Ok(())
            }
            result => result,
        }
    }

    /// Syncs the directory. Reports a warning and succeeds if the file system does not support it.
    pub(in crate::store) fn sync(&self) -> Result<(), Error> {
        if !self.file_system.supports(FsFeature::DirSync) {
            return Ok(());
        }
        match fs::fsync(&self.fd) {
            Ok(()) => Ok(()),
            Err(errno) if is_refusal(errno) => {
                self.file_system.report_missing(FsFeature::DirSync, |path| {
                    format!(
                        "directories in {path} cannot be synced (fsync: {errno}): after a power \
                         failure, the last incident may be missing"
                    )
                });
                Ok(())
            }
            Err(errno) => Err(self.error("sync", "", errno)),
        }
    }

    #[cfg(target_os = "linux")]
    fn rename_no_replace(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        fs::renameat_with(&self.fd, from, &self.fd, to, fs::RenameFlags::NOREPLACE)
    }

    #[cfg(not(target_os = "linux"))]
    fn rename_no_replace(&self, _from: &str, _to: &str) -> rustix::io::Result<()> {
        Err(Errno::NOSYS)
    }

    fn report_no_rename_no_replace(&self, errno: Errno) {
        self.file_system.report_missing(FsFeature::RenameNoReplace, |path| {
            format!(
                "rename without replacement is not supported in {path} (renameat2: {errno}): hard \
                 links are used instead, if supported"
            )
        });
    }

    fn naming_result(
        &self,
        result: rustix::io::Result<()>,
        operation: &'static str,
        name: &str,
    ) -> Result<NamingResult, Error> {
        match result {
            Ok(()) => Ok(NamingResult::Named),
            Err(Errno::EXIST) => Ok(NamingResult::NameExists),
            Err(Errno::NAMETOOLONG) => Ok(NamingResult::NameTooLong),
            Err(errno) => Err(self.error(operation, name, errno)),
        }
    }
}

#[cfg(target_os = "linux")]
fn link_descriptor(file: &File, dir: &Dir, name: &str) -> rustix::io::Result<()> {
    fs::linkat(file, "", &dir.fd, name, AtFlags::EMPTY_PATH)
}

#[cfg(not(target_os = "linux"))]
fn link_descriptor(_file: &File, _dir: &Dir, _name: &str) -> rustix::io::Result<()> {
    Err(Errno::NOSYS)
}
