//! One writer per directory.
//!
//! `.lock` is held by `flock`, which ends with the process however that ends. Where the file system or a filter has
//! no `flock`, a lock of the open file description (`fcntl`) is tried, which some have that lack the other. Without
//! either the store is opened all the same: a service that does not start is worse than two writers, whose
//! incidents have directories of their own. What a start must not touch then is said at [`Lock::others_may_live`].
//!
//! A lock can be granted and still not reach another machine or sandbox (gVisor, FUSE, NFS without a lock daemon).
//! So the file also holds a record of its writer: its process, an ID of this opening, its host. Before each incident
//! the record is read; another ID there means another writer, which is reported.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::dir::Dir;
use super::error::Error;
use super::file_system::Feature;
use super::names::LOCK;
use crate::base::{IncidentId, warnings};
use crate::os::file_lock;

/// A record is shorter, with the longest name a host has.
const MAX_RECORD: u64 = 512;

/// The topic of the warning about another writer.
const TOPIC: &str = "store.writer";

/// The lock of a directory of incidents.
#[derive(Debug)]
pub(super) struct Lock {
    /// `None` where no such file can be had.
    file: Option<File>,
    how: How,
    record: Record,
    others_may_live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Flock,
    OpenFile,
    Record,
}

/// What `.lock` says of its writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    pid: Option<u32>,
    /// Of this opening of the store.
    instance: String,
    host: String,
    /// The namespace that `pid` is of.
    pids: String,
}

impl Lock {
    /// Takes the lock of `root` and writes our record into it.
    pub(super) fn take(root: &Dir) -> Result<Self, Error> {
        let record = Record::ours();
        let mut file = match root.open_or_create(LOCK) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if no_such_file(&source) => {
                unlocked(root, &format!("opening .lock: {source}"));
                return Ok(Self { file: None, how: How::Record, record, others_may_live: true });
            }
            Err(error) => return Err(error),
        };
        let how = match acquire(root, &file) {
            Some(how) => how,
            None => {
                let pid = Record::read(&mut file).pid;
                return Err(Error::Busy { path: root.path().to_owned(), pid });
            }
        };
        let others_may_live = how == How::Record && Record::read(&mut file).may_live(&record);
        let lock = Self { file: Some(file), how, record, others_may_live };
        lock.write_record();
        Ok(lock)
    }

    /// Whether the writer before may be at work still: there is no lock, and its record does not name a process of
    /// this machine that has ended. What changed lately is left as it is then.
    pub(super) fn others_may_live(&self) -> bool {
        self.others_may_live
    }

    /// The descriptor that holds it.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Reports another writer, which a lock should have kept out, and puts our record back.
    pub(super) fn check(&self, root: &Dir) {
        let Some(file) = &self.file else { return };
        let Ok(mut file) = file.try_clone() else { return };
        let found = Record::read(&mut file);
        if found.instance.is_empty() || found.instance == self.record.instance {
            warnings::clear(TOPIC);
            return;
        }
        let pid = found.pid.map_or("unknown".to_owned(), |pid| pid.to_string());
        warnings::set(
            TOPIC,
            format!(
                "process {pid} of host {} writes to {} too, and no lock keeps the two apart: each counts and removes \
                 incidents of the other; set another `dir` for one of them",
                found.host,
                root.path().display()
            ),
        );
        self.write_record();
    }

    /// Releases it. Closing would do, but for a child of the host that is between `fork` and `exec` at this
    /// moment: it holds a copy of the descriptor, and the lock with it.
    pub(super) fn release(&self) {
        let Some(file) = &self.file else { return };
        match self.how {
            How::Flock => drop(flock(file, FlockOperation::Unlock)),
            How::OpenFile => drop(file_lock::unlock(file)),
            // The next start need not be careful.
            How::Record => self.end_record(file),
        }
    }

    /// Takes our record back, unless another's has taken its place.
    fn end_record(&self, file: &File) {
        let Ok(mut file) = file.try_clone() else { return };
        if Record::read(&mut file) == self.record {
            let _ = file.set_len(0);
        }
    }

    /// On a full disk it is not written, and the lock is held all the same.
    fn write_record(&self) {
        let Some(mut file) = self.file.as_ref() else { return };
        let text = self.record.format();
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()));
    }

    #[cfg(test)]
    pub(super) fn copy(&self) -> File {
        self.file.as_ref().unwrap().try_clone().unwrap()
    }
}

/// Takes what lock there is; `None` if another has it.
fn acquire(root: &Dir, file: &File) -> Option<How> {
    let refused = loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(How::Flock),
            Err(Errno::WOULDBLOCK) => return None,
            Err(Errno::INTR) => {}
            Err(errno) => break errno,
        }
    };
    match file_lock::lock(file) {
        Ok(()) => {
            root.file_system().lacks(Feature::Lock, |path| {
                format!(
                    "flock fails in {path} ({refused}); an fcntl lock is held instead, which does not keep out a \
                     process that can call flock or is on another machine: make sure that one process writes there"
                )
            });
            Some(How::OpenFile)
        }
        Err(Errno::AGAIN | Errno::ACCESS) => None,
        Err(errno) => {
            unlocked(root, &format!("flock: {refused}; fcntl lock: {errno}"));
            Some(How::Record)
        }
    }
}

fn unlocked(root: &Dir, why: &str) {
    root.file_system().lacks(Feature::Lock, |path| {
        format!(
            "{path} cannot be locked ({why}): one writer is not assured; give each process a `dir` of its own"
        )
    });
}

/// Whether the file system has no files that are both read and written, as object stores.
fn no_such_file(error: &std::io::Error) -> bool {
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Record {
    fn ours() -> Self {
        let pids = std::fs::read_link("/proc/thread-self/ns/pid");
        Self {
            pid: Some(std::process::id()),
            instance: IncidentId::new(Timestamp::now()).to_string(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pids: pids.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    fn format(&self) -> String {
        let pid = self.pid.map(|pid| pid.to_string()).unwrap_or_default();
        format!("{pid}\n{}\n{}\n{}\n", self.instance, self.host, self.pids)
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let mut line = || lines.next().unwrap_or_default().trim().to_owned();
        let pid = line().parse().ok();
        Self { pid, instance: line(), host: line(), pids: line() }
    }

    fn read(file: &mut File) -> Self {
        let mut text = Vec::new();
        let read = file.rewind().and_then(|()| file.take(MAX_RECORD).read_to_end(&mut text));
        if read.is_err() {
            return Self::default();
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// Whether its writer may be alive, as far as `ours` can find out.
    fn may_live(&self, ours: &Self) -> bool {
        if self.instance.is_empty() {
            return false;
        }
        let same_machine =
            self.host == ours.host && self.pids == ours.pids && !ours.pids.is_empty();
        let Some(pid) = self.pid.filter(|_| same_machine) else { return true };
        // Our own number is one that was used before, as number 1 of a container is.
        let is_ours = Some(pid) == ours.pid;
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        !is_ours && process.is_some_and(|it| test_kill_process(it) != Err(Errno::SRCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_that_of_an_earlier_version_has_a_pid() {
        let record = Record::ours();
        assert_eq!(Record::parse(&record.format()), record);
        let old = Record { pid: Some(17), ..Record::default() };
        assert_eq!(Record::parse("17\n"), old);
        assert_eq!(Record::parse(""), Record::default());
    }

    #[test]
    fn a_writer_is_dead_only_if_this_machine_says_so() {
        let ours = Record::ours();
        let other = |change: fn(&mut Record)| {
            let mut other = Record { instance: "another".to_owned(), ..ours.clone() };
            change(&mut other);
            other.may_live(&ours)
        };
        assert!(!other(|_| ()), "the same process number, and it is ours");
        assert!(other(|it| it.pid = Some(1)), "it runs");
        assert!(!other(|it| it.pid = Some(i32::MAX as u32)), "there is no such process");
        assert!(other(|it| it.host = "elsewhere".to_owned()));
        assert!(other(|it| it.pids = "pid:[1]".to_owned()));
        assert!(!other(|it| it.instance.clear()), "it stopped");
    }
}
