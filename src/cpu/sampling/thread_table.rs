//! The threads of the process and their names.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;

use crate::os::clock::cpu_timer::cpu_time_of;
use crate::os::proc::thread_list::ThreadList;

/// Maximum number of distinct thread names; further names are grouped as [`OTHERS`].
const MAX_NAMES: usize = 4096;

const OTHERS: &str = "(threads of other names)";

/// Names read in one batch at the start, unless a sixteenth of all threads is more: about 7 us
/// each.
const NAMED_AT_ONCE: usize = 32;

/// Threads checked for existence in one refresh: 0.5 ms of CPU. With more threads, the exit of one
/// thread and the simultaneous start of another may be detected some refreshes later, because the
/// number of threads stays the same.
const CHECKED_AT_ONCE: usize = 512;

/// Started and ended threads since the last refresh.
#[derive(Debug, Default)]
pub(super) struct ThreadChanges {
    pub(super) born: Vec<u32>,
    pub(super) gone: Vec<u32>,
}

#[derive(Debug)]
struct ThreadEntry {
    name: u32,
    /// `true` if the name was read after the thread had run. Threads usually set their name first
    /// thing, so a name read at the start may be the parent's.
    is_settled: bool,
}

#[derive(Debug)]
pub(super) struct ThreadTable {
    tasks: ThreadList,
    listed: Vec<u32>,
    members: BTreeMap<u32, ThreadEntry>,
    /// Threads of the first scan whose names are not read yet.
    unnamed: Vec<u32>,
    /// Last thread checked for existence.
    checked: u32,
    names: Vec<String>,
    by_name: HashMap<String, u32>,
}

impl ThreadTable {
    pub(super) fn open() -> io::Result<Self> {
        let names = vec![OTHERS.to_owned()];
        Ok(Self {
            tasks: ThreadList::open()?,
            listed: Vec::new(),
            members: BTreeMap::new(),
            unnamed: Vec::new(),
            checked: 0,
            names,
            by_name: HashMap::new(),
        })
    }

    /// Lists the threads without reading names. [`ThreadTable::name_some`] reads them later: names
    /// are most of the cost, and the caller of a starting profile waits for this.
    pub(super) fn look_at_first(&mut self) -> Vec<u32> {
        // A partial list is completed by the next refresh.
        let _ = self.tasks.list(&mut self.listed);
        let unknown = |&tid: &u32| (tid, ThreadEntry { name: 0, is_settled: false });
        self.members.extend(self.listed.iter().map(unknown));
        self.unnamed.clone_from(&self.listed);
        self.listed.clone()
    }

    /// Reads a batch of names that the first scan left out. Returns `true` if more are left.
    pub(super) fn name_some(&mut self) -> bool {
        let some = NAMED_AT_ONCE.max(self.members.len() / 16).min(self.unnamed.len());
        for tid in self.unnamed.split_off(self.unnamed.len() - some) {
            if self.members.get(&tid).is_some_and(|member| member.name == 0) {
                let name = self.tasks.name(tid).map_or(0, |name| self.number_of(name));
                self.members.entry(tid).and_modify(|member| member.name = name);
            }
        }
        !self.unnamed.is_empty()
    }

    /// Returns the threads of the last refresh.
    pub(super) fn tids(&self) -> Vec<u32> {
        self.members.keys().copied().collect()
    }

    /// Returns the number of threads at the last refresh.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns `true` if the number of threads has changed since the last refresh.
    pub(super) fn has_changed(&self) -> bool {
        self.tasks.count().is_none_or(|count| count != self.members.len())
    }

    /// Returns `true` if the threads appear unchanged: their number is the same and all checked
    /// threads exist. Cheaper than reading the list, for which the kernel creates a file per
    /// thread.
    fn is_as_before(&mut self) -> bool {
        if self.has_changed() {
            return false;
        }
        let after = (Bound::Excluded(self.checked), Bound::Unbounded);
        let later = self.members.range(after).chain(self.members.range(..=self.checked));
        for (&tid, _) in later.take(CHECKED_AT_ONCE) {
            self.checked = tid;
            if cpu_time_of(tid).is_err() {
                return false;
            }
        }
        true
    }

    /// Reads the list of threads again. A partial list marks no thread as ended.
    pub(super) fn look(&mut self) -> ThreadChanges {
        if self.is_as_before() {
            return ThreadChanges::default();
        }
        let complete = self.tasks.list(&mut self.listed).is_ok();
        let mut change = ThreadChanges::default();
        for &tid in &self.listed {
            if !self.members.contains_key(&tid) {
                change.born.push(tid);
            }
        }
        for &tid in &change.born {
            let name = self.tasks.name(tid).map_or(0, |name| self.number_of(name));
            self.members.insert(tid, ThreadEntry { name, is_settled: false });
        }
        if complete {
            let listed = &self.listed;
            let gone = self.members.keys().filter(|tid| listed.binary_search(tid).is_err());
            change.gone.extend(gone);
        }
        change
    }

    /// Removes ended threads, after their last samples are read.
    pub(super) fn forget(&mut self, gone: &[u32]) {
        for tid in gone {
            self.members.remove(tid);
        }
    }

    /// Returns the number of the name of `tid`.
    pub(super) fn name_of(&mut self, tid: u32) -> u32 {
        match self.members.get(&tid) {
            Some(member) if member.is_settled => member.name,
            known => {
                let before = known.map_or(0, |member| member.name);
                let name = self.tasks.name(tid).map_or(before, |name| self.number_of(name));
                if let Some(member) = self.members.get_mut(&tid) {
                    *member = ThreadEntry { name, is_settled: true };
                }
                name
            }
        }
    }

    /// Returns the name with this number.
    pub(super) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or(OTHERS, String::as_str)
    }

    fn number_of(&mut self, name: String) -> u32 {
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
    fn waiting(name: &str) -> (u32, mpsc::Sender<()>, JoinHandle<()>) {
        let ((hold, wait), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
        let body = move || {
            tell.send(crate::os::proc::threads::current()).unwrap();
            wait.recv().unwrap_or_default();
        };
        let thread = Builder::new().name(name.to_owned()).spawn(body).unwrap();
        (told.recv().unwrap(), hold, thread)
    }

    /// Other tests start and end threads at the same time.
    #[test]
    fn one_that_ended_and_another_in_its_place_are_told() {
        let (old, hold, thread) = waiting("old");
        let mut roster = ThreadTable::open().unwrap();
        assert!(roster.look_at_first().contains(&old));
        assert_eq!(roster.members[&old].name, 0);
        while roster.name_some() {}
        let name = roster.members[&old].name;
        assert_eq!(roster.name(name), "old");
        drop(hold);
        thread.join().unwrap();
        // `join` may return before the kernel removes the thread.
        while cpu_time_of(old).is_ok() {}
        let (new, _hold, _thread) = waiting("new");
        let ThreadChanges { born, gone } = roster.look();
        assert!(born.contains(&new) && gone.contains(&old), "{born:?} {gone:?}");
        roster.forget(&gone);
        assert!(!roster.look().born.contains(&new));
    }

    #[test]
    fn looks_ask_the_threads_in_turn() {
        let waiting: Vec<_> = (0..8).map(|_| waiting("one of many")).collect();
        let mut roster = ThreadTable::open().unwrap();
        let all = roster.look_at_first();
        for &tid in &all {
            roster.checked = tid;
            // Each thread is checked once, starting after the last one checked.
            if roster.is_as_before() {
                assert_eq!(roster.checked, tid);
            }
        }
        assert!(all.len() > waiting.len() && all.len() < CHECKED_AT_ONCE);
        for (_, hold, thread) in waiting {
            drop(hold);
            thread.join().unwrap();
        }
    }
}
