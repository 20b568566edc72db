//! Access rights of the files and directories of a store.

use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, Gid, Mode};

use super::super::file_system::{FileSystem, FsFeature};

#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Modes {
    pub(in crate::store) dir: Mode,
    pub(in crate::store) file: Mode,
    group_read: bool,
}

impl Modes {
    /// Returns modes 0700 and 0600, or 0750 and 0640 if the group may read.
    pub(in crate::store) fn new(group_read: bool) -> Self {
        let owner = Self { dir: Mode::RWXU, file: Mode::RUSR.union(Mode::WUSR), group_read: false };
        if !group_read {
            return owner;
        }
        let dir = owner.dir | Mode::RGRP | Mode::XGRP;
        Self { dir, file: owner.file | Mode::RGRP, group_read: true }
    }

    /// Sets mode and group of a new file or directory. The umask or the parent's flags may have
    /// changed them.
    ///
    /// An inherited set-group-ID bit of a directory is kept if possible but never required: seccomp
    /// filters that forbid the bit reject any `fchmod` with it, even with correct modes.
    pub(in crate::store) fn apply(self, fd: impl AsFd, file_system: &FileSystem) {
        let Ok(stat) = fs::fstat(&fd) else { return };
        let wanted = if super::is_dir(&stat) { self.dir } else { self.file };
        let bits = Mode::from_raw_mode(stat.st_mode);
        if self.group_read && stat.st_gid != file_system.group {
            let done = fs::fchown(&fd, None, Some(Gid::from_raw(file_system.group)));
            if let Err(errno) = done {
                report_no_group_access(file_system, "fchown", errno);
            }
        }
        if bits & permission_mask() == wanted {
            return;
        }
        let inherited = bits & Mode::SGID;
        let changed = fs::fchmod(&fd, wanted | inherited).or_else(|errno| {
            if inherited.is_empty() { Err(errno) } else { fs::fchmod(&fd, wanted) }
        });
        // Some file systems accept any mode and keep their own.
        let actual = fs::fstat(&fd).map_or(bits, |stat| Mode::from_raw_mode(stat.st_mode));
        if !(actual & permission_mask()).difference(wanted).is_empty() {
            file_system.report_missing(FsFeature::Modes, |path| {
                let cause =
                    changed.err().map_or(String::new(), |errno| format!(" (fchmod: {errno})"));
                format!(
                    "the file system of {path} does not store file modes{cause}: files there have \
                     mode {:04o}, so other users may read captures, which contain secrets; mount \
                     it with a umask of 077, or set `dir` to another file system",
                    actual.bits()
                )
            });
        } else if self.group_read && !actual.contains(wanted) {
            let errno = changed.err().unwrap_or(rustix::io::Errno::OPNOTSUPP);
            report_no_group_access(file_system, "fchmod", errno);
        }
    }

    /// Restores the owner's permissions of the directory `name` in `dir`, which a umask of 0700
    /// removed.
    pub(in crate::store) fn restore_owner_access(self, dir: impl AsFd, name: &str) -> bool {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let is_dir = fs::statat(&dir, name, no_follow).is_ok_and(|stat| super::is_dir(&stat));
        is_dir && fs::chmodat(dir, name, self.dir, AtFlags::empty()).is_ok()
    }
}

fn permission_mask() -> Mode {
    Mode::RWXU | Mode::RWXG | Mode::RWXO
}

fn report_no_group_access(file_system: &FileSystem, call: &str, errno: rustix::io::Errno) {
    let group = file_system.group;
    file_system.report_missing(FsFeature::GroupRead, |path| {
        format!(
            "members of group {group} cannot read all files in {path} ({call}: {errno}): \
             store.group_read requires this process to be in that group (fsGroup, \
             supplementalGroups)"
        )
    });
}
