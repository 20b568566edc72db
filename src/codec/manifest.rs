//! `incident.json`: a [`Manifest`] as indented JSON, for people first and programs second.

use std::borrow::Cow;
use std::io::{self, Write};

use super::error::Error;
use crate::model::Manifest;

/// Writes `manifest`, ending in a newline.
///
/// JSON has no infinity and no not-a-number: such a value of the vitals, which only a service's own
/// gauge can have, is left out of its row rather than written as a `null` nobody could read back.
///
/// # Errors
///
/// Those of `out`.
pub fn write(manifest: &Manifest, mut out: impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, &*finite(manifest))?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Reads a manifest. Fields it does not know are ignored.
///
/// # Errors
///
/// [`Error::Manifest`], with the line and column, when `bytes` are not a whole manifest.
pub fn read(bytes: &[u8]) -> Result<Manifest, Error> {
    Ok(serde_json::from_slice(bytes)?)
}

fn finite(manifest: &Manifest) -> Cow<'_, Manifest> {
    if manifest.vitals.iter().all(|row| row.values.values().all(|value| value.is_finite())) {
        return Cow::Borrowed(manifest);
    }
    let mut manifest = manifest.clone();
    for row in &mut manifest.vitals {
        row.values.retain(|_, value| value.is_finite());
    }
    Cow::Owned(manifest)
}
