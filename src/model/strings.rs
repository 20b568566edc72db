//! Interned strings.

use std::collections::HashMap;
use std::sync::Arc;

/// A row of a [`StringTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StringHandle(u32);

impl StringHandle {
    /// The empty string, which is the first entry of every table.
    pub const EMPTY: Self = Self(0);

    /// Returns the index in [`StringTable::iter`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A table of interned strings, in insertion order. The first one is empty, as `profile.proto`
/// requires.
#[derive(Clone, Debug)]
pub struct StringTable {
    texts: Vec<Arc<str>>,
    by_text: HashMap<Arc<str>, StringHandle>,
}

impl Default for StringTable {
    fn default() -> Self {
        let mut table = Self { texts: Vec::new(), by_text: HashMap::new() };
        table.intern("");
        table
    }
}

impl StringTable {
    /// Returns the handle of `text`, adding it if it is missing.
    pub fn intern(&mut self, text: &str) -> StringHandle {
        if let Some(&handle) = self.by_text.get(text) {
            return handle;
        }
        let handle = StringHandle(self.texts.len() as u32);
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        self.by_text.insert(text, handle);
        handle
    }

    /// Returns a string of this table.
    pub fn get(&self, handle: StringHandle) -> &str {
        &self.texts[handle.index()]
    }

    /// Returns all strings, in handle order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.texts.iter().map(|text| &**text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intern_returns_one_handle_per_text() {
        let mut table = StringTable::default();
        assert_eq!(table.intern(""), StringHandle::EMPTY);
        let a = table.intern("a");
        assert_ne!(a, table.intern("b"));
        assert_eq!(a, table.intern("a"));
        assert_eq!(table.get(a), "a");
        assert_eq!(table.iter().collect::<Vec<_>>(), ["", "a", "b"]);
    }
}
