//! Streams the list of incidents. The head of one manifest is in memory at a time.

use std::io;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Serialize;

use super::chunks::{self, CHUNK_BYTES, ChunkSource};
use crate::base::{Bytes, IncidentId};
use crate::http::responses::NOSNIFF;
use crate::model::{CaptureKind, IncidentState};
use crate::store::{IncidentEntries, IncidentEntry};

/// An incident in the list.
#[derive(Serialize)]
struct IncidentRow {
    id: IncidentId,
    name: String,
    opened: Timestamp,
    closed: Option<Timestamp>,
    state: Option<IncidentState>,
    /// Reason of the rule or the caller that opened the incident.
    reason: Option<String>,
    files: Vec<FileRow>,
    bytes: Bytes,
    /// Error if its manifest cannot be read, else `None`.
    error: Option<String>,
}

#[derive(Serialize)]
struct FileRow {
    file: String,
    kind: CaptureKind,
    bytes: Bytes,
}

impl From<IncidentEntry> for IncidentRow {
    fn from(entry: IncidentEntry) -> Self {
        let IncidentEntry { id, name, opened, manifest, .. } = entry;
        let (manifest, error) = match manifest {
            Ok(manifest) => (Some(manifest), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let closed = manifest.as_ref().and_then(|manifest| manifest.closed);
        let state = manifest.as_ref().map(|manifest| manifest.state);
        let reason =
            manifest.as_ref().and_then(|manifest| Some(manifest.reasons.first()?.text.clone()));
        let files: Vec<FileRow> = manifest
            .into_iter()
            .flat_map(|manifest| manifest.artifacts)
            .map(|artifact| FileRow {
                file: artifact.file,
                kind: artifact.kind,
                bytes: artifact.bytes,
            })
            .collect();
        let bytes = Bytes(files.iter().map(|file| file.bytes.get()).sum());
        Self { id, name, opened, closed, state, reason, files, bytes, error }
    }
}

/// A JSON array of incidents, produced in chunks.
pub(super) struct IncidentList {
    /// `None` after the end of the array.
    entries: Option<IncidentEntries>,
    is_first: bool,
}

impl IncidentList {
    pub(super) fn new(entries: IncidentEntries) -> Self {
        Self { entries: Some(entries), is_first: true }
    }

    /// Returns the response that starts with the chunk `first`. It has a `Content-Length` if there
    /// are no more chunks.
    pub(super) fn into_response(self, first: Vec<u8>) -> Response {
        let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.entries.is_none() {
            return ([NOSNIFF], [kind], first).into_response();
        }
        let body = chunks::body(PrefixedList { first: Some(first), list: self });
        ([NOSNIFF], [kind], body).into_response()
    }

    /// Appends the next incident. Returns `false` after the last one.
    fn append_next(&mut self, text: &mut Vec<u8>) -> io::Result<bool> {
        let entry = self.entries.as_mut().and_then(Iterator::next);
        let is_first = std::mem::take(&mut self.is_first);
        let Some(entry) = entry else {
            text.extend_from_slice(if is_first { b"[]" } else { b"\n]" });
            self.entries = None;
            return Ok(false);
        };
        text.extend_from_slice(if is_first { b"[\n" } else { b",\n" });
        serde_json::to_writer_pretty(text, &IncidentRow::from(entry))?;
        Ok(true)
    }
}

impl ChunkSource for IncidentList {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.entries.is_none() {
            return Ok(None);
        }
        let mut text = Vec::new();
        while text.len() < CHUNK_BYTES && self.append_next(&mut text)? {}
        Ok(Some(text))
    }
}

struct PrefixedList {
    first: Option<Vec<u8>>,
    list: IncidentList,
}

impl ChunkSource for PrefixedList {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.list.next(),
        }
    }
}
