//! Tests that files of custom collectors are served like marple's own.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use marple::config::{HttpSettings, Listen};
use marple::internals::agent::CollectorOptions;
use marple::internals::model::Manifest;
use marple::{Builder, CaptureKind, Settings};
use tempfile::TempDir;

use crate::support::host::{self, Host, WAIT_TIMEOUT, settings};
use crate::support::web::{self, get, send_request, serve};

/// Returns the name of the file of the collector `name` in an incident.
fn collector_file<'a>(manifest: &'a Manifest, name: &str) -> &'a str {
    let end = format!(".custom.{name}");
    let found = manifest.artifacts.iter().find(|artifact| artifact.file.ends_with(&end));
    &found.unwrap_or_else(|| panic!("{name}: {:?}", manifest.captures)).file
}

/// Requests `file` of the incident, and the whole incident as an archive; both must have exactly
/// `content`.
fn assert_served(url: &str, manifest: &Manifest, file: &str, content: &[u8]) {
    let id = manifest.id;
    let response = get(&format!("{url}/incidents/{id}/{file}"));
    assert_eq!((response.status, response.body.as_slice()), (200, content), "{file}");
    let sum = &manifest.artifacts.iter().find(|artifact| artifact.file == file).unwrap().sha256;
    assert_eq!(response.header("etag"), Some(format!("\"{sum}\"").as_str()));
    // No browser may execute the service's content as a page of this origin.
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    let part =
        send_request("GET", &format!("{url}/incidents/{id}/{file}"), &[("Range", "bytes=1-2")], "");
    assert_eq!((part.status, part.body.as_slice()), (206, &content[1..3]));

    let archive = get(&format!("{url}/incidents/{id}.tar.gz"));
    assert_eq!(archive.status, 200);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("incident.tar.gz");
    fs::write(&path, &archive.body).unwrap();
    let tar = |args: &[&str]| {
        let out = Command::new("tar").arg(args[0]).arg(&path).args(&args[1..]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let listed = String::from_utf8(tar(&["-tzf"])).unwrap();
    let end = format!("/{file}");
    let member = listed.lines().find(|line| line.ends_with(&end));
    let member = member.unwrap_or_else(|| panic!("{file} is not in\n{listed}"));
    assert_eq!(tar(&["-xzOf", member]), content, "{member}");
}

#[test]
fn custom_collector_file_is_listed_and_served_and_archived() {
    let (host, url): (Host, String) = serve(HttpSettings::default());
    // Binary content is returned byte for byte.
    let content: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let (written, usual) = (content.clone(), CollectorOptions::default());
    let default_options = CollectorOptions { timeout: WAIT_TIMEOUT, ..usual };
    host.handle()
        .add_collector("pool.bin", default_options, move |out| Ok(out.write_all(&written)?))
        .unwrap();
    let page = "<script>alert(1)</script>";
    host.handle()
        .add_collector("page.html", default_options, move |out| Ok(write!(out, "{page}")?))
        .unwrap();
    let short = Duration::from_millis(20);
    host.handle().capture([CaptureKind::Trace], short).wait(WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    let list = get(&format!("{url}/incidents")).json();
    for (name, content) in [("pool.bin", content.as_slice()), ("page.html", page.as_bytes())] {
        let file = collector_file(&manifest, name);
        let files = list[0]["files"].as_array().unwrap();
        assert!(files.iter().any(|listed| listed["file"] == file), "{file}: {list}");
        assert_served(&url, &manifest, file, content);
    }
    let page =
        get(&format!("{url}/incidents/{}/{}", manifest.id, collector_file(&manifest, "page.html")));
    let kind = page.header("content-type").unwrap_or_default();
    assert!(!kind.contains("html"), "{kind}");
}

#[test]
fn file_of_builder_collector_is_served() {
    let _serial = host::serial_guard();
    let (dir, address) = (TempDir::new().unwrap(), web::unused_address());
    let http = HttpSettings { listen: Listen::Tcp(address), ..HttpSettings::default() };
    let captures = dir.path().join("captures");
    let settings = Settings { dir: captures.clone(), http: Some(http), ..settings() };
    let default_options = CollectorOptions { timeout: WAIT_TIMEOUT, ..CollectorOptions::default() };
    let agent = Builder::from_settings(settings)
        .add_collector_with("queries.txt", default_options, |out| Ok(writeln!(out, "select 1")?))
        .start()
        .unwrap();
    let short = Duration::from_millis(20);
    agent.handle().capture([CaptureKind::Trace], short).wait(WAIT_TIMEOUT).unwrap();
    let manifest = host::wait_for("a closed incident", || {
        let (_, manifest) = host::incidents(&captures).pop()?;
        manifest.closed.is_some().then_some(manifest)
    });
    let url = format!("http://{address}");
    assert_served(&url, &manifest, collector_file(&manifest, "queries.txt"), b"select 1\n");
}
