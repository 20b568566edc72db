//! Errors of the store, with advice for the operator.

use std::io;
use std::path::PathBuf;

use super::manifest;
use crate::base::{Bytes, IncidentId};

/// A limit of the store or the system: the reason for an eviction or a rejected write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreLimit {
    /// `max_age`.
    Age,
    /// `max_incidents`.
    Incidents,
    /// `max_bytes`.
    Bytes,
    /// `max_incidents` of the incident's rule.
    RuleIncidents,
    /// `max_bytes` of the incident's rule.
    RuleBytes,
    /// `max_bytes_per_incident`.
    IncidentBytes,
    /// `min_free_space`.
    MinFreeSpace,
    /// The memory left below the process's limit, of which a file system in memory takes part.
    Memory,
    /// The file system is full.
    Device,
    /// The user's disk quota is exhausted.
    Quota,
    /// The file size limit of the process (`RLIMIT_FSIZE`). The kernel would end the process with
    /// SIGXFSZ.
    FileSize,
}

impl StoreLimit {
    /// Returns the setting's name, or a description if the limit is not a setting.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Age => "max_age",
            Self::Incidents => "max_incidents",
            Self::Bytes => "max_bytes",
            Self::RuleIncidents => "max_incidents of its rule",
            Self::RuleBytes => "max_bytes of its rule",
            Self::IncidentBytes => "max_bytes_per_incident",
            Self::MinFreeSpace => "min_free_space",
            Self::Memory => "memory available to tmpfs",
            Self::Device => "the file system is full",
            Self::Quota => "the disk quota is exceeded",
            Self::FileSize => "the file size limit of the process",
        }
    }

    /// Returns the action for an operator if nothing more can be evicted.
    const fn advice(self) -> &'static str {
        match self {
            Self::Age | Self::Incidents | Self::Bytes => {
                "raise it in [store], or remove incidents that contain files not written by marple"
            }
            Self::RuleIncidents | Self::RuleBytes => {
                "raise it in [store.rule], or remove incidents that contain files not written by \
                 marple"
            }
            Self::IncidentBytes => "raise it in [store]",
            Self::MinFreeSpace => {
                "free space on the file system, lower it, or set `dir` to another file system"
            }
            Self::Memory => "set `dir` to a directory on a disk",
            Self::Device => "free space on the file system, or set `dir` to another file system",
            Self::Quota => "raise the quota, or set `dir` to another file system",
            Self::FileSize => "raise it (`ulimit -f`, LimitFSIZE=)",
        }
    }
}

/// An error of the store. Every message names the path and the action to take.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// The failed operation, as in "cannot … the path".
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The directory in use was deleted.
    #[error(
        "{} was removed while in use: its contents are lost; the incident directory is recreated \
         for the next incident",
        path.display()
    )]
    Removed {
        /// The path of the failed operation.
        path: PathBuf,
    },
    /// The incident directory is a link or not a directory.
    #[error(
        "{} is {file_type}, not a directory: set `dir` to the directory itself, or remove the \
         existing entry",
        path.display()
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// The kind of the existing entry.
        file_type: &'static str,
    },
    /// The incident directory belongs to another user.
    #[error(
        "{} belongs to user {owner}, but this process runs as user {user}, and captures contain \
         secrets: run `chown {user}` on it, or set `dir` to a subdirectory owned by this user",
        path.display()
    )]
    WrongOwner {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The process's effective user.
        user: u32,
    },
    /// Other users can write to the incident directory and occupy every name for a private
    /// directory in it.
    #[error(
        "{} is writable by other users (mode {mode:04o}), and every name for a private directory \
         in it is in use: run `chmod go-w` on it, or set `dir` to a directory below it",
        path.display()
    )]
    WritableByOthers {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process, or another agent of this process, writes to the directory.
    #[error(
        "{} is in use by {}: a directory can have one writer only; stop the other writer or set \
         another `dir`",
        path.display(),
        holder(*pid)
    )]
    Busy {
        /// The path.
        path: PathBuf,
        /// The process that holds the lock, if the lock file contains its pid.
        pid: Option<u32>,
    },
    /// This process was forked from the one that opened the directory.
    #[error(
        "{} was opened by process {opener}, from which this process was forked: only the process \
         that opened it can write to it; open a separate directory in the child",
        path.display()
    )]
    Forked {
        /// The path.
        path: PathBuf,
        /// The process that opened it.
        opener: u32,
    },
    /// There is no space for the write, and nothing more can be evicted.
    #[error("no space for {} ({}): {}", path.display(), limit.name(), limit.advice())]
    Full {
        /// The file being written.
        path: PathBuf,
        /// The limit that was reached.
        limit: StoreLimit,
    },
    /// The artifact was discarded after an earlier write failed.
    #[error("{} is incomplete and not kept: an earlier write to it failed", path.display())]
    Incomplete {
        /// The file being written.
        path: PathBuf,
    },
    /// A manifest cannot be read.
    #[error(
        "{} is not a valid manifest: {source}; its artifacts can be opened without it",
        path.display()
    )]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: manifest::Error,
    },
    /// `state.json` cannot be parsed or serialized.
    #[error("{} is not a valid state file: {source}; remove it to reset the state", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A file is larger than any that marple writes.
    #[error(
        "{} is larger than {limit}, the maximum for a file written by marple: remove it",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The maximum size that is read.
        limit: Bytes,
    },
    /// The incident does not exist.
    #[error("incident {id} does not exist in {}: it may have been evicted", dir.display())]
    NoIncident {
        /// The requested incident.
        id: IncidentId,
        /// The incident directory.
        dir: PathBuf,
    },
    /// The incident has no such file.
    #[error("{} is not a file of an incident: use a file listed in the manifest", path.display())]
    NoArtifact {
        /// The requested file.
        path: PathBuf,
    },
}

/// Category of a store error, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another process or agent has the directory open. It is free when that one ends.
    Busy,
    /// This process's user cannot write to the directory.
    NotPermitted,
    /// The file system is mounted read-only.
    ReadOnly,
    /// There is no space, or no inode.
    Full,
    /// Anything else.
    Other,
}

impl Error {
    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } => ErrorKind::Busy,
            Self::WrongOwner { .. } | Self::WritableByOthers { .. } => ErrorKind::NotPermitted,
            Self::Full { .. } => ErrorKind::Full,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
                io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
                _ => ErrorKind::Other,
            },
            _ => ErrorKind::Other,
        }
    }

    /// Creates the error of a failed call. Lack of space becomes [`Error::Full`].
    pub(super) fn io(operation: &'static str, path: PathBuf, source: io::Error) -> Self {
        let limit = match source.kind() {
            io::ErrorKind::StorageFull => StoreLimit::Device,
            io::ErrorKind::QuotaExceeded => StoreLimit::Quota,
            io::ErrorKind::FileTooLarge => StoreLimit::FileSize,
            _ => return Self::Io { operation, path, source },
        };
        Self::Full { path, limit }
    }

    /// Returns `true` if one of the store's own limits leaves no space.
    pub(super) fn is_store_limit(&self) -> bool {
        let system_limits = [StoreLimit::Device, StoreLimit::Quota, StoreLimit::FileSize];
        matches!(self, Self::Full { limit, .. } if !system_limits.contains(limit))
    }

    /// Returns `true` if there is no space. Enforcing the limits may free some.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

impl From<Error> for io::Error {
    /// Wraps the error under the `io::ErrorKind` that callers of a writer expect.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Full { limit: StoreLimit::Quota, .. } => io::ErrorKind::QuotaExceeded,
            Error::Full { limit: StoreLimit::FileSize, .. } => io::ErrorKind::FileTooLarge,
            Error::Full { .. } => io::ErrorKind::StorageFull,
            Error::Io { source, .. } => source.kind(),
            Error::Removed { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Returns advice for an I/O error, or an empty string.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "; give this process's user write permission, or set `dir` to another directory"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount it writable, or set `dir` to another file system"
        }
        _ if source.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "; the process has too many open files: raise `ulimit -n`"
        }
        _ => "",
    }
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => "another agent in this process".to_owned(),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
