//! Texts that a packet sequence has already defined.
//!
//! A text is sent once for each use (category, event name, argument name), in the first packet that
//! needs it. Later packets refer to it by id. The id is the index in the timeline's table plus one,
//! because 0 means none. The state is therefore one bit per text and use, without a map.

use super::proto::{InternedData, InternedString};
use crate::model::{StringHandle, StringTable};

pub(super) struct Interner<'a> {
    strings: &'a StringTable,
    categories: Vec<bool>,
    names: Vec<bool>,
    arguments: Vec<bool>,
    last_iid: u64,
    pending: InternedData,
}

impl<'a> Interner<'a> {
    pub(super) fn new(strings: &'a StringTable) -> Self {
        let unsent = vec![false; strings.iter().len()];
        Self {
            strings,
            categories: unsent.clone(),
            names: unsent.clone(),
            arguments: unsent,
            last_iid: strings.iter().len() as u64,
            pending: InternedData::default(),
        }
    }

    pub(super) fn category(&mut self, text: StringHandle) -> u64 {
        intern(self.strings, &mut self.categories, &mut self.pending.event_categories, text)
    }

    pub(super) fn name(&mut self, text: StringHandle) -> u64 {
        intern(self.strings, &mut self.names, &mut self.pending.event_names, text)
    }

    pub(super) fn argument(&mut self, text: StringHandle) -> u64 {
        intern(self.strings, &mut self.arguments, &mut self.pending.debug_annotation_names, text)
    }

    /// Returns the ids of a category and a name that are not in the table.
    pub(super) fn define_event(&mut self, category: &str, name: &str) -> (u64, u64) {
        self.last_iid += 1;
        let iid = self.last_iid;
        self.pending.event_categories.push(InternedString { iid, name: category.to_owned() });
        self.pending.event_names.push(InternedString { iid, name: name.to_owned() });
        (iid, iid)
    }

    /// Returns the id of an argument name that is not in the table.
    pub(super) fn define_argument(&mut self, name: &str) -> u64 {
        self.last_iid += 1;
        let iid = self.last_iid;
        self.pending.debug_annotation_names.push(InternedString { iid, name: name.to_owned() });
        iid
    }

    /// Returns the definitions that the current packet must contain.
    pub(super) fn take_pending(&mut self) -> Option<InternedData> {
        let is_empty = self.pending.event_categories.is_empty()
            && self.pending.event_names.is_empty()
            && self.pending.debug_annotation_names.is_empty();
        (!is_empty).then(|| std::mem::take(&mut self.pending))
    }
}

fn intern(
    strings: &StringTable,
    known: &mut [bool],
    pending: &mut Vec<InternedString>,
    text: StringHandle,
) -> u64 {
    let iid = text.index() as u64 + 1;
    if let Some(known) = known.get_mut(text.index())
        && !std::mem::replace(known, true)
    {
        pending.push(InternedString { iid, name: strings.get(text).to_owned() });
    }
    iid
}
