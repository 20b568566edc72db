//! `incident.json` as text: the model as indented JSON, readable without tools. [`Manifest`]
//! defines the format and its compatibility rules.
//!
//! Vitals are most of a manifest, and they come after everything that a list needs. So
//! `ManifestHead` is read up to the line at which the vitals begin. A changed head is written, and
//! the rest is copied unchanged from that line on.

use std::borrow::Cow;
use std::io::{self, Read};

use crate::base::Bytes;
use crate::model::{Manifest, VitalsRow};

/// A size limit for reading and writing a manifest. 720 rows of vitals with 40 gauges take 1.5 MiB.
/// Rows beyond the limit are dropped.
pub(super) const MAX_MANIFEST_BYTES: Bytes = Bytes::mib(16);

/// A size limit for reading a head: about 10,000 artifacts.
pub(super) const MAX_HEAD_BYTES: Bytes = Bytes::mib(4);

/// A size limit for reading a manifest with its vitals, if it does not have the layout of
/// [`write`](fn@write).
const MAX_UNSPLIT_BYTES: Bytes = Bytes::mib(1);

/// The line at which the vitals begin. It occurs once: strings contain no line breaks, and nested
/// fields have more indentation.
const VITALS_LINE: &[u8] = b"\n  \"vitals\": [";

/// Bytes of a head read at once; most heads are smaller.
const READ_CHUNK_BYTES: u64 = 16 << 10;

/// An error of reading a manifest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not JSON, or lacks required fields.
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
    /// A later version wrote the manifest.
    #[error(
        "unsupported schema {found}: this version of marple reads up to {supported}; use a later \
         version"
    )]
    UnsupportedSchema {
        /// The schema of the manifest.
        found: u32,
        /// The latest schema that this version reads.
        supported: u32,
    },
    /// The manifest is longer than any that marple writes.
    #[error("`vitals` does not start within {limit}, unlike in manifests written by marple")]
    TooLong {
        /// The maximum size that is read.
        limit: Bytes,
    },
}

/// A manifest without its vitals and the losses after them.
#[derive(Debug)]
pub(super) struct ManifestHead {
    pub(super) manifest: Manifest,
    /// The offset of the line at which the vitals begin, or `None` if the text was read whole.
    pub(super) vitals_offset: Option<u64>,
}

/// Reads the head of a manifest without reading the rest.
pub(super) fn read_head(mut text: impl Read) -> io::Result<Result<ManifestHead, Error>> {
    let mut head = Vec::new();
    loop {
        let searched = head.len().saturating_sub(VITALS_LINE.len());
        if text.by_ref().take(READ_CHUNK_BYTES).read_to_end(&mut head)? == 0 {
            if head.len() as u64 > MAX_UNSPLIT_BYTES.get() {
                return Ok(Err(Error::TooLong { limit: MAX_UNSPLIT_BYTES }));
            }
            return Ok(read(&head).map(|manifest| ManifestHead { manifest, vitals_offset: None }));
        }
        let unsearched = head.get(searched..).unwrap_or_default();
        if let Some(at) =
            unsearched.windows(VITALS_LINE.len()).position(|window| window == VITALS_LINE)
        {
            let vitals_offset = searched + at;
            head.truncate(vitals_offset + VITALS_LINE.len());
            head.extend_from_slice(b"]}");
            let vitals_offset = Some(vitals_offset as u64);
            return Ok(read(&head).map(|manifest| ManifestHead { manifest, vitals_offset }));
        }
        if head.len() as u64 > MAX_HEAD_BYTES.get() {
            return Ok(Err(Error::TooLong { limit: MAX_HEAD_BYTES }));
        }
    }
}

/// Writes the fields of `manifest` before its vitals, up to the line at which they begin.
pub(super) fn write_head(manifest: &Manifest) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    serde_json::to_writer_pretty(&mut text, manifest)?;
    let at = text.windows(VITALS_LINE.len()).position(|window| window == VITALS_LINE);
    text.truncate(at.unwrap_or_default());
    Ok(text)
}

/// Writes `manifest`. While it is longer than [`MAX_MANIFEST_BYTES`], it drops every second row of
/// vitals and retries. Otherwise many gauges in a long incident would make it too large to be read
/// again.
pub(super) fn write_bounded(manifest: &mut Manifest) -> io::Result<Vec<u8>> {
    loop {
        let mut text = BoundedWriter { text: Vec::new(), is_full: false };
        match write(manifest, &mut text) {
            Ok(()) => return Ok(text.text),
            Err(_) if text.is_full && !manifest.vitals.is_empty() => {
                let before = manifest.vitals.len();
                let mut at = 0_usize;
                manifest.vitals.retain(|_| {
                    at += 1;
                    at.is_multiple_of(2)
                });
                let dropped = before - manifest.vitals.len();
                let cause = "rows of vitals left out: the manifest would be longer than 16 MiB";
                manifest.losses.add(cause, dropped as u64);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A buffer of at most [`MAX_MANIFEST_BYTES`].
struct BoundedWriter {
    text: Vec<u8>,
    is_full: bool,
}

impl io::Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_MANIFEST_BYTES.get() as usize {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a manifest with a newline at its end.
///
/// JSON has no infinity and no NaN, which a custom gauge can return. Such a value is left out of
/// its row of vitals. Written as `null`, it would make the whole manifest unreadable.
pub fn write(manifest: &Manifest, mut out: impl io::Write) -> io::Result<()> {
    let finite = |row: &VitalsRow| row.values.values().all(|value| value.is_finite());
    let mut manifest = Cow::Borrowed(manifest);
    if !manifest.vitals.iter().all(finite) {
        for row in &mut manifest.to_mut().vitals {
            row.values.retain(|_, value| value.is_finite());
        }
    }
    serde_json::to_writer_pretty(&mut out, &*manifest)?;
    out.write_all(b"\n")
}

/// Reads a manifest. Unknown fields are ignored. Does not panic on any input.
pub fn read(text: &[u8]) -> Result<Manifest, Error> {
    let manifest: Manifest = serde_json::from_slice(text)?;
    match manifest.schema {
        0..=Manifest::SCHEMA => Ok(manifest),
        found => Err(Error::UnsupportedSchema { found, supported: Manifest::SCHEMA }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Losses;
    use crate::store::fixture;

    #[test]
    fn manifest_round_trips() {
        let manifest = fixture::manifest();
        let mut text = Vec::new();
        write(&manifest, &mut text).unwrap();
        assert_eq!(text.last(), Some(&b'\n'));
        assert_eq!(read(&text).unwrap(), manifest);
    }

    #[test]
    fn head_ends_before_vitals_and_joins_rest_unchanged() {
        let mut manifest = fixture::manifest();
        // The string closest to the line that is searched for.
        manifest.reasons[0].text = "\n  \"vitals\": [".to_owned();
        manifest.losses.add("nothing of note", 1);
        for service in [0, 16 << 10, 40 << 10].map(|length| "x".repeat(length)) {
            manifest.service = service;
            let mut text = Vec::new();
            write(&manifest, &mut text).unwrap();
            let head = read_head(text.as_slice()).unwrap().unwrap();
            let bare =
                Manifest { vitals: Vec::new(), losses: Losses::default(), ..manifest.clone() };
            assert_eq!(head.manifest, bare);
            let vitals_offset = head.vitals_offset.unwrap() as usize;
            let mut joined = write_head(&bare).unwrap();
            assert_eq!(joined, text[..vitals_offset]);
            joined.extend_from_slice(&text[vitals_offset..]);
            assert_eq!(joined, text);
        }
    }

    #[test]
    fn compact_manifest_is_read_unless_too_long() {
        let manifest = fixture::manifest();
        let text = serde_json::to_vec(&manifest).unwrap();
        let head = read_head(text.as_slice()).unwrap().unwrap();
        assert_eq!((head.manifest, head.vitals_offset), (manifest, None));
        let long = io::repeat(b' ').take(MAX_HEAD_BYTES.get() * 2);
        assert!(matches!(read_head(long).unwrap(), Err(Error::TooLong { .. })));
        assert!(read_head(&b"{\n  \"vitals\": ["[..]).unwrap().is_err());
    }

    #[test]
    fn too_long_manifest_drops_vitals_rows() {
        let mut manifest = fixture::manifest();
        let values: BTreeMap<String, f64> =
            (0..1024).map(|at| (format!("gauge.of.the.service.{at}"), at as f64)).collect();
        let at = manifest.opened;
        manifest.vitals = vec![VitalsRow { at, values }; 720];
        let text = write_bounded(&mut manifest).unwrap();
        assert!(text.len() as u64 <= MAX_MANIFEST_BYTES.get());
        let read = read(&text).unwrap();
        assert!((180..720).contains(&read.vitals.len()), "{}", read.vitals.len());
        assert_eq!(read.losses.iter().next().unwrap().count as usize, 720 - read.vitals.len());
    }

    #[test]
    fn non_finite_gauge_values_are_left_out() {
        let mut manifest = fixture::manifest();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 2.5] {
            let values = [("gauge.odd".to_owned(), value), ("cpu".to_owned(), 1.0)].into();
            manifest.vitals.push(VitalsRow { at: manifest.opened, values });
        }
        let mut text = Vec::new();
        write(&manifest, &mut text).unwrap();
        let rows: Vec<_> = read(&text).unwrap().vitals.iter().map(|row| row.values.len()).collect();
        assert_eq!(rows[rows.len() - 4..], [1, 1, 1, 2]);
    }

    #[test]
    fn truncated_manifest_is_an_error_at_every_length() {
        let mut text = Vec::new();
        write(&fixture::manifest(), &mut text).unwrap();
        let full_length = text.len() - 1;
        for length in 0..full_length {
            assert!(read(&text[..length]).is_err(), "{length} of {full_length} bytes");
        }
        assert!(read(&text[..full_length]).is_ok());
    }

    #[test]
    fn unknown_fields_are_ignored_and_later_schemas_rejected() {
        let mut text = Vec::new();
        write(&fixture::manifest(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let added = text.replacen('{', "{\"mood\": \"grim\",", 1);
        assert!(read(added.as_bytes()).is_ok());
        let later = text.replacen("\"schema\": 1", "\"schema\": 2", 1);
        assert!(read(later.as_bytes()).unwrap_err().to_string().contains("schema 2"));
    }
}
