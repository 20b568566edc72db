//! The lock that allows one writer per directory.
//!
//! `.lock` is held by `flock`, which the kernel releases when the process ends for any reason. If
//! the file system or a seccomp filter refuses `flock`, an open file description lock (`fcntl`) is
//! tried, which some of them support. If both fail, the store opens without a lock: a service that
//! does not start is worse than two writers, whose incidents have separate directories.
//! [`WriterLock::previous_writer_may_run`] lists what such a start must not touch.
//!
//! A granted lock may not reach another machine or sandbox (gVisor, FUSE, NFS without a lock
//! daemon). So the file also holds a record of its writer: the process, an ID of this opening, and
//! the host. The record is read before each incident. A different ID means that there is another
//! writer, which is reported.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::dir::Dir;
use super::error::Error;
use super::file_system::FsFeature;
use super::names::LOCK_FILE;
use crate::base::{IncidentId, warnings};
use crate::os::file_lock;

/// A limit above the size of a record with the longest possible host name.
const MAX_RECORD_BYTES: u64 = 512;

const TOPIC: &str = "store.writer";

/// The lock of an incident directory.
#[derive(Debug)]
pub(super) struct WriterLock {
    /// `None` if the file system has no files that can be read and written.
    file: Option<File>,
    method: LockMethod,
    record: LockRecord,
    previous_writer_may_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockMethod {
    Flock,
    OpenFileDescription,
    RecordOnly,
}

/// The record in `.lock` that identifies the writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LockRecord {
    pid: Option<u32>,
    /// The ID of this opening of the store.
    writer_id: String,
    host: String,
    /// The PID namespace of `pid`.
    pid_namespace: String,
}

impl WriterLock {
    /// Acquires the lock of `root` and writes this process's record to it.
    pub(super) fn acquire(root: &Dir) -> Result<Self, Error> {
        let record = LockRecord::for_current_process();
        let mut file = match root.open_or_create(LOCK_FILE) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if is_open_unsupported(&source) => {
                warn_unlocked(root, &format!("cannot open .lock: {source}"));
                return Ok(Self {
                    file: None,
                    method: LockMethod::RecordOnly,
                    record,
                    previous_writer_may_run: true,
                });
            }
            Err(error) => return Err(error),
        };
        let method = match try_lock(root, &file) {
            Some(method) => method,
            None => {
                let pid = LockRecord::read(&mut file).pid;
                return Err(Error::Busy { path: root.path().to_owned(), pid });
            }
        };
        let previous_writer_may_run =
            method == LockMethod::RecordOnly && LockRecord::read(&mut file).may_be_alive(&record);
        let lock = Self { file: Some(file), method, record, previous_writer_may_run };
        lock.write_record();
        Ok(lock)
    }

    /// Returns `true` if the previous writer may still run: there is no lock, and the record does
    /// not name an ended process of this machine. Recovery then skips recently changed entries.
    pub(super) fn previous_writer_may_run(&self) -> bool {
        self.previous_writer_may_run
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Reports another writer that the lock did not exclude, and restores this process's record.
    pub(super) fn detect_other_writer(&self, root: &Dir) {
        let Some(file) = &self.file else { return };
        let Ok(mut file) = file.try_clone() else { return };
        let found = LockRecord::read(&mut file);
        if found.writer_id.is_empty() || found.writer_id == self.record.writer_id {
            warnings::clear(TOPIC);
            return;
        }
        let pid = found.pid.map_or("unknown".to_owned(), |pid| pid.to_string());
        warnings::set(
            TOPIC,
            format!(
                "process {pid} on host {} also writes to {}, and no lock prevents it: each process \
                 counts and removes incidents of the other; set another `dir` for one of them",
                found.host,
                root.path().display()
            ),
        );
        self.write_record();
    }

    /// Releases the lock explicitly. Closing the file is not enough: a child of the service between
    /// `fork` and `exec` has a copy of the descriptor and thereby holds the lock.
    pub(super) fn release(&self) {
        let Some(file) = &self.file else { return };
        match self.method {
            LockMethod::Flock => drop(flock(file, FlockOperation::Unlock)),
            LockMethod::OpenFileDescription => drop(file_lock::unlock(file)),
            // Allows the next start to recover all entries.
            LockMethod::RecordOnly => self.clear_record(file),
        }
    }

    /// Deletes the record, unless another writer has replaced it.
    fn clear_record(&self, file: &File) {
        let Ok(mut file) = file.try_clone() else { return };
        if LockRecord::read(&mut file) == self.record {
            let _ = file.set_len(0);
        }
    }

    /// Writes the record. On a full disk this fails, and the lock is held without a record.
    fn write_record(&self) {
        let Some(mut file) = self.file.as_ref() else { return };
        let text = self.record.format();
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()));
    }

    #[cfg(test)]
    pub(super) fn clone_file(&self) -> File {
        self.file.as_ref().unwrap().try_clone().unwrap()
    }
}

/// Acquires the best lock available. `None` if another process holds it.
fn try_lock(root: &Dir, file: &File) -> Option<LockMethod> {
    let flock_error = loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(LockMethod::Flock),
            Err(Errno::WOULDBLOCK) => return None,
            Err(Errno::INTR) => {}
            Err(errno) => break errno,
        }
    };
    match file_lock::lock(file) {
        Ok(()) => {
            root.file_system().report_missing(FsFeature::Lock, |path| {
                format!(
                    "flock fails in {path} ({flock_error}): an fcntl lock is used instead, which \
                     does not exclude a process that can call flock or runs on another machine; \
                     make sure that only one process writes there"
                )
            });
            Some(LockMethod::OpenFileDescription)
        }
        Err(Errno::AGAIN | Errno::ACCESS) => None,
        Err(errno) => {
            warn_unlocked(root, &format!("flock: {flock_error}; fcntl lock: {errno}"));
            Some(LockMethod::RecordOnly)
        }
    }
}

fn warn_unlocked(root: &Dir, reason: &str) {
    root.file_system().report_missing(FsFeature::Lock, |path| {
        format!(
            "{path} cannot be locked ({reason}): concurrent writers are not excluded; give each \
             process a separate `dir`"
        )
    });
}

/// Returns `true` if the file system has no files that can be read and written, as object stores.
fn is_open_unsupported(error: &std::io::Error) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl LockRecord {
    fn for_current_process() -> Self {
        let pid_namespace = std::fs::read_link("/proc/thread-self/ns/pid");
        Self {
            pid: Some(std::process::id()),
            writer_id: IncidentId::new(Timestamp::now()).to_string(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid_namespace: pid_namespace
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
        }
    }

    fn format(&self) -> String {
        let pid = self.pid.map(|pid| pid.to_string()).unwrap_or_default();
        format!("{pid}\n{}\n{}\n{}\n", self.writer_id, self.host, self.pid_namespace)
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let mut line = || lines.next().unwrap_or_default().trim().to_owned();
        let pid = line().parse().ok();
        Self { pid, writer_id: line(), host: line(), pid_namespace: line() }
    }

    fn read(file: &mut File) -> Self {
        let mut text = Vec::new();
        let read = file.rewind().and_then(|()| file.take(MAX_RECORD_BYTES).read_to_end(&mut text));
        if read.is_err() {
            return Self::default();
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Returns `true` if the writer of this record may be alive, as far as `ours` allows to decide.
    fn may_be_alive(&self, ours: &Self) -> bool {
        if self.writer_id.is_empty() {
            return false;
        }
        let same_machine = self.host == ours.host
            && self.pid_namespace == ours.pid_namespace
            && !ours.pid_namespace.is_empty();
        let Some(pid) = self.pid.filter(|_| same_machine) else { return true };
        // Equal to this process's pid: an earlier process had it, as pid 1 in a container.
        let is_ours = Some(pid) == ours.pid;
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        !is_ours && process.is_some_and(|process| test_kill_process(process) != Err(Errno::SRCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_round_trips_and_old_format_has_only_pid() {
        let record = LockRecord::for_current_process();
        assert_eq!(LockRecord::parse(&record.format()), record);
        let old = LockRecord { pid: Some(17), ..LockRecord::default() };
        assert_eq!(LockRecord::parse("17\n"), old);
        assert_eq!(LockRecord::parse(""), LockRecord::default());
    }

    #[test]
    fn writer_is_dead_only_if_its_local_process_ended() {
        let ours = LockRecord::for_current_process();
        let other = |change: fn(&mut LockRecord)| {
            let mut other = LockRecord { writer_id: "another".to_owned(), ..ours.clone() };
            change(&mut other);
            other.may_be_alive(&ours)
        };
        assert!(!other(|_| ()), "same pid, this process");
        assert!(other(|record| record.pid = Some(1)), "running process");
        assert!(!other(|record| record.pid = Some(i32::MAX as u32)), "process does not exist");
        assert!(other(|record| record.host = "elsewhere".to_owned()));
        assert!(other(|record| record.pid_namespace = "pid:[1]".to_owned()));
        assert!(!other(|record| record.writer_id.clear()), "no record");
    }
}
