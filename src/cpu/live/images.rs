//! Which files were mapped while there were samples.

use crate::model::Mapping;
use crate::os::images;

/// Files that were mapped since the start, at most; a host that loads another each time stays bounded.
const MAX_IMAGES: usize = 4096;

/// They.
#[derive(Clone, Default)]
pub(super) struct Images(Vec<Mapping>);

impl Images {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_mappings(self) -> Vec<Mapping> {
        self.0
    }

    /// Adds what is mapped, in the place of what was mapped there before. What was unloaded stays: there
    /// are samples in it.
    pub(super) fn note(&mut self) {
        let Ok(loaded) = images::loaded() else { return };
        let overlaps = |old: &Mapping| {
            loaded.iter().any(|image| image.start < old.end && old.start < image.end)
        };
        let room = MAX_IMAGES.saturating_sub(loaded.len());
        let old = std::mem::take(&mut self.0);
        let gone: Vec<Mapping> = old.into_iter().filter(|old| !overlaps(old)).take(room).collect();
        // The main executable comes first in what is loaded and stays first.
        self.0 = loaded;
        self.0.extend(gone);
    }
}
