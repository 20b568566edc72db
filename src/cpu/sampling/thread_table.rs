//! The threads of the process and their names.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;

use crate::os::clock::cpu_timer::thread_cpu_time;
use crate::os::proc::thread_list::ThreadList;

/// Maximum number of distinct thread names; further names are grouped as [`OTHER_NAMES`].
const MAX_NAMES: usize = 4096;

const OTHER_NAMES: &str = "(threads of other names)";

/// Names read in one batch at the start, unless a sixteenth of all threads is more: about 7 us
/// each.
const MIN_NAMES_PER_BATCH: usize = 32;

/// Threads checked for existence in one refresh: 0.5 ms of CPU. With more threads, the exit of one
/// thread and the simultaneous start of another may be detected some refreshes later, because the
/// number of threads stays the same.
const MAX_CHECKS_PER_REFRESH: usize = 512;

/// Started and ended threads since the last refresh.
#[derive(Debug, Default)]
pub(super) struct ThreadChanges {
    pub(super) started: Vec<u32>,
    pub(super) exited: Vec<u32>,
}

#[derive(Debug)]
struct ThreadEntry {
    name_id: u32,
    /// `true` if the name was read after the thread had run. Threads usually set their name first
    /// thing, so a name read at the start may be the parent's.
    has_final_name: bool,
}

#[derive(Debug)]
pub(super) struct ThreadTable {
    thread_list: ThreadList,
    listed_tids: Vec<u32>,
    entries: BTreeMap<u32, ThreadEntry>,
    /// Threads of the first scan whose names are not read yet.
    unnamed_tids: Vec<u32>,
    /// Last thread checked for existence.
    last_checked_tid: u32,
    names: Vec<String>,
    by_name: HashMap<String, u32>,
}

impl ThreadTable {
    pub(super) fn open() -> io::Result<Self> {
        let names = vec![OTHER_NAMES.to_owned()];
        Ok(Self {
            thread_list: ThreadList::open()?,
            listed_tids: Vec::new(),
            entries: BTreeMap::new(),
            unnamed_tids: Vec::new(),
            last_checked_tid: 0,
            names,
            by_name: HashMap::new(),
        })
    }

    /// Lists the threads without reading names. [`ThreadTable::resolve_names`] reads them later:
    /// names are most of the cost, and the caller of a starting profile waits for this.
    pub(super) fn scan(&mut self) -> Vec<u32> {
        // A partial list is completed by the next refresh.
        let _ = self.thread_list.list(&mut self.listed_tids);
        let unnamed_entry = |&tid: &u32| (tid, ThreadEntry { name_id: 0, has_final_name: false });
        self.entries.extend(self.listed_tids.iter().map(unnamed_entry));
        self.unnamed_tids.clone_from(&self.listed_tids);
        self.listed_tids.clone()
    }

    /// Reads a batch of names that the first scan left out. Returns `true` if more are left.
    pub(super) fn resolve_names(&mut self) -> bool {
        let batch_size =
            MIN_NAMES_PER_BATCH.max(self.entries.len() / 16).min(self.unnamed_tids.len());
        for tid in self.unnamed_tids.split_off(self.unnamed_tids.len() - batch_size) {
            if self.entries.get(&tid).is_some_and(|entry| entry.name_id == 0) {
                let name = self.thread_list.name(tid).map_or(0, |name| self.intern_name(name));
                self.entries.entry(tid).and_modify(|entry| entry.name_id = name);
            }
        }
        !self.unnamed_tids.is_empty()
    }

    /// Returns the threads of the last refresh.
    pub(super) fn tids(&self) -> Vec<u32> {
        self.entries.keys().copied().collect()
    }

    /// Returns the number of threads at the last refresh.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns `true` if the number of threads has changed since the last refresh.
    pub(super) fn has_changed(&self) -> bool {
        self.thread_list.count().is_none_or(|count| count != self.entries.len())
    }

    /// Returns `true` if the threads appear unchanged: their number is the same and all checked
    /// threads exist. Cheaper than reading the list, for which the kernel creates a file per
    /// thread.
    fn is_unchanged(&mut self) -> bool {
        if self.has_changed() {
            return false;
        }
        let unchecked_range = (Bound::Excluded(self.last_checked_tid), Bound::Unbounded);
        let candidates =
            self.entries.range(unchecked_range).chain(self.entries.range(..=self.last_checked_tid));
        for (&tid, _) in candidates.take(MAX_CHECKS_PER_REFRESH) {
            self.last_checked_tid = tid;
            if thread_cpu_time(tid).is_err() {
                return false;
            }
        }
        true
    }

    /// Reads the list of threads again. A partial list marks no thread as ended.
    pub(super) fn refresh(&mut self) -> ThreadChanges {
        if self.is_unchanged() {
            return ThreadChanges::default();
        }
        let is_complete = self.thread_list.list(&mut self.listed_tids).is_ok();
        let mut changes = ThreadChanges::default();
        for &tid in &self.listed_tids {
            if !self.entries.contains_key(&tid) {
                changes.started.push(tid);
            }
        }
        for &tid in &changes.started {
            let name = self.thread_list.name(tid).map_or(0, |name| self.intern_name(name));
            self.entries.insert(tid, ThreadEntry { name_id: name, has_final_name: false });
        }
        if is_complete {
            let listed = &self.listed_tids;
            let exited = self.entries.keys().filter(|tid| listed.binary_search(tid).is_err());
            changes.exited.extend(exited);
        }
        changes
    }

    /// Removes ended threads, after their last samples are read.
    pub(super) fn remove(&mut self, exited: &[u32]) {
        for tid in exited {
            self.entries.remove(tid);
        }
    }

    /// Returns the number of the name of `tid`.
    pub(super) fn name_id(&mut self, tid: u32) -> u32 {
        match self.entries.get(&tid) {
            Some(entry) if entry.has_final_name => entry.name_id,
            known => {
                let previous = known.map_or(0, |entry| entry.name_id);
                let name =
                    self.thread_list.name(tid).map_or(previous, |name| self.intern_name(name));
                if let Some(entry) = self.entries.get_mut(&tid) {
                    *entry = ThreadEntry { name_id: name, has_final_name: true };
                }
                name
            }
        }
    }

    /// Returns the name with this number.
    pub(super) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or(OTHER_NAMES, String::as_str)
    }

    fn intern_name(&mut self, name: String) -> u32 {
        if let Some(&number) = self.by_name.get(&name) {
            return number;
        }
        if self.names.len() >= MAX_NAMES {
            return 0;
        }
        let number = self.names.len() as u32;
        self.names.push(name.clone());
        self.by_name.insert(name, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{Builder, JoinHandle};

    use super::*;

    /// Starts a thread that waits until its sender is dropped; returns its id.
    fn spawn_waiting_thread(name: &str) -> (u32, mpsc::Sender<()>, JoinHandle<()>) {
        let (hold, wait) = mpsc::channel::<()>();
        let (tid_sender, tid_receiver) = mpsc::channel();
        let body = move || {
            tid_sender.send(crate::os::proc::threads::current_tid()).unwrap();
            wait.recv().unwrap_or_default();
        };
        let thread = Builder::new().name(name.to_owned()).spawn(body).unwrap();
        (tid_receiver.recv().unwrap(), hold, thread)
    }

    /// Other tests start and end threads at the same time.
    #[test]
    fn replaced_thread_is_reported_as_exited_and_started() {
        let (old, hold, thread) = spawn_waiting_thread("old");
        let mut table = ThreadTable::open().unwrap();
        assert!(table.scan().contains(&old));
        assert_eq!(table.entries[&old].name_id, 0);
        while table.resolve_names() {}
        let name = table.entries[&old].name_id;
        assert_eq!(table.name(name), "old");
        drop(hold);
        thread.join().unwrap();
        // `join` may return before the kernel removes the thread.
        while thread_cpu_time(old).is_ok() {}
        let (new, _hold, _thread) = spawn_waiting_thread("new");
        let ThreadChanges { started, exited } = table.refresh();
        assert!(started.contains(&new) && exited.contains(&old), "{started:?} {exited:?}");
        table.remove(&exited);
        assert!(!table.refresh().started.contains(&new));
    }

    #[test]
    fn refreshes_check_threads_in_rotation() {
        let waiting: Vec<_> = (0..8).map(|_| spawn_waiting_thread("one of many")).collect();
        let mut table = ThreadTable::open().unwrap();
        let all = table.scan();
        for &tid in &all {
            table.last_checked_tid = tid;
            // Each thread is checked once, starting after the last one checked.
            if table.is_unchanged() {
                assert_eq!(table.last_checked_tid, tid);
            }
        }
        assert!(all.len() > waiting.len() && all.len() < MAX_CHECKS_PER_REFRESH);
        for (_, hold, thread) in waiting {
            drop(hold);
            thread.join().unwrap();
        }
    }
}
