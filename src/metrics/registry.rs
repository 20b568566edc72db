//! A list of the service's metrics of one kind, by name.
//!
//! The list only grows, so indices are stable; each kind has a maximum. The lock is taken to create
//! a metric and by the reader, never to set, add or record.

use crate::base::sync::Mutex;
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::metrics::Error;
use crate::model::{MAX_CUSTOM_NAME_LEN, is_valid_custom_name};

/// Metrics of one kind. Clones refer to the same list.
#[derive(Clone, Debug)]
pub(crate) struct MetricRegistry<T>(Arc<Mutex<MetricList<T>>>);

type MetricList<T> = Vec<(Arc<str>, T)>;

impl<T> Default for MetricRegistry<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Default> MetricRegistry<T> {
    /// Returns the metric `name`, and creates it if it does not exist. `kind` is for errors,
    /// `limit` the maximum number.
    pub(crate) fn get(&self, name: &str, kind: &'static str, limit: usize) -> Result<T, Error> {
        if !is_valid_custom_name(name) {
            let name = name.chars().take(2 * MAX_CUSTOM_NAME_LEN).collect();
            return Err(Error::Name { kind, name });
        }
        let mut list = self.lock();
        if let Some((_, known)) = list.iter().find(|(known, _)| **known == *name) {
            return Ok(known.clone());
        }
        if list.len() >= limit {
            return Err(Error::TooMany { kind, name: name.to_owned(), limit });
        }
        let created = T::default();
        list.push((name.into(), created.clone()));
        Ok(created)
    }
}

impl<T> MetricRegistry<T> {
    /// Locks the list, which is in order of creation.
    pub(crate) fn lock(&self) -> MutexGuard<'_, MetricList<T>> {
        // No code panics under this lock, and a list is consistent between statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_name_returns_same_metric_and_limit_is_enforced() {
        let metrics = MetricRegistry::<Arc<()>>::default();
        let get = |name: &str| metrics.get(name, "thing", 3);
        let first = get("a").unwrap();
        assert!(Arc::ptr_eq(&first, &get("a").unwrap()));
        assert!(!Arc::ptr_eq(&first, &get("b").unwrap()));
        get("c").unwrap();
        let refused = Error::TooMany { kind: "thing", name: "d".to_owned(), limit: 3 };
        assert_eq!(get("d").unwrap_err(), refused);
        assert!(get("b").is_ok(), "one that is there is still given");
        for name in ["", "Queue", "a b", "ä"] {
            let refused = Error::Name { kind: "thing", name: name.to_owned() };
            assert_eq!(get(name).unwrap_err(), refused);
        }
    }
}
