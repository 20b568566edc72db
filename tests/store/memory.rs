//! Memory use with the largest permitted store: 100 incidents with manifests of maximum length. No
//! request may need more than [`MAX_PEAK_BYTES`], whatever the store contains.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use marple::config::{HttpSettings, Listen, StoreSettings};
use marple::internals::base::{Bytes, SystemClock};
use marple::internals::model::{CaptureKind, IncidentState, Manifest, VitalsRow};
use marple::internals::store::Store;
use marple::{Builder, Settings};

use crate::support::counting;
use crate::support::host;
use crate::support::store;
use crate::support::web;

/// Bound for each request and for opening the store.
const MAX_PEAK_BYTES: isize = 16 << 20;

const INCIDENTS: usize = 100;

fn settings() -> StoreSettings {
    StoreSettings {
        max_bytes: Bytes::gib(8),
        max_bytes_per_incident: Bytes::gib(1),
        ..store::generous_limits()
    }
}

/// Fills `dir` with manifests of maximum length: hard links to a closed one, and copies marked as
/// open at every tenth.
fn fill_store(dir: &Path) {
    let (opened, _) = Store::open(dir, settings(), Arc::new(SystemClock)).unwrap();
    let mut first = opened.create_incident("memory", store::manifest()).unwrap();
    let mut artifacts = Vec::new();
    for _ in 0..40 {
        let at = jiff::Timestamp::now();
        let mut draft = first.draft(CaptureKind::Heap, at).unwrap();
        draft.write_all(&[7; 1000]).unwrap();
        artifacts.push(draft.commit().unwrap());
    }
    let at = first.manifest().opened;
    let values: BTreeMap<String, f64> =
        (0..1024).map(|at| (format!("gauge.of.the.service.number.{at}"), f64::from(at))).collect();
    first
        .update(|manifest| {
            manifest.artifacts = artifacts;
            manifest.state = IncidentState::Closed;
            manifest.vitals = vec![VitalsRow { at, values }; 600];
        })
        .unwrap();
    let path = first.path().to_owned();
    drop(first);
    for number in 1..INCIDENTS {
        let manifest = store::manifest();
        let is_open = number % 10 == 0;
        let closed = IncidentState::Closed;
        let mut next = opened.create_incident("memory", manifest).unwrap();
        if !is_open {
            next.update(|manifest| manifest.state = closed).unwrap();
        }
        let text = next.path().join("incident.json");
        if is_open {
            let manifest_text = fs::read_to_string(path.join("incident.json")).unwrap();
            let open = manifest_text.replacen("\"state\": \"closed\"", "\"state\": \"open\"", 1);
            fs::write(text, open).unwrap();
            continue;
        }
        fs::remove_file(&text).unwrap();
        fs::hard_link(path.join("incident.json"), text).unwrap();
    }
    let length = fs::metadata(path.join("incident.json")).unwrap().len();
    assert!((8 << 20..=16 << 20).contains(&length), "{length}");
}

/// Returns the bytes this thread has read so far, or `None` if the kernel does not count them.
fn bytes_read() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().next()?.strip_prefix("rchar: ")?.parse().ok()
}

/// Sends a request, discards the body, and returns the status and the length.
fn request_length(url: &str, path: &str) -> (u16, usize) {
    let mut stream = web::connect(url);
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut status = None;
    let mut length = 0;
    loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{path}: {error}"),
            Ok(0) => return (status.unwrap(), length),
            Ok(count) => {
                let text = || String::from_utf8_lossy(&buffer[9..12]).parse().unwrap();
                status.get_or_insert_with(text);
                length += count;
            }
        }
    }
}

#[test]
fn largest_store_is_opened_listed_and_served_in_bounded_memory() {
    let serial = host::serial_guard();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    fill_store(&dir);

    let mut interrupted = Vec::new();
    let peak_bytes = counting::peak_bytes(|| {
        let (_, recovery) = Store::open(&dir, settings(), Arc::new(SystemClock)).unwrap();
        assert!(recovery.errors.is_empty() && recovery.retention.evicted.is_empty(), "{recovery}");
        interrupted = recovery.interrupted;
    });
    eprintln!("open: {} KiB", peak_bytes >> 10);
    assert!(peak_bytes < MAX_PEAK_BYTES, "opening the store took {peak_bytes} bytes");
    assert_eq!(interrupted.len(), 9);
    let is_marked = |entry: &marple::internals::store::IncidentEntry| {
        entry.manifest.as_ref().unwrap().state == IncidentState::Interrupted
    };
    let marked = marple::internals::store::list(&dir).unwrap().into_iter().find(is_marked).unwrap();
    let text = fs::read(marked.path.join("incident.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&text).unwrap();
    assert!(manifest.closed.is_some() && manifest.vitals.len() >= 100, "the vitals are kept");
    drop((text, manifest));

    // The second start reads no manifest to its end and writes none.
    let before = bytes_read();
    let peak_bytes = counting::peak_bytes(|| {
        let (store, recovery) = Store::open(&dir, settings(), Arc::new(SystemClock)).unwrap();
        assert!(recovery.is_empty(), "{recovery}");
        drop(store);
    });
    eprintln!("open again: {} KiB", peak_bytes >> 10);
    assert!(peak_bytes < MAX_PEAK_BYTES, "opening the store again took {peak_bytes} bytes");
    if let (Some(before), Some(after)) = (before, bytes_read()) {
        let heads = (INCIDENTS * (64 << 10)) as u64;
        assert!(after - before < heads, "{} bytes were read", after - before);
    }

    let address = web::unused_address();
    let http = HttpSettings { listen: Listen::Tcp(address), ..HttpSettings::default() };
    let settings = Settings {
        dir: dir.clone(),
        store: settings(),
        interval: std::time::Duration::from_secs(1),
        http: Some(http),
        rules: Vec::new(),
        ..host::settings()
    };
    let agent = Builder::from_settings(settings).start().unwrap();
    let url = format!("http://{address}");
    let id = marple::internals::store::list(&dir).unwrap().pop().unwrap().id;
    let file = "orders_eu-1.001.memory.pprof".to_owned();
    for (path, min_bytes) in [
        ("/incidents".to_owned(), 100 * 1000),
        (format!("/incidents/{id}"), 8 << 20),
        (format!("/incidents/{id}.tar.gz"), 100 << 10),
        (format!("/incidents/{id}/{file}"), 1000),
    ] {
        let mut responses = Vec::with_capacity(4);
        let peak_bytes = counting::peak_bytes(|| {
            std::thread::scope(|scope| {
                let requests: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| request_length(&url, &path))).collect();
                responses.extend(requests.into_iter().map(|handle| handle.join().unwrap()));
            });
        });
        eprintln!("{path}: {} KiB, {responses:?}", peak_bytes >> 10);
        assert!(peak_bytes < MAX_PEAK_BYTES, "{path} took {peak_bytes} bytes");
        for (status, length) in responses {
            assert!(status == 200 && length >= min_bytes, "{path}: {status}, {length} bytes");
        }
    }
    drop((agent, serial));
}
