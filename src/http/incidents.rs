//! Serves `/incidents` and the routes below it. Files are found by id in the index, never by a path
//! from the request.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hmac_sha256::Hash;

use super::archive::IncidentArchive;
use super::chunks::{self, CHUNK_BYTES, ChunkSource};
use super::incident_list::IncidentList;
use crate::base::IncidentId;
use crate::http::responses::{NOSNIFF, error_response, not_found};
use crate::store::{self, Location};

/// Serves `/incidents`: all incidents, the latest first.
pub(super) async fn list(location: &Location) -> Response {
    let location = location.clone();
    let opening = run_blocking(move || {
        let mut list = IncidentList::new(location.entries()?);
        let first = list.next().map_err(|source| read_error(&location, source))?;
        Ok((first.unwrap_or_default(), list))
    });
    match opening.await {
        Ok((first, list)) => list.into_response(first),
        Err(refusal) => refusal,
    }
}

/// Serves `/incidents/{id}`, the manifest, and `/incidents/{id}.tar.gz`, all files.
pub(super) async fn manifest_or_archive(
    location: &Location,
    name: &str,
    headers: &HeaderMap,
) -> Response {
    match name.strip_suffix(".tar.gz") {
        Some(id) => archive(location, id).await,
        None => file(location, name, store::MANIFEST_FILE, headers).await,
    }
}

async fn archive(location: &Location, id: &str) -> Response {
    let Ok(id) = id.parse() else { return not_found() };
    let location = location.clone();
    let archive = run_blocking(move || {
        let entry = location.find(id)?;
        Ok((IncidentArchive::new(&location, &entry), entry.id))
    });
    let (archive, id) = match archive.await {
        Ok(archive) => archive,
        Err(refusal) => return refusal,
    };
    let name = HeaderValue::try_from(format!("attachment; filename=\"{id}.tar.gz\""));
    let mut response = ([NOSNIFF], chunks::body(archive)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    if let Ok(name) = name {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    response
}

/// Serves `/incidents/{id}/{file}`: a file, or the requested range of it.
pub(super) async fn file(
    location: &Location,
    id: &str,
    name: &str,
    headers: &HeaderMap,
) -> Response {
    let Ok(id) = id.parse() else { return not_found() };
    let location = location.clone();
    let file = name.to_owned();
    let found = match run_blocking(move || FoundFile::open(&location, id, &file)).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let tag = found.tag.as_deref();
    let matches = |listed: &str| {
        tag.is_some_and(|tag| {
            listed.split(',').any(|candidate| candidate.trim() == tag || candidate.trim() == "*")
        })
    };
    let etag = tag.and_then(|tag| HeaderValue::try_from(tag).ok());
    if text(IF_NONE_MATCH).is_some_and(matches) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        response.headers_mut().extend(etag.map(|etag| (ETAG, etag)));
        return response;
    }
    // `If-Range`: a range is only useful if the client has the same version of the file.
    let range_header =
        text(RANGE).filter(|_| text(IF_RANGE).is_none_or(|if_range| tag == Some(if_range)));
    let (status, part) =
        match range_header.map_or(Range::Full, |range| Range::parse(range, found.size)) {
            Range::Full => (StatusCode::OK, (0, found.size)),
            Range::Part(from, to) => (StatusCode::PARTIAL_CONTENT, (from, to)),
            Range::Unsatisfiable => {
                let mut response =
                    error_response(StatusCode::RANGE_NOT_SATISFIABLE, "range is outside the file");
                let all = HeaderValue::try_from(format!("bytes */{}", found.size)).ok();
                response.headers_mut().extend(all.map(|all| (CONTENT_RANGE, all)));
                return response;
            }
        };
    let (from, to) = part;
    let kind = found.content_type;
    let range = (status == StatusCode::PARTIAL_CONTENT)
        .then(|| HeaderValue::try_from(format!("bytes {from}-{}/{}", to - 1, found.size)).ok())
        .flatten();
    let disposition = (![JSON, MARKDOWN].contains(&kind))
        .then(|| HeaderValue::try_from(format!("attachment; filename=\"{name}\"")).ok())
        .flatten();
    let part = FilePart { file: found.file, position: from, end: to };
    let mut response = (status, [NOSNIFF], part.into_body()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(to - from));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.extend(etag.map(|etag| (ETAG, etag)));
    headers.extend(range.map(|range| (CONTENT_RANGE, range)));
    headers.extend(disposition.map(|disposition| (CONTENT_DISPOSITION, disposition)));
    response
}

const JSON: &str = "application/json";
const MARKDOWN: &str = "text/markdown; charset=utf-8";

/// An opened file with its metadata.
struct FoundFile {
    file: File,
    size: u64,
    /// The ETag `"sha256"`, or `None` if the manifest has no digest of the file yet.
    tag: Option<String>,
    content_type: &'static str,
}

impl FoundFile {
    fn open(location: &Location, id: IncidentId, name: &str) -> Result<Self, store::Error> {
        let mut file = location.open_artifact(id, name)?;
        let size = file.metadata().map_err(|source| read_error(location, source))?.len();
        let changing = match name {
            store::MANIFEST_FILE => Some(JSON),
            store::REPORT_FILE => Some(MARKDOWN),
            _ => None,
        };
        if let Some(content_type) = changing {
            // It changes while the incident is open, and its digest is not stored.
            let digest = compute_etag(&mut file).map_err(|source| read_error(location, source))?;
            return Ok(Self { file, size, tag: Some(digest), content_type });
        }
        let manifest = location.find(id)?.manifest;
        let listed = manifest
            .ok()
            .and_then(|manifest| manifest.artifacts.into_iter().find(|it| it.file == name));
        let tag = listed.map(|artifact| format!("\"{}\"", artifact.sha256));
        Ok(Self { file, size, tag, content_type: "application/octet-stream" })
    }
}

fn read_error(location: &Location, source: io::Error) -> store::Error {
    store::Error::Io { operation: "read a file in", path: location.path(), source }
}

fn compute_etag(file: &mut File) -> io::Result<String> {
    let mut hash = Hash::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("\"{hex}\""))
}

/// The byte range `at..to` of a file.
struct FilePart {
    file: File,
    position: u64,
    end: u64,
}

impl FilePart {
    fn into_body(self) -> Body {
        if self.position >= self.end { Body::empty() } else { chunks::body(self) }
    }
}

impl ChunkSource for FilePart {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let remaining = self.end.saturating_sub(self.position);
        if remaining == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; remaining.min(CHUNK_BYTES as u64) as usize];
        self.file.seek(SeekFrom::Start(self.position))?;
        self.file.read_exact(&mut chunk)?;
        self.position += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// The part of a file of `size` bytes that a `Range` header requests.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// The whole file. Used also for other units, several ranges or invalid ones, which RFC 9110
    /// allows.
    Full,
    /// The range from the first value up to, not including, the second.
    Part(u64, u64),
    /// A range outside the file.
    Unsatisfiable,
}

impl Range {
    fn parse(text: &str, size: u64) -> Self {
        let Some((from, to)) = text.strip_prefix("bytes=").and_then(|value| value.split_once('-'))
        else {
            return Self::Full;
        };
        let number = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        match (from, number(from), to, number(to)) {
            ("", _, _, Some(0)) => Self::Unsatisfiable,
            ("", _, _, Some(last)) if size > 0 => Self::Part(size.saturating_sub(last), size),
            ("", _, _, Some(_)) => Self::Unsatisfiable,
            (_, Some(from), "", _) if from < size => Self::Part(from, size),
            (_, Some(from), _, Some(to)) if from <= to && from < size => {
                Self::Part(from, to.saturating_add(1).min(size))
            }
            (_, Some(_), "", _) => Self::Unsatisfiable,
            (_, Some(from), _, Some(to)) if from <= to => Self::Unsatisfiable,
            _ => Self::Full,
        }
    }
}

/// Runs `work`, which reads files, on a blocking thread.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Response> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(store::Error::NoIncident { .. } | store::Error::NoArtifact { .. })) => {
            Err(not_found())
        }
        Ok(Err(error)) => {
            Err(error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
        }
        Err(error) => Err(error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_single_range_and_ignores_unsupported_ranges() {
        for (text, expected) in [
            ("bytes=0-3", Range::Part(0, 4)),
            ("bytes=4-", Range::Part(4, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-99", Range::Part(0, 10)),
            ("bytes=9-99", Range::Part(9, 10)),
            ("bytes=9-18446744073709551615", Range::Part(9, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=10-12", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=3-2", Range::Full),
            ("bytes=0-1,4-5", Range::Full),
            ("bytes=", Range::Full),
            ("bytes=-", Range::Full),
            ("bytes=+1-2", Range::Full),
            ("items=0-3", Range::Full),
            ("bytes=0-18446744073709551616", Range::Full),
        ] {
            assert_eq!(Range::parse(text, 10), expected, "{text}");
        }
        assert_eq!(Range::parse("bytes=-1", 0), Range::Unsatisfiable);
        assert_eq!(Range::parse("bytes=0-", 0), Range::Unsatisfiable);
    }
}
