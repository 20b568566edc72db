//! Tests of incidents over HTTP, and of files that are not served.

use std::process::Command;
use std::time::Duration;

use marple::CaptureKind;
use marple::config::HttpSettings;
use marple::internals::model::Manifest;

use crate::support::host::{self, Host};
use crate::support::web::{self, Response, get, send_request, serve};

/// Returns a service with one closed incident.
fn serve_with_closed_incident() -> (Host, String, Manifest) {
    let (host, url) = serve(HttpSettings::default());
    let kinds = [CaptureKind::Trace];
    host.handle().capture(kinds, Duration::from_millis(50)).wait(host::WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.artifacts.len(), 1, "{:?}", manifest.captures);
    (host, url, manifest)
}

#[test]
fn incidents_are_listed_and_files_served_with_ranges() {
    let (host, url, manifest) = serve_with_closed_incident();
    let id = manifest.id;
    let list = get(&format!("{url}/incidents")).json();
    let artifact = &manifest.artifacts[0];
    assert_eq!(list[0]["id"], id.to_string());
    assert_eq!(list[0]["state"], "closed");
    assert_eq!(list[0]["files"][0]["file"], artifact.file);
    let incident_page = get(&format!("{url}/incidents/{id}"));
    assert_eq!(incident_page.header("content-type"), Some("application/json"));
    assert_eq!(serde_json::from_slice::<Manifest>(&incident_page.body).unwrap(), manifest);

    let file_url = format!("{url}/incidents/{id}/{}", artifact.file);
    let full_file = get(&file_url);
    let on_disk = std::fs::read(host.incidents()[0].0.join(&artifact.file)).unwrap();
    assert_eq!((full_file.status, &full_file.body), (200, &on_disk));
    let tag = format!("\"{}\"", artifact.sha256);
    assert_eq!(full_file.header("etag"), Some(tag.as_str()));
    assert_eq!(full_file.header("accept-ranges"), Some("bytes"));
    let send_request = |headers: &[(&str, &str)]| send_request("GET", &file_url, headers, "");
    assert_eq!(send_request(&[("If-None-Match", &tag)]).status, 304);
    assert_eq!(send_request(&[("If-None-Match", "\"other\"")]).status, 200);
    let part = send_request(&[("Range", "bytes=3-9")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &on_disk[3..10]));
    let range = format!("bytes 3-9/{}", on_disk.len());
    assert_eq!(part.header("content-range"), Some(range.as_str()));
    assert_eq!(send_request(&[("Range", "bytes=3-9"), ("If-Range", &tag)]).status, 206);
    assert_eq!(send_request(&[("Range", "bytes=3-9"), ("If-Range", "\"old\"")]).body, on_disk);
    let beyond = send_request(&[("Range", "bytes=99999999-")]);
    let all = format!("bytes */{}", on_disk.len());
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(all.as_str())));
    let head = web::send_request("HEAD", &file_url, &[], "");
    let length = on_disk.len().to_string();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
    assert!(head.body.is_empty());
}

#[test]
fn archive_is_unpacked_by_tar() {
    let (host, url, manifest) = serve_with_closed_incident();
    let response = get(&format!("{url}/incidents/{}.tar.gz", manifest.id));
    assert_eq!(response.header("content-type"), Some("application/gzip"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("incident.tar.gz");
    std::fs::write(&file, &response.body).unwrap();
    let tar =
        Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(dir.path()).output().unwrap();
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    assert!(tar.stderr.is_empty(), "{}", String::from_utf8_lossy(&tar.stderr));
    let original = host.incidents()[0].0.clone();
    let unpacked = dir.path().join(original.file_name().unwrap());
    for name in ["incident.json", &manifest.artifacts[0].file] {
        let (a, b) = (std::fs::read(original.join(name)), std::fs::read(unpacked.join(name)));
        assert_eq!(a.unwrap(), b.unwrap(), "{name}");
    }
}

#[test]
fn name_too_long_for_tar_header_is_complete_in_archive() {
    let long =
        marple::Settings { service: "s".repeat(64), instance: "d".repeat(64), ..host::settings() };
    let (host, url) = web::serve_with(HttpSettings::default(), long);
    let kinds = [CaptureKind::Trace];
    host.handle().capture(kinds, Duration::from_millis(50)).wait(host::WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    let file = &manifest.artifacts[0].file;
    assert!(file.len() > 100, "{file}");
    let response = get(&format!("{url}/incidents/{}.tar.gz", manifest.id));
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar.gz");
    std::fs::write(&archive, &response.body).unwrap();
    let tar = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
    let listed = String::from_utf8_lossy(&tar.stdout).into_owned();
    assert!(tar.status.success() && listed.contains(file.as_str()), "{listed}");
}

#[test]
fn missing_paths_all_return_same_404() {
    let (host, url, manifest) = serve_with_closed_incident();
    let id = manifest.id;
    let file = &manifest.artifacts[0].file;
    std::fs::write(host.captures().join("secret"), "secret").unwrap();
    let expected = get(&format!("{url}/nowhere"));
    assert_eq!(expected.status, 404);
    let body = |answer: &Response| (answer.status, answer.text());
    for path in [
        "/incidents/".to_owned(),
        "/incidents/x".to_owned(),
        "/incidents/00000000000000000000000000".to_owned(),
        "/incidents/00000000000000000000000000.tar.gz".to_owned(),
        "/incidents/.tar.gz".to_owned(),
        "/incidents/..".to_owned(),
        "/incidents/%2e%2e".to_owned(),
        "/incidents/%2e%2e/secret".to_owned(),
        "/incidents/..%2fsecret".to_owned(),
        "/incidents/%252e%252e%252fsecret".to_owned(),
        "/incidents/%ff".to_owned(),
        "/incidents/%00".to_owned(),
        format!("/incidents/{id}/../secret"),
        format!("/incidents/{id}/..%2fsecret"),
        format!("/incidents/{id}/..%2f..%2f..%2f..%2fetc%2fpasswd"),
        format!("/incidents/{id}/%2fetc%2fpasswd"),
        format!("/incidents/{id}/..%252fsecret"),
        format!("/incidents/{id}/{file}%00"),
        format!("/incidents/{id}/{file}/"),
        format!("/incidents/{id}/{file}.part"),
        format!("/incidents/{id}/state.json"),
        format!("/incidents/{id}/%c0%ae%c0%ae"),
        format!("/incidents/{id}%2f{file}"),
        format!("/incidents/{id}/"),
    ] {
        assert_eq!(body(&get(&format!("{url}{path}"))), body(&expected), "{path}");
    }
}
