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
    pub(in crate::store) fn of(group_read: bool) -> Self {
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
    pub(in crate::store) fn settle(self, made: impl AsFd, file_system: &FileSystem) {
        let Ok(stat) = fs::fstat(&made) else { return };
        let wanted = if super::is_dir(&stat) { self.dir } else { self.file };
        let bits = Mode::from_raw_mode(stat.st_mode);
        if self.group_read && stat.st_gid != file_system.group {
            let done = fs::fchown(&made, None, Some(Gid::from_raw(file_system.group)));
            if let Err(errno) = done {
                lacks_group(file_system, "fchown", errno);
            }
        }
        if bits & permissions() == wanted {
            return;
        }
        let inherited = bits & Mode::SGID;
        let changed = fs::fchmod(&made, wanted | inherited).or_else(|errno| {
            if inherited.is_empty() { Err(errno) } else { fs::fchmod(&made, wanted) }
        });
        // Some file systems accept any mode and keep their own.
        let now = fs::fstat(&made).map_or(bits, |stat| Mode::from_raw_mode(stat.st_mode));
        if !(now & permissions()).difference(wanted).is_empty() {
            file_system.lacks(FsFeature::Modes, |path| {
                let why = changed.err().map_or(String::new(), |errno| format!(" (fchmod: {errno})"));
                format!(
                    "the file system of {path} keeps no modes{why}: files there have mode {:04o}, so other users may \
                     read captures, which hold secrets; mount it with a umask of 077, or set `dir` to another one",
                    now.bits()
                )
            });
        } else if self.group_read && !now.contains(wanted) {
            let errno = changed.err().unwrap_or(rustix::io::Errno::OPNOTSUPP);
            lacks_group(file_system, "fchmod", errno);
        }
    }

    /// Restores the owner's permissions of the directory `name` in `dir`, which a umask of 0700
    /// removed.
    pub(in crate::store) fn open_up(self, dir: impl AsFd, name: &str) -> bool {
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        let is_dir = fs::statat(&dir, name, itself).is_ok_and(|stat| super::is_dir(&stat));
        is_dir && fs::chmodat(dir, name, self.dir, AtFlags::empty()).is_ok()
    }
}

fn permissions() -> Mode {
    Mode::RWXU | Mode::RWXG | Mode::RWXO
}

fn lacks_group(file_system: &FileSystem, call: &str, errno: rustix::io::Errno) {
    let group = file_system.group;
    file_system.lacks(FsFeature::GroupRead, |path| {
        format!(
            "members of group {group} cannot read all of {path} ({call}: {errno}): store.group_read needs this \
             process in that group (fsGroup, supplementalGroups)"
        )
    });
}
