//! Collection of executable mappings over the time of a profile.

use crate::model::Mapping;
use crate::os::images;

/// Maximum number of mappings; bounds a host that keeps loading new files.
const MAX_IMAGES: usize = 4096;

/// Executable mappings seen while samples were recorded.
#[derive(Clone, Default)]
pub(super) struct SeenImages(Vec<Mapping>);

impl SeenImages {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_mappings(self) -> Vec<Mapping> {
        self.0
    }

    /// Adds the current mappings; they replace earlier ones at overlapping addresses. Unloaded
    /// files stay, because samples refer to them.
    pub(super) fn add_current(&mut self) {
        let Ok(loaded) = images::loaded() else { return };
        let overlaps = |old: &Mapping| {
            loaded.iter().any(|image| image.start < old.end && old.start < image.end)
        };
        let limit = MAX_IMAGES.saturating_sub(loaded.len());
        let old = std::mem::take(&mut self.0);
        let unloaded: Vec<Mapping> =
            old.into_iter().filter(|old| !overlaps(old)).take(limit).collect();
        // The main executable is the first loaded mapping and stays first.
        self.0 = loaded;
        self.0.extend(unloaded);
    }
}
