//! The optional features of the file system a store is on, and what is done without them.
//!
//! | feature | missing on | next best way |
//! |---|---|---|
//! | lock | some network and FUSE mounts, gVisor, seccomp | `fcntl` lock, else the record in `.lock` |
//! | sync | some FUSE and object-store mounts, seccomp | `fdatasync`, else none |
//! | sync of directories | FUSE, SMB | none |
//! | unnamed files | NFS, FUSE, old overlayfs, no `/proc` | a file that ends in `.part` |
//! | rename without replacing | NFS, FUSE, SMB | a hard link, else a look before the rename |
//! | renaming directories | object-store mounts | incidents made and removed in place |
//! | modes | vfat, SMB, object-store mounts | none |
//!
//! A feature is tried when it is needed. The first refusal is remembered for the store and reported as a warning, so
//! that nothing is tried twice. Errors that tell of a failure and not of a missing feature (`EIO`, `ENOSPC`, `EDQUOT`,
//! `EROFS`) are never taken for a refusal.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::Errno;

use crate::base::warnings;

/// A feature a file system can lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Lock,
    Sync,
    DirSync,
    Unnamed,
    RenameNew,
    RenameDir,
    Link,
    Modes,
    GroupRead,
}

impl Feature {
    const ALL: [Self; 9] = [
        Self::Lock,
        Self::Sync,
        Self::DirSync,
        Self::Unnamed,
        Self::RenameNew,
        Self::RenameDir,
        Self::Link,
        Self::Modes,
        Self::GroupRead,
    ];

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Its topic among the warnings.
    const fn topic(self) -> &'static str {
        match self {
            Self::Lock => "store.lock",
            Self::Sync => "store.sync",
            Self::DirSync => "store.directory_sync",
            Self::Unnamed => "store.unnamed_files",
            Self::RenameNew => "store.rename",
            Self::RenameDir => "store.directory_rename",
            Self::Link => "store.links",
            Self::Modes => "store.modes",
            Self::GroupRead => "store.group_read",
        }
    }
}

/// What is known of the file system of a store; shared by all its directories.
#[derive(Debug)]
pub(super) struct FileSystem {
    /// The directory of incidents, for messages.
    path: PathBuf,
    /// The user that files made there belong to: the effective one, unless the file system has another for all.
    pub(super) owner: u32,
    /// The group of the directory of incidents.
    pub(super) group: u32,
    /// Whether an open directory counts its names. Some FUSE file systems say 0 for all of them.
    pub(super) counts_links: bool,
    /// Whether members of `group` may read what is written.
    group_read: AtomicBool,
    lacking: AtomicU32,
}

impl FileSystem {
    pub(super) fn new(path: &Path, owner: u32, group: u32, counts_links: bool) -> Self {
        Self {
            path: path.to_owned(),
            owner,
            group,
            counts_links,
            group_read: AtomicBool::new(false),
            lacking: AtomicU32::new(0),
        }
    }

    pub(super) fn has(&self, feature: Feature) -> bool {
        self.lacking.load(Ordering::Relaxed) & feature.bit() == 0
    }

    /// Remembers that `feature` was refused, and reports `text` about it.
    pub(super) fn lacks(&self, feature: Feature, text: impl FnOnce(&str) -> String) {
        if self.lacking.fetch_or(feature.bit(), Ordering::Relaxed) & feature.bit() == 0 {
            warnings::set(feature.topic(), text(&self.path.display().to_string()));
        }
    }

    /// Remembers it without a word: what is done instead is as good.
    #[cfg(test)]
    pub(super) fn pretend_without(&self, feature: Feature) {
        self.lacking.fetch_or(feature.bit(), Ordering::Relaxed);
    }

    /// Takes back what an earlier store lacked and this one has, as far as is known.
    pub(super) fn clear_warnings(&self) {
        for feature in Feature::ALL.into_iter().filter(|feature| self.has(*feature)) {
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

/// Whether `errno` says that there is no such call, flag or operation here, or that it is not allowed; and not
/// that it was tried and failed.
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

/// Whether a refused `fsync` of a file says that there is none. `EACCES` does not: network file systems give it for
/// writes that the server refused afterwards.
pub(super) fn has_no_sync(errno: Errno) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM].contains(&errno)
}
