//! Which threads there are and what they are called.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;

use crate::os::tasks::Tasks;
use crate::os::timer::cpu_time_of;

/// So many names are told apart; threads called by yet another are one.
const MAX_NAMES: usize = 4096;

const OTHERS: &str = "(threads of other names)";

/// So many names are read in one go at the start, or a sixteenth of all: some 7 us each.
const NAMED_AT_ONCE: usize = 32;

/// So many threads are asked in one look whether they are still there: 0.5 ms of CPU. With more, a thread that ended as
/// another began, so that their number is the same, is noticed some looks later.
const CHECKED_AT_ONCE: usize = 512;

/// What changed since the last look.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) born: Vec<u32>,
    pub(super) gone: Vec<u32>,
}

#[derive(Debug)]
struct Member {
    name: u32,
    /// Whether the name was read when the thread had run. A thread is mostly named by itself, first
    /// thing, so what is read at its birth may be its parent's.
    is_settled: bool,
}

#[derive(Debug)]
pub(super) struct Roster {
    tasks: Tasks,
    listed: Vec<u32>,
    members: BTreeMap<u32, Member>,
    /// Of those that were there at the first look, who has no name yet.
    unnamed: Vec<u32>,
    /// The last thread that was asked whether it is still there.
    checked: u32,
    names: Vec<String>,
    by_name: HashMap<String, u32>,
}

impl Roster {
    pub(super) fn open() -> io::Result<Self> {
        let names = vec![OTHERS.to_owned()];
        Ok(Self {
            tasks: Tasks::open()?,
            listed: Vec::new(),
            members: BTreeMap::new(),
            unnamed: Vec::new(),
            checked: 0,
            names,
            by_name: HashMap::new(),
        })
    }

    /// Looks for the first time, and leaves the names to [`Roster::name_some`]: they are most of what looking
    /// costs, and whoever starts a profile waits for this.
    pub(super) fn look_at_first(&mut self) -> Vec<u32> {
        // A list that breaks off is one of fewer threads; the next look finds the others.
        let _ = self.tasks.list(&mut self.listed);
        let unknown = |&tid: &u32| (tid, Member { name: 0, is_settled: false });
        self.members.extend(self.listed.iter().map(unknown));
        self.unnamed.clone_from(&self.listed);
        self.listed.clone()
    }

    /// Names some of the threads that the first look has left without; whether there are more.
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

    /// The threads of the last look.
    pub(super) fn tids(&self) -> Vec<u32> {
        self.members.keys().copied().collect()
    }

    /// How many threads were there at the last look.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether their number has changed since.
    pub(super) fn has_changed(&self) -> bool {
        self.tasks.count().is_none_or(|count| count != self.members.len())
    }

    /// Whether the threads seem to be those of the last look: they are as many, and all that are asked are there. It
    /// costs less than the list, for which the kernel makes a file of each thread.
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

    /// Looks again. A list that breaks off takes nobody for gone.
    pub(super) fn look(&mut self) -> Change {
        if self.is_as_before() {
            return Change::default();
        }
        let complete = self.tasks.list(&mut self.listed).is_ok();
        let mut change = Change::default();
        for &tid in &self.listed {
            if !self.members.contains_key(&tid) {
                change.born.push(tid);
            }
        }
        for &tid in &change.born {
            let name = self.tasks.name(tid).map_or(0, |name| self.number_of(name));
            self.members.insert(tid, Member { name, is_settled: false });
        }
        if complete {
            let listed = &self.listed;
            let gone = self.members.keys().filter(|tid| listed.binary_search(tid).is_err());
            change.gone.extend(gone);
        }
        change
    }

    /// Forgets threads that have ended, their last samples being in.
    pub(super) fn forget(&mut self, gone: &[u32]) {
        for tid in gone {
            self.members.remove(tid);
        }
    }

    /// The number of the name of `tid`.
    pub(super) fn name_of(&mut self, tid: u32) -> u32 {
        match self.members.get(&tid) {
            Some(member) if member.is_settled => member.name,
            known => {
                let before = known.map_or(0, |member| member.name);
                let name = self.tasks.name(tid).map_or(before, |name| self.number_of(name));
                if let Some(member) = self.members.get_mut(&tid) {
                    *member = Member { name, is_settled: true };
                }
                name
            }
        }
    }

    /// The name of this number.
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

    /// A thread that waits until its sender is dropped, and its id.
    fn waiting(name: &str) -> (u32, mpsc::Sender<()>, JoinHandle<()>) {
        let ((hold, wait), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
        let body = move || {
            tell.send(crate::os::threads::current()).unwrap();
            wait.recv().unwrap_or_default();
        };
        let thread = Builder::new().name(name.to_owned()).spawn(body).unwrap();
        (told.recv().unwrap(), hold, thread)
    }

    /// Other tests have threads come and go meanwhile.
    #[test]
    fn one_that_ended_and_another_in_its_place_are_told() {
        let (old, hold, thread) = waiting("old");
        let mut roster = Roster::open().unwrap();
        assert!(roster.look_at_first().contains(&old));
        assert_eq!(roster.members[&old].name, 0);
        while roster.name_some() {}
        let name = roster.members[&old].name;
        assert_eq!(roster.name(name), "old");
        drop(hold);
        thread.join().unwrap();
        // Who joins may be faster than the kernel.
        while cpu_time_of(old).is_ok() {}
        let (new, _hold, _thread) = waiting("new");
        let Change { born, gone } = roster.look();
        assert!(born.contains(&new) && gone.contains(&old), "{born:?} {gone:?}");
        roster.forget(&gone);
        assert!(!roster.look().born.contains(&new));
    }

    #[test]
    fn looks_ask_the_threads_in_turn() {
        let waiting: Vec<_> = (0..8).map(|_| waiting("one of many")).collect();
        let mut roster = Roster::open().unwrap();
        let all = roster.look_at_first();
        for &tid in &all {
            roster.checked = tid;
            // Each is asked once, beginning after the one that was asked last.
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
