//! Which texts the reader of a sequence knows already.
//!
//! A text is sent once for each use (category, event name, argument name), in the packet that first
//! needs it, and named by number from there on. The number is the text's place in the timeline's table
//! plus one, 0 being nothing: so what is kept here is one bit for each text and use, and no map.

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

    /// The numbers of a category and a name that are not in the table.
    pub(super) fn extra_event(&mut self, category: &str, name: &str) -> (u64, u64) {
        self.extra += 1;
        let iid = self.extra;
        self.fresh.event_categories.push(Interned { iid, name: category.to_owned() });
        self.fresh.event_names.push(Interned { iid, name: name.to_owned() });
        (iid, iid)
    }

    /// The number of an argument's name that is not in the table.
    pub(super) fn extra_argument(&mut self, name: &str) -> u64 {
        self.extra += 1;
        let iid = self.extra;
        self.fresh.debug_annotation_names.push(Interned { iid, name: name.to_owned() });
        iid
    }

    /// What the reader must be told with the packet at hand.
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
