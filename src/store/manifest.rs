//! `incident.json` as text: the model's own form in JSON, indented for the person who opens it in the
//! middle of a night. The form itself, and what may change in it, is said at [`Manifest`].

use std::borrow::Cow;
use std::io;

use crate::model::{Manifest, VitalsRow};

/// Why a text is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not JSON, or not of this form.
    #[error("{0}")]
    Form(#[from] serde_json::Error),
    /// A later version wrote it.
    #[error("it has schema {found}; this version of marple reads up to {reads}: use a later one")]
    Schema {
        /// The manifest's.
        found: u32,
        /// The newest this version reads.
        reads: u32,
    },
}

/// Writes a manifest, with a newline at its end.
///
/// JSON knows no infinity and no NaN, which a service's own gauge may well be: such a value is left out
/// of its row of vitals. Written as `null` it would make the whole manifest unreadable.
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

/// Reads a manifest; unknown fields are passed over. Never panics, whatever the text.
pub fn read(text: &[u8]) -> Result<Manifest, Error> {
    let manifest: Manifest = serde_json::from_slice(text)?;
    match manifest.schema {
        0..=Manifest::SCHEMA => Ok(manifest),
        found => Err(Error::Schema { found, reads: Manifest::SCHEMA }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture;

    #[test]
    fn what_is_written_is_read_back() {
        let manifest = fixture::manifest();
        let mut text = Vec::new();
        write(&manifest, &mut text).unwrap();
        assert_eq!(text.last(), Some(&b'\n'));
        assert_eq!(read(&text).unwrap(), manifest);
    }

    #[test]
    fn a_gauge_that_is_not_a_number_does_not_cost_the_manifest() {
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
    fn half_a_manifest_is_an_error_at_every_length() {
        let mut text = Vec::new();
        write(&fixture::manifest(), &mut text).unwrap();
        let whole = text.len() - 1;
        for length in 0..whole {
            assert!(read(&text[..length]).is_err(), "{length} of {whole} bytes");
        }
        assert!(read(&text[..whole]).is_ok());
    }

    #[test]
    fn fields_of_later_versions_are_passed_over_and_later_schemas_are_named() {
        let mut text = Vec::new();
        write(&fixture::manifest(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let added = text.replacen('{', "{\"mood\": \"grim\",", 1);
        assert!(read(added.as_bytes()).is_ok());
        let later = text.replacen("\"schema\": 1", "\"schema\": 2", 1);
        assert!(read(later.as_bytes()).unwrap_err().to_string().contains("schema 2"));
    }
}
