//! Which threads there are and what they are called.

use std::collections::{BTreeMap, HashMap};
use std::io;

use crate::os::tasks::{self, Tasks};

/// So many names are told apart; threads called by yet another are one.
const MAX_NAMES: usize = 4096;

const OTHERS: &str = "(threads of other names)";

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
            names,
            by_name: HashMap::new(),
        })
    }

    /// How many threads were there at the last look.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether their number has changed since.
    pub(super) fn has_changed(&self) -> bool {
        self.tasks.count().is_none_or(|count| count != self.members.len())
    }

    /// Looks again. A list that breaks off takes nobody for gone.
    pub(super) fn look(&mut self) -> Change {
        let complete = self.tasks.list(&mut self.listed).is_ok();
        let mut change = Change::default();
        for &tid in &self.listed {
            if !self.members.contains_key(&tid) {
                change.born.push(tid);
            }
        }
        for &tid in &change.born {
            let name = tasks::name(tid).map_or(0, |name| self.number_of(name));
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
                let name = tasks::name(tid).map_or(before, |name| self.number_of(name));
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
