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

use super::archive::IncidentArchive;
use super::chunks::{self, CHUNK, ChunkSource};
use super::rows::Rows;
use crate::base::IncidentId;
use crate::http::responses::{NOSNIFF, not_found, refusal};
use crate::store::{self, Location};

/// Serves `/incidents`: all incidents, the latest first.
pub(super) async fn list(location: &Location) -> Response {
    let location = location.clone();
    let begun = off_thread(move || {
        let mut rows = Rows::new(location.entries()?);
        let first = rows.next().map_err(|source| cannot_read(&location, source))?;
        Ok((first.unwrap_or_default(), rows))
    });
    match begun.await {
        Ok((first, rows)) => rows.into_response(first),
        Err(refusal) => refusal,
    }
}

/// Serves `/incidents/{id}`, the manifest, and `/incidents/{id}.tar.gz`, all files.
pub(super) async fn one(location: &Location, name: &str, headers: &HeaderMap) -> Response {
    match name.strip_suffix(".tar.gz") {
        Some(id) => archive(location, id).await,
        None => file(location, name, store::MANIFEST, headers).await,
    }
}

async fn archive(location: &Location, id: &str) -> Response {
    let Ok(id) = id.parse() else { return not_found() };
    let location = location.clone();
    let archive = off_thread(move || {
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
    let (location, file) = (location.clone(), name.to_owned());
    let found = match off_thread(move || FoundFile::open(&location, id, &file)).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let tag = found.tag.as_deref();
    let matches = |listed: &str| {
        tag.is_some_and(|tag| listed.split(',').any(|one| one.trim() == tag || one.trim() == "*"))
    };
    let etag = tag.and_then(|tag| HeaderValue::try_from(tag).ok());
    if text(IF_NONE_MATCH).is_some_and(matches) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        response.headers_mut().extend(etag.map(|etag| (ETAG, etag)));
        return response;
    }
    // `If-Range`: a range is only useful if the client has the same version of the file.
    let ranged = text(RANGE).filter(|_| text(IF_RANGE).is_none_or(|wanted| tag == Some(wanted)));
    let (status, part) = match ranged.map_or(Range::Whole, |range| Range::parse(range, found.size))
    {
        Range::Whole => (StatusCode::OK, (0, found.size)),
        Range::Part(from, to) => (StatusCode::PARTIAL_CONTENT, (from, to)),
        Range::Beyond => {
            let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "no such part");
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
    let disposition = (kind != JSON)
        .then(|| HeaderValue::try_from(format!("attachment; filename=\"{name}\"")).ok())
        .flatten();
    let part = FilePart { file: found.file, at: from, to };
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
        let size = file.metadata().map_err(|source| cannot_read(location, source))?.len();
        if name == store::MANIFEST {
            // The manifest changes while the incident is open, and its digest is not stored.
            let digest = digest(&mut file).map_err(|source| cannot_read(location, source))?;
            return Ok(Self { file, size, tag: Some(digest), content_type: JSON });
        }
        let manifest = location.find(id)?.manifest;
        let listed =
            manifest.ok().and_then(|it| it.artifacts.into_iter().find(|it| it.file == name));
        let tag = listed.map(|it| format!("\"{}\"", it.sha256));
        Ok(Self { file, size, tag, content_type: "application/octet-stream" })
    }
}

fn cannot_read(location: &Location, source: io::Error) -> store::Error {
    store::Error::Io { doing: "read a file of", path: location.path(), source }
}

fn digest(file: &mut File) -> io::Result<String> {
    use sha2::{Digest, Sha256};

    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
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
    at: u64,
    to: u64,
}

impl FilePart {
    fn into_body(self) -> Body {
        if self.at >= self.to { Body::empty() } else { chunks::body(self) }
    }
}

impl ChunkSource for FilePart {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let left = self.to.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; left.min(CHUNK as u64) as usize];
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.read_exact(&mut chunk)?;
        self.at += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// The part of a file of `size` bytes that a `Range` header requests.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// The whole file. Used also for other units, several ranges or invalid ones, which RFC 9110
    /// allows.
    Whole,
    /// The range from the first value up to, not including, the second.
    Part(u64, u64),
    /// A range outside the file.
    Beyond,
}

impl Range {
    fn parse(text: &str, size: u64) -> Self {
        let Some((from, to)) = text.strip_prefix("bytes=").and_then(|it| it.split_once('-')) else {
            return Self::Whole;
        };
        let number = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| text.parse::<u64>().ok())
                .flatten()
        };
        match (from, number(from), to, number(to)) {
            ("", _, _, Some(0)) => Self::Beyond,
            ("", _, _, Some(last)) if size > 0 => Self::Part(size.saturating_sub(last), size),
            ("", _, _, Some(_)) => Self::Beyond,
            (_, Some(from), "", _) if from < size => Self::Part(from, size),
            (_, Some(from), _, Some(to)) if from <= to && from < size => {
                Self::Part(from, to.saturating_add(1).min(size))
            }
            (_, Some(_), "", _) => Self::Beyond,
            (_, Some(from), _, Some(to)) if from <= to => Self::Beyond,
            _ => Self::Whole,
        }
    }
}

/// Runs `work`, which reads files, on a blocking thread.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Response> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(store::Error::NoIncident { .. } | store::Error::NoArtifact { .. })) => {
            Err(not_found())
        }
        Ok(Err(error)) => Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())),
        Err(error) => Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_one_part_or_of_all() {
        for (text, expected) in [
            ("bytes=0-3", Range::Part(0, 4)),
            ("bytes=4-", Range::Part(4, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-99", Range::Part(0, 10)),
            ("bytes=9-99", Range::Part(9, 10)),
            ("bytes=9-18446744073709551615", Range::Part(9, 10)),
            ("bytes=10-", Range::Beyond),
            ("bytes=10-12", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=3-2", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("bytes=", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("items=0-3", Range::Whole),
            ("bytes=0-18446744073709551616", Range::Whole),
        ] {
            assert_eq!(Range::parse(text, 10), expected, "{text}");
        }
        assert_eq!(Range::parse("bytes=-1", 0), Range::Beyond);
        assert_eq!(Range::parse("bytes=0-", 0), Range::Beyond);
    }
}
