//! The listener over real sockets: the toggle, the token, ports and unix sockets, a blocked worker.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::{fs, thread};

use marple::config::{HttpSettings, Listen, Secret};
use marple::internals::model::Origin;
use marple::{Builder, Settings, http};
use serde_json::Value;

use crate::support::host::{self, Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::web::{self, unused_address};

fn settings_with_listener(listen: Listen, token: Option<&str>) -> Settings {
    Settings {
        http: Some(HttpSettings {
            listen,
            token: token.map(Secret::new),
            max_requests_per_second: 1_000_000,
            ..HttpSettings::default()
        }),
        ..settings()
    }
}

fn start_host() -> (Host, String) {
    web::serve(HttpSettings::default())
}

/// Sends a request and returns status and body.
fn send_request(method: &str, url: &str, token: Option<&str>) -> (u16, Value) {
    let headers: Vec<_> = token.map(|token| ("Authorization", token)).into_iter().collect();
    let response = web::send_request(method, url, &headers, "");
    let body = response.text();
    (response.status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

#[test]
fn notify_without_action_toggles_and_keeps_response_format() {
    let (host, url) = start_host();
    let url = format!("{url}/monitor/notify");
    let (status, on) = send_request("POST", &url, None);
    assert_eq!((status, &on["code"], &on["msg"]), (200, &0.into(), &"notify success".into()));
    assert_eq!(on["on"], true);
    assert_eq!(
        on["running"],
        serde_json::json!(["trace", "threads", "tasks", "descriptors", "panics", "cpu", "heap"])
    );
    assert!(on["since"].is_string() && on["incident"].is_string(), "{on}");
    let (_, off) = send_request("POST", &url, None);
    assert_eq!((&off["on"], &off["incident"]), (&false.into(), &on["incident"]));
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.id.to_string(), on["incident"]);
    assert_eq!(manifest.reasons[0].origin, Origin::Http);
}

#[test]
fn notify_executes_requested_action() {
    let (host, url) = start_host();
    let notify =
        |action: &str| send_request("POST", &format!("{url}/monitor/notify?action={action}"), None);
    for (action, on) in [
        ("status", false),
        ("start", true),
        ("start", true),
        ("status", true),
        ("stop", false),
        ("stop", false),
        ("toggle", true),
        ("toggle", false),
    ] {
        let (status, response) = notify(action);
        assert_eq!((status, &response["on"]), (200, &on.into()), "{action}: {response}");
    }
    for wrong in ["sotp", "start&x=1"] {
        let (status, response) = notify(wrong);
        assert_eq!((status, &response["code"]), (400, &400.into()));
        assert!(response["msg"].as_str().unwrap().contains("start, stop, toggle"), "{response}");
    }
    drop(host);
}

#[test]
fn thousand_concurrent_requests_leave_consistent_state() {
    let (mut host, url) = start_host();
    let url = format!("{url}/monitor/notify");
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let url = url.clone();
            thread::spawn(move || {
                (0..50).map(|_| send_request("POST", &url, None)).collect::<Vec<_>>()
            })
        })
        .collect();
    let responses: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert!(responses.iter().all(|(status, _)| *status == 200), "every request is answered");
    assert_eq!(responses.iter().filter(|(_, toggle)| toggle["on"] == true).count(), 500);
    assert_eq!(send_request("GET", &format!("{url}?action=status"), None).1["on"], false);
    host.end();
    assert!(host.incidents().iter().all(|(_, manifest)| manifest.closed.is_some()));
}

#[test]
fn token_is_required_and_never_shown() {
    let address = unused_address();
    let host = Host::start(settings_with_listener(Listen::Tcp(address), Some("s3cret")));
    let url = format!("http://{address}/status");
    for wrong in
        [None, Some("s3cret"), Some("Bearer s3cre"), Some("Bearer s3cret2"), Some("Bearer ")]
    {
        let (status, response) = send_request("GET", &url, wrong);
        assert_eq!((status, &response["code"]), (401, &401.into()), "{wrong:?}");
    }
    let (status, _) = send_request("GET", &format!("http://{address}/nowhere"), None);
    assert_eq!(status, 401, "what exists is not told to strangers");
    let (status, response) = send_request("GET", &url, Some("bearer s3cret"));
    assert_eq!(status, 200);
    assert!(!response.to_string().contains("s3cret"));
    drop(host);
}

#[test]
fn public_address_without_token_is_configuration_error() {
    let _serial = host::serial_guard();
    let settings = settings_with_listener(Listen::Tcp("0.0.0.0:0".parse().unwrap()), None);
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().join("x"), ..settings };
    let error = Builder::from_settings(settings).start().err().expect("refused").to_string();
    assert!(error.contains("token"), "{error}");
}

#[test]
fn port_in_use_error_names_port() {
    let _serial = host::serial_guard();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        dir: dir.path().join("x"),
        ..settings_with_listener(Listen::Tcp(address), None)
    };
    let error =
        Builder::from_settings(settings).strict(true).start().err().expect("refused").to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[test]
fn unix_socket_is_accessible_to_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    // A socket left by a dead process is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut host = Host::start(settings_with_listener(Listen::Unix(path.clone()), None));
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("\"version\""), "{response}");
    host.end();
    assert!(!path.exists(), "the socket goes with the agent");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "and nothing else is left");

    drop(host);
    let _serial = host::serial_guard();
    fs::write(&path, "not a socket").unwrap();
    let settings = Settings {
        dir: dir.path().join("x"),
        ..settings_with_listener(Listen::Unix(path.clone()), None)
    };
    let error =
        Builder::from_settings(settings).strict(true).start().err().expect("refused").to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket");
}

#[inline(never)]
fn block_only_worker(released: &std::sync::mpsc::Receiver<()>) {
    let _ = released.recv_timeout(WAIT_TIMEOUT);
    std::hint::black_box(());
}

/// Blocks the worker with a plain `tokio::spawn` task, without any of marple's wrappers.
#[test]
fn responds_and_names_blocker_while_only_worker_is_blocked() {
    let address = unused_address();
    let url = format!("http://{address}");
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let host =
        runtime.block_on(async { Host::start(settings_with_listener(Listen::Tcp(address), None)) });
    // The agent recognizes the worker after the probe has run on it.
    let ticks =
        || send_request("GET", &format!("{url}/status"), None).1["counters"]["ticks"].as_u64();
    wait_for("some ticks", || ticks().filter(|ticks| *ticks > 10));
    let (release, released) = std::sync::mpsc::channel();
    let stuck = runtime.spawn(async move { block_only_worker(&released) });
    wait_for("the lag to show", || {
        let (status, response) = send_request("GET", &format!("{url}/status"), None);
        assert_eq!(status, 200);
        response["vitals"]["runtime.lag"].as_f64().filter(|lag| *lag > 0.3)
    });

    let timed = |method: &str, path: &str| {
        let started_at = std::time::Instant::now();
        let (status, response) = send_request(method, &format!("{url}{path}"), None);
        println!("{path}: {:?}", started_at.elapsed());
        assert_eq!(status, 200, "{path}: {response}");
        response
    };
    assert!(timed("GET", "/status")["vitals"]["runtime.lag"].as_f64().unwrap() > 0.3);
    // The poll is unrecorded, so the stall is reported once two stacks show the same poll.
    let stall = wait_for("the status to name it", || {
        let stall = timed("GET", "/status")["stalls"][0].clone();
        stall["function"].is_string().then_some(stall)
    });
    assert!(stall["function"].as_str().unwrap().contains("block_only_worker"), "{stall}");
    assert_eq!((&stall["suspected"], &stall["running"]), (&true.into(), &true.into()), "{stall}");
    let text = timed("GET", "/debug/pprof/goroutine?debug=2");
    assert!(text.as_str().unwrap().contains("block_only_worker"), "{text}");
    let text = timed("GET", "/debug/pprof/goroutine?debug=1");
    assert!(text.as_str().unwrap().contains("block_only_worker"), "{text}");
    assert_eq!(timed("POST", "/monitor/notify")["on"], true);
    // The toggle's capture must name the function too.
    let threads = wait_for("the threads in the incident", || {
        let (dir, manifest) = host.incidents().pop()?;
        let mut names = manifest.artifacts.iter().map(|artifact| &artifact.file);
        fs::read_to_string(dir.join(names.find(|name| name.ends_with("threads.txt"))?)).ok()
    });
    assert!(threads.contains("block_only_worker"), "{threads}");
    assert!(!stuck.is_finished());
    release.send(()).unwrap();
    runtime.block_on(stuck).unwrap();
    drop(host);
}

#[test]
fn routes_nest_into_service_router() {
    let host = Host::start(settings());
    let token = Some(Secret::new("t"));
    let guard = HttpSettings { token, ..HttpSettings::default() };
    let routes = http::guarded(&host.handle(), &guard);
    let app = axum::Router::new().nest("/ops", routes);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let address = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await });
        address
    });
    let url = format!("http://{address}/ops/monitor/notify?action=status");
    assert_eq!(send_request("GET", &url, None).0, 401);
    let (status, response) = send_request("GET", &url, Some("Bearer t"));
    assert_eq!((status, &response["msg"]), (200, &"notify success".into()));
    drop(host);
    let (status, response) = send_request("GET", &url, Some("Bearer t"));
    assert_eq!(status, 503, "{response}");
    runtime.shutdown_timeout(Duration::ZERO);
}
