//! Optional features of the file system, and the fallbacks without them.
//!
//! | feature | missing on | fallback |
//! |---|---|---|
//! | lock | some network and FUSE mounts, gVisor, seccomp | `fcntl` lock, else the `.lock` record |
//! | sync | some FUSE and object-store mounts, seccomp | `fdatasync`, else none |
//! | sync of directories | FUSE, SMB | none |
//! | unnamed files | NFS, FUSE, old overlayfs, no `/proc` | a file that ends in `.part` |
//! | rename without replacing | NFS, FUSE, SMB | a hard link, else a check before the rename |
//! | renaming directories | object-store mounts | incidents created and removed in place |
//! | modes | vfat, SMB, object-store mounts | none |
//!
//! A feature is tried when it is first needed. The first refusal is stored and reported as a
//! warning, and the feature is not tried again. Errors that mean a failure instead of a missing
//! feature (`EIO`, `ENOSPC`, `EDQUOT`, `EROFS`) never count as a refusal.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::Errno;

use crate::base::warnings;

/// A feature a file system can lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FsFeature {
    Lock,
    Sync,
    DirSync,
    UnnamedFiles,
    RenameNoReplace,
    RenameDir,
    HardLinks,
    Modes,
    GroupRead,
}

impl FsFeature {
    const ALL: [Self; 9] = [
        Self::Lock,
        Self::Sync,
        Self::DirSync,
        Self::UnnamedFiles,
        Self::RenameNoReplace,
        Self::RenameDir,
        Self::HardLinks,
        Self::Modes,
        Self::GroupRead,
    ];

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Returns the topic of the warning.
    const fn topic(self) -> &'static str {
        match self {
            Self::Lock => "store.lock",
            Self::Sync => "store.sync",
            Self::DirSync => "store.directory_sync",
            Self::UnnamedFiles => "store.unnamed_files",
            Self::RenameNoReplace => "store.rename",
            Self::RenameDir => "store.directory_rename",
            Self::HardLinks => "store.links",
            Self::Modes => "store.modes",
            Self::GroupRead => "store.group_read",
        }
    }
}

/// Features and ownership of a store's file system, shared by all its directories.
#[derive(Debug)]
pub(super) struct FileSystem {
    /// The incident directory, for messages.
    path: PathBuf,
    /// The owner of new files: the effective user, unless the file system shows one owner for all
    /// files.
    pub(super) owner: u32,
    /// The group of the incident directory.
    pub(super) group: u32,
    /// `false` if the file system reports a link count of 0 for every directory, as some FUSE ones
    /// do.
    pub(super) has_link_counts: bool,
    /// `true` if members of `group` may read the files.
    group_read: AtomicBool,
    missing_features: AtomicU32,
}

impl FileSystem {
    pub(super) fn new(path: &Path, owner: u32, group: u32, has_link_counts: bool) -> Self {
        Self {
            path: path.to_owned(),
            owner,
            group,
            has_link_counts,
            group_read: AtomicBool::new(false),
            missing_features: AtomicU32::new(0),
        }
    }

    pub(super) fn supports(&self, feature: FsFeature) -> bool {
        self.missing_features.load(Ordering::Relaxed) & feature.bit() == 0
    }

    /// Records that `feature` was refused, and reports `text` the first time.
    pub(super) fn report_missing(&self, feature: FsFeature, text: impl FnOnce(&str) -> String) {
        if self.missing_features.fetch_or(feature.bit(), Ordering::Relaxed) & feature.bit() == 0 {
            warnings::set(feature.topic(), text(&self.path.display().to_string()));
        }
    }

    /// Records that `feature` is missing, without a warning.
    #[cfg(test)]
    pub(super) fn disable(&self, feature: FsFeature) {
        self.missing_features.fetch_or(feature.bit(), Ordering::Relaxed);
    }

    /// Clears the warnings about features that no operation of this store has found missing.
    pub(super) fn clear_warnings(&self) {
        for feature in FsFeature::ALL.into_iter().filter(|feature| self.supports(*feature)) {
            warnings::clear(feature.topic());
        }
    }

    pub(super) fn group_read(&self) -> bool {
        self.group_read.load(Ordering::Relaxed)
    }

    pub(super) fn set_group_read(&self, group_read: bool) {
        self.group_read.store(group_read, Ordering::Relaxed);
    }
}

/// Returns `true` if `errno` means that the call, flag or operation is unsupported or forbidden,
/// and `false` if it was tried and failed.
pub(super) fn is_refusal(errno: Errno) -> bool {
    let refusals = [
        Errno::INVAL,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::ACCESS,
        Errno::NOTTY,
        Errno::XDEV,
        Errno::MLINK,
        Errno::BADF,
        Errno::ISDIR,
    ];
    refusals.contains(&errno)
}

/// Returns `true` if a refused `fsync` of a file means that the file system has none. `EACCES` does
/// not count: network file systems return it for writes that the server rejected later.
pub(super) fn is_sync_unsupported(errno: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM].contains(&errno)
}
