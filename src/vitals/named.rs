//! A list of the service's own numbers of one kind, by name.
//!
//! It only grows, so that what is at a place in it stays there; each kind has its bound. The lock is
//! taken to make one and by the reader, never to set, add or record.

use crate::base::sync::Mutex;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::Error;
use crate::model::{MAX_OWN_NAME, is_own_name};

/// Numbers of one kind. Clones are the same list.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(Arc<Mutex<List<T>>>);

type List<T> = Vec<(Arc<str>, T)>;

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Default> Named<T> {
    /// The one called `name`, made if there is none; `what` it is and how many there may be are for
    /// the refusal.
    pub(super) fn get(&self, name: &str, what: &'static str, most: usize) -> Result<T, Error> {
        if !is_own_name(name) {
            let name = name.chars().take(2 * MAX_OWN_NAME).collect();
            return Err(Error::Name { what, name });
        }
        let mut list = self.lock();
        if let Some((_, known)) = list.iter().find(|(known, _)| **known == *name) {
            return Ok(known.clone());
        }
        if list.len() >= most {
            return Err(Error::TooMany { what, name: name.to_owned(), most });
        }
        let made = T::default();
        list.push((name.into(), made.clone()));
        Ok(made)
    }
}

impl<T> Named<T> {
    /// All of them, in the order they were made.
    pub(super) fn lock(&self) -> MutexGuard<'_, List<T>> {
        // Nothing panics under this lock, and a list is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_is_the_same_number_and_the_list_ends() {
        let named = Named::<Arc<()>>::default();
        let get = |name: &str| named.get(name, "thing", 3);
        let first = get("a").unwrap();
        assert!(Arc::ptr_eq(&first, &get("a").unwrap()));
        assert!(!Arc::ptr_eq(&first, &get("b").unwrap()));
        get("c").unwrap();
        let refused = Error::TooMany { what: "thing", name: "d".to_owned(), most: 3 };
        assert_eq!(get("d").unwrap_err(), refused);
        assert!(get("b").is_ok(), "one that is there is still given");
        for name in ["", "Queue", "a b", "ä"] {
            let refused = Error::Name { what: "thing", name: name.to_owned() };
            assert_eq!(get(name).unwrap_err(), refused);
        }
    }
}
