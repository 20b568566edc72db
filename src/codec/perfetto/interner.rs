//! Texts that a packet sequence has already defined.
//!
//! A text is sent once for each use (category, event name, argument name), in the first packet that
//! needs it. Later packets refer to it by id. The id is the index in the timeline's table plus one,
//! because 0 means none. The state is therefore one bit per text and use, without a map.

use super::proto::{Interned, InternedData};
use crate::model::{StringHandle, StringTable};

pub(super) struct Interner<'a> {
    strings: &'a StringTable,
    categories: Vec<bool>,
    names: Vec<bool>,
    arguments: Vec<bool>,
    extra: u64,
    fresh: InternedData,
}

impl<'a> Interner<'a> {
    pub(super) fn new(strings: &'a StringTable) -> Self {
        let unknown = vec![false; strings.iter().len()];
        Self {
            strings,
            categories: unknown.clone(),
            names: unknown.clone(),
            arguments: unknown,
            extra: strings.iter().len() as u64,
            fresh: InternedData::default(),
        }
    }

    pub(super) fn category(&mut self, text: StringHandle) -> u64 {
        number(self.strings, &mut self.categories, &mut self.fresh.event_categories, text)
    }

    pub(super) fn name(&mut self, text: StringHandle) -> u64 {
        number(self.strings, &mut self.names, &mut self.fresh.event_names, text)
    }

    pub(super) fn argument(&mut self, text: StringHandle) -> u64 {
        number(self.strings, &mut self.arguments, &mut self.fresh.debug_annotation_names, text)
    }

    /// Returns the ids of a category and a name that are not in the table.
    pub(super) fn extra_event(&mut self, category: &str, name: &str) -> (u64, u64) {
        self.extra += 1;
        let iid = self.extra;
        self.fresh.event_categories.push(Interned { iid, name: category.to_owned() });
        self.fresh.event_names.push(Interned { iid, name: name.to_owned() });
        (iid, iid)
    }

    /// Returns the id of an argument name that is not in the table.
    pub(super) fn extra_argument(&mut self, name: &str) -> u64 {
        self.extra += 1;
        let iid = self.extra;
        self.fresh.debug_annotation_names.push(Interned { iid, name: name.to_owned() });
        iid
    }

    /// Returns the definitions that the current packet must contain.
    pub(super) fn take_fresh(&mut self) -> Option<InternedData> {
        let nothing = self.fresh.event_categories.is_empty()
            && self.fresh.event_names.is_empty()
            && self.fresh.debug_annotation_names.is_empty();
        (!nothing).then(|| std::mem::take(&mut self.fresh))
    }
}

fn number(
    strings: &StringTable,
    known: &mut [bool],
    fresh: &mut Vec<Interned>,
    text: StringHandle,
) -> u64 {
    let iid = text.index() as u64 + 1;
    if let Some(known) = known.get_mut(text.index())
        && !std::mem::replace(known, true)
    {
        fresh.push(Interned { iid, name: strings.get(text).to_owned() });
    }
    iid
}
