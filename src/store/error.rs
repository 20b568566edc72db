//! What the store could not do, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::manifest;
use crate::base::{Bytes, IncidentId};

/// A bound on what is kept; the reason an incident went or a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
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
    /// `max_incident_bytes`.
    Incident,
    /// `keep_free`.
    Free,
    /// The memory below our limit, of which a file system in memory takes.
    Memory,
    /// The file system is full.
    Device,
    /// The user's disk quota is used up.
    Quota,
    /// The process may not write a file of that size (`RLIMIT_FSIZE`); the kernel would kill it.
    FileSize,
}

impl Bound {
    /// Its name: the setting's, or what else it is.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Age => "max_age",
            Self::Incidents => "max_incidents",
            Self::Bytes => "max_bytes",
            Self::RuleIncidents => "max_incidents of its rule",
            Self::RuleBytes => "max_bytes of its rule",
            Self::Incident => "max_incident_bytes",
            Self::Free => "keep_free",
            Self::Memory => "the memory left, of which a tmpfs takes",
            Self::Device => "the file system is full",
            Self::Quota => "the disk quota is used up",
            Self::FileSize => "the process's limit on the size of a file",
        }
    }

    /// What an operator can do when nothing more can be removed.
    const fn advice(self) -> &'static str {
        match self {
            Self::Age | Self::Incidents | Self::Bytes => {
                "raise it under [store], or remove incidents that are kept by files of your own"
            }
            Self::RuleIncidents | Self::RuleBytes => {
                "raise it under [store.rule], or remove incidents that are kept by files of your own"
            }
            Self::Incident => "raise it under [store]",
            Self::Free => "make room on the file system, lower it, or set `dir` to another one",
            Self::Memory => "set `dir` to a directory on a disk",
            Self::Device => "make room on the file system, or set `dir` to another one",
            Self::Quota => "raise the quota, or set `dir` to another file system",
            Self::FileSize => "raise it (`ulimit -f`, LimitFSIZE=)",
        }
    }
}

/// What the store could not do. Every message names the path and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the system failed.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried, as in "cannot … the path".
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory that was being worked in is no more.
    #[error(
        "{} was removed while it was in use: what was in it is lost; the directory of incidents is \
         made again for the next one",
        path.display()
    )]
    Removed {
        /// What was to be done in it.
        path: PathBuf,
    },
    /// The directory of incidents is a link or not a directory.
    #[error(
        "{} is {what}, not a directory: set `dir` to the directory itself, or remove what is there",
        path.display()
    )]
    NotADirectory {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The directory of incidents belongs to another user.
    #[error(
        "{} belongs to user {owner} and this process runs as user {us}: captures hold secrets, so \
         `chown {us}` it or set `dir` to a directory of your own below it",
        path.display()
    )]
    NotOurs {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The process's effective user.
        us: u32,
    },
    /// Users other than the owner can write into the directory of incidents, and have taken every name for one of
    /// our own in it.
    #[error(
        "{} can be written by other users (mode {mode:04o}), who hold every name of a directory for us in it: \
         `chmod go-w` it, or set `dir` to a directory below it",
        path.display()
    )]
    Writable {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process, or another agent of this one, writes there.
    #[error(
        "{} is in use by {}: one writer per directory; stop that one or set another `dir`",
        path.display(),
        holder(*pid)
    )]
    Busy {
        /// The path.
        path: PathBuf,
        /// The process that holds it, when the lock file says.
        pid: Option<u32>,
    },
    /// This process is a child, made by `fork`, of the one that opened the directory.
    #[error(
        "{} was opened by process {opener}, of which this one is a fork: only that one writes there; open \
         a directory of its own in the child",
        path.display()
    )]
    Forked {
        /// The path.
        path: PathBuf,
        /// The process that opened it.
        opener: u32,
    },
    /// There is no room for what was to be written, and nothing more that may be removed.
    #[error("no room for {} ({}): {}", path.display(), bound.name(), bound.advice())]
    Full {
        /// What was being written.
        path: PathBuf,
        /// What stood in the way.
        bound: Bound,
    },
    /// The artifact was given up earlier: one of its writes failed.
    #[error("an earlier write to {} failed, so it is incomplete and not kept", path.display())]
    Incomplete {
        /// What was being written.
        path: PathBuf,
    },
    /// A manifest cannot be read.
    #[error(
        "{} is not a manifest: {source}; its artifacts can be opened without it", path.display()
    )]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: manifest::Error,
    },
    /// `state.json` cannot be read or made.
    #[error("{} does not hold the agent's state: {source}; remove it to start anew", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A file of ours is larger than any we write.
    #[error("{} is larger than {limit}, which none of marple's is: remove it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: Bytes,
    },
    /// No such incident.
    #[error("there is no incident {id} in {}: it may have made room for a later one", dir.display())]
    NoIncident {
        /// The incident asked for.
        id: IncidentId,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// No such file in an incident.
    #[error("{} is not a file of an incident: ask for one its manifest lists", path.display())]
    NoArtifact {
        /// The file asked for.
        path: PathBuf,
    },
}

/// What keeps a store from being opened or written, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another process or agent has the directory; it is free once that ends.
    Busy,
    /// This process's user may not write there.
    NotPermitted,
    /// The file system is mounted read-only.
    ReadOnly,
    /// There is no room, or no inode.
    Full,
    /// Anything else.
    Other,
}

impl Error {
    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } => ErrorKind::Busy,
            Self::NotOurs { .. } | Self::Writable { .. } => ErrorKind::NotPermitted,
            Self::Full { .. } => ErrorKind::Full,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
                io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
                _ => ErrorKind::Other,
            },
            _ => ErrorKind::Other,
        }
    }

    /// A failed call; one that failed for want of room says so.
    pub(super) fn io(doing: &'static str, path: PathBuf, source: io::Error) -> Self {
        let bound = match source.kind() {
            io::ErrorKind::StorageFull => Bound::Device,
            io::ErrorKind::QuotaExceeded => Bound::Quota,
            io::ErrorKind::FileTooLarge => Bound::FileSize,
            _ => return Self::Io { doing, path, source },
        };
        Self::Full { path, bound }
    }

    /// Whether it is one of the store's own bounds that leaves no room.
    pub(super) fn is_bound(&self) -> bool {
        let foreign = [Bound::Device, Bound::Quota, Bound::FileSize];
        matches!(self, Self::Full { bound, .. } if !foreign.contains(bound))
    }

    /// Whether it says that there is no room, which a retention may change.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

impl From<Error> for io::Error {
    /// Keeps the error inside, under the kind a writer's caller looks for.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Full { bound: Bound::Quota, .. } => io::ErrorKind::QuotaExceeded,
            Error::Full { bound: Bound::FileSize, .. } => io::ErrorKind::FileTooLarge,
            Error::Full { .. } => io::ErrorKind::StorageFull,
            Error::Io { source, .. } => source.kind(),
            Error::Removed { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What helps against an I/O error, where something does.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "; let this process's user write there, or set `dir` to another place"
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
