//! Tests of an exposed endpoint: forged hosts and origins, wrong tokens, slow and oversized
//! clients, and fuzzed requests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use marple::config::{HttpSettings, Secret};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

use crate::support::host::{self, Host, wait_for};
use crate::support::web::{self, get, send_raw, send_request, serve};

fn serve_with_token() -> (Host, String) {
    serve(HttpSettings { token: Some(Secret::new("s3cret")), ..HttpSettings::default() })
}

fn toggle_is_on(url: &str, headers: &[(&str, &str)]) -> bool {
    send_request("GET", &format!("{url}/monitor/notify?action=status"), headers, "").json()["on"]
        == true
}

#[test]
fn all_paths_return_same_401_without_token() {
    let (_host, url) = serve_with_token();
    let expected = get(&format!("{url}/status"));
    assert_eq!((expected.status, expected.header("www-authenticate")), (401, Some("Bearer")));
    for path in [
        "/status?token=s3cret",
        "/status?access_token=s3cret",
        "/s3cret/status",
        "/nowhere",
        "/",
        "/metrics",
        "/incidents",
        "/incidents/00000000000000000000000000",
        "/incidents/x/y",
        "/debug/pprof",
        "/debug/pprof/",
        "/debug/pprof/heap",
        "/debug/pprof/nosuch",
        "/debug/pprof/profile?seconds=1",
        "/monitor/notify",
        "/monitor/notify?action=bad",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            for header in [
                None,
                Some("s3cret"),
                Some("Basic s3cret"),
                Some("Bearer s3cre"),
                Some("Bearer s3crets"),
                Some("Bearer  s3cret"),
                Some("Bearer\ts3cret"),
                Some("Bearer S3CRET"),
                Some("Bearer"),
            ] {
                let headers: Vec<_> =
                    header.iter().map(|header_value| ("Authorization", *header_value)).collect();
                let response = send_request(method, &format!("{url}{path}"), &headers, "");
                let shape = (response.status, response.text());
                assert_eq!(shape, (401, expected.text()), "{method} {path} {header:?}");
            }
        }
    }
    assert!(!toggle_is_on(&url, &[("Authorization", "Bearer s3cret")]));
}

#[test]
fn foreign_host_header_is_rejected_and_ip_address_accepted() {
    let (_host, url) = serve(HttpSettings::default());
    for (host, expected) in [
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("0.0.0.0:1", 403),
        ("[::]:1", 403),
        ("10.1.2.3:1", 403),
        ("[::1]:1", 200),
        ("evil.example", 403),
        ("localhost.evil.example:6060", 403),
        ("127.0.0.1.nip.io", 403),
        ("", 403),
    ] {
        let request = format!("GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(send_raw(&url, request.as_bytes()), Some(expected), "{host}");
    }
    for (request, expected) in [
        ("GET /status HTTP/1.1\r\n\r\n", Some(403)),
        ("GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n", Some(403)),
        ("GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", Some(403)),
    ] {
        assert_eq!(send_raw(&url, request.as_bytes()), expected, "{request}");
    }
}

#[test]
fn cross_site_requests_change_nothing() {
    let (_host, url) = serve_with_token();
    let token = ("Authorization", "Bearer s3cret");
    let host = url.trim_start_matches("http://").to_owned();
    for header in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://localhost"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        for method in ["GET", "POST"] {
            let response =
                send_request(method, &format!("{url}/monitor/notify"), &[token, header], "");
            assert_eq!(response.status, 403, "{method} {header:?}");
        }
    }
    assert!(!toggle_is_on(&url, &[token]));
    let own = format!("http://{host}");
    let headers = [token, ("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(send_request("POST", &format!("{url}/monitor/notify"), &headers, "").status, 200);
    assert!(toggle_is_on(&url, &[token]));
}

#[test]
fn files_are_served_by_manifest_name_not_path() {
    let (mut host, url) = serve(HttpSettings::default());
    for action in ["start", "stop"] {
        send_request("POST", &format!("{url}/monitor/notify?action={action}"), &[], "");
    }
    let id = host.wait_for_closed(1)[0].1.id.to_string();
    std::fs::write(host.dir.path().join("outside"), "s3cret").unwrap();
    std::fs::write(host.captures().join("beside"), "s3cret").unwrap();
    let incident = host.incidents()[0].0.clone();
    std::fs::write(incident.join("unlisted"), "s3cret").unwrap();
    std::os::unix::fs::symlink("../../outside", incident.join("link")).unwrap();
    let folder = incident.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(get(&format!("{url}/incidents/{id}")).status, 200);
    for path in [
        format!("{id}/../../outside"),
        format!("{id}/..%2f..%2foutside"),
        format!("{id}/..%252f..%252foutside"),
        format!("{id}/%2e%2e/beside"),
        format!("{id}/%252e%252e%252fbeside"),
        format!("{id}/..%5c..%5coutside"),
        format!("{id}/%2e%2e%2fbeside%00.pprof"),
        format!("{id}/link"),
        format!("{id}/unlisted"),
        format!("{id}//incident.json"),
        format!("{id}/./incident.json"),
        format!("{id}%2fincident.json"),
        format!("{id}%252fincident.json"),
        format!("..%2f{folder}"),
        format!("{folder}/incident.json"),
        format!("../{id}"),
        "%2e%2e/outside".to_owned(),
        "..%2foutside.tar.gz".to_owned(),
        "%252e%252e%252foutside.tar.gz".to_owned(),
        format!("..%2f{id}.tar.gz"),
    ] {
        // Sends the path verbatim: a client library would resolve `..`.
        let mut client = web::connect(&url);
        let head = "Host: localhost\r\nConnection: close";
        write!(client, "GET /incidents/{path} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 404"), "{path}: {response}");
        assert!(!response.contains("s3cret"), "{path}: {response}");
    }
    host.end();
}

#[test]
fn oversized_request_is_rejected_and_next_succeeds() {
    let (_host, url) = serve(HttpSettings::default());
    let long = "x".repeat(1 << 20);
    let head = |rest: &str| format!("GET /status{rest}\r\n\r\n").into_bytes();
    for request in [
        head(&format!("?{long} HTTP/1.1\r\nHost: localhost")),
        head(&format!(" HTTP/1.1\r\nHost: localhost\r\nX: {long}")),
        head(&format!(" HTTP/1.1\r\nHost: localhost{}", "\r\nX: y".repeat(5000))),
    ] {
        let status = send_raw(&url, &request);
        assert!(status.is_none_or(|status| (400..=431).contains(&status)), "{status:?}");
    }
    let body = "0x1+".repeat(1 << 19);
    let symbol = "POST /debug/pprof/symbol HTTP/1.1\r\nHost: localhost\r\n";
    let lengths = format!("{symbol}Content-Length: {}\r\n\r\n{body}", body.len());
    assert!(send_raw(&url, lengths.as_bytes()).is_none_or(|status| status == 413));
    let huge = format!("{symbol}Content-Length: 18446744073709551615\r\n\r\n");
    assert!(send_raw(&url, huge.as_bytes()).is_none_or(|status| status >= 400));
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\n",
        b"\0\0\0\0",
    ] {
        let status = send_raw(&url, &[request, b"\r\n\r\n"].concat());
        assert!(status.is_none_or(|status| status >= 400), "{status:?} {request:?}");
    }
    assert_eq!(get(&format!("{url}/status")).status, 200);
}

#[test]
fn stalled_clients_are_disconnected_and_delay_no_other() {
    let (_host, url) = serve(HttpSettings::default());
    // More connections than slots, each with half a request head.
    let mut slow: Vec<_> = (0..200).map(|_| web::connect(&url)).collect();
    for client in &mut slow {
        let _ = client.write_all(b"GET /status HTTP/1.1\r\nHost: loc");
    }
    // Connections beyond the last slot are closed at once, the others after their timeout.
    wait_for("a place", || {
        let mut client = web::connect(&url);
        let _ = client.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n");
        web::read_status(&mut client).filter(|status| *status == 200)
    });
    for client in &mut slow {
        client.set_read_timeout(Some(host::WAIT_TIMEOUT)).unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        let text = String::from_utf8_lossy(&rest).into_owned();
        assert!(rest.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
}

/// Recorded `tracing` events at `INFO` and `DEBUG`, as text.
#[derive(Clone, Default)]
struct RecordedEvents(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

impl<S: tracing::Subscriber> Layer<S> for RecordedEvents {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Fields(BTreeMap<String, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name().to_owned(), format!("{value:?}").replace('"', ""));
            }
        }
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        fields.0.insert("target".into(), event.metadata().target().into());
        fields.0.insert("level".into(), event.metadata().level().to_string());
        self.0.lock().unwrap().push(fields.0);
    }
}

#[test]
fn every_request_is_logged_without_secrets() {
    let events = RecordedEvents::default();
    let subscriber = tracing_subscriber::registry().with(events.clone());
    // The subscriber is global: the test needs a process of its own (nextest).
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let http = HttpSettings {
        token: Some(Secret::new("s3cret")),
        capture_token: Some(Secret::new("s3cret-too")),
        read_token: Some(Secret::new("a-third-s3cret")),
        ..HttpSettings::default()
    };
    assert!(!format!("{http:?}").contains("s3cret"), "{http:?}");
    let (mut host, url) = serve(http);
    let bearer = ("Authorization", "Bearer s3cret");
    assert_eq!(get(&format!("{url}/status?token=s3cret-in-the-query")).status, 401);
    assert_eq!(get(&format!("{url}/s3cret-in-the-path")).status, 401);
    assert_eq!(send_request("POST", &format!("{url}/monitor/notify"), &[bearer], "").status, 200);
    wait_for("the incident", || (!host.incidents().is_empty()).then_some(()));
    let id = host.incidents()[0].1.id;
    for path in [
        "/status",
        "/metrics",
        "/incidents",
        &format!("/incidents/{id}"),
        "/incidents/s3cret",
        "/incidents/s3cret/s3cret",
        "/debug/pprof/",
        "/debug/pprof/goroutine?debug=2",
        "/debug/pprof/s3cret",
        "/debug/pprof/profile?seconds=s3cret&hz=s3cret",
        "/debug/pprof/heap?seconds=s3cret",
        "/debug/pprof/symbol?s3cret",
        "/monitor/notify?action=status",
        "/monitor/notify?action=s3cret",
        "/s3cret",
    ] {
        for headers in [
            &[bearer][..],
            &[("Authorization", "Bearer s3cret-too")],
            &[("Authorization", "Bearer a-third-s3cret")],
            &[("Authorization", "Bearer s3cret-of-another")],
            &[bearer, ("Origin", "http://s3cret")],
            &[],
        ] {
            let response = send_request("GET", &format!("{url}{path}"), headers, "");
            assert!(!format!("{response:?}").contains("s3cret"), "{path}: {response:?}");
            assert!(!response.text().contains("s3cret"), "{path}: {}", response.text());
        }
    }
    // A client in a loop: only refusals 1, 2, 4, ... 128 are logged at `INFO`.
    for _ in 0..200 {
        assert_eq!(get(&format!("{url}/metrics")).status, 401);
    }
    host.end();
    for entry in [host.incidents()[0].0.clone(), host.captures()] {
        for file in std::fs::read_dir(entry).unwrap().map(|file| file.unwrap().path()) {
            let Ok(content) = std::fs::read(&file) else { continue };
            let found = content.windows(6).any(|window| window == b"s3cret");
            assert!(!found, "{}", file.display());
        }
    }
    let events = events.0.lock().unwrap().clone();
    assert!(!format!("{events:?}").contains("s3cret"), "{events:?}");
    for (route, method, status, role) in [
        ("/status", "GET", "401", "none"),
        ("other", "GET", "401", "none"),
        ("/monitor/notify", "POST", "200", "control"),
        ("/status", "GET", "200", "control"),
    ] {
        let is = |event: &BTreeMap<String, String>| {
            event["target"] == "marple::audit"
                && (event["route"].as_str(), event["method"].as_str()) == (route, method)
                && (event["status"].as_str(), event["role"].as_str()) == (status, role)
        };
        assert!(events.iter().any(is), "{route} {method} {status} {role} in {events:?}");
    }
    let refused = events.iter().filter(|event| {
        let (route, status) = (event.get("route"), event.get("status"));
        event["level"] == "INFO"
            && route.is_some_and(|route_name| route_name == "/metrics")
            && status.is_some_and(|code| code == "401")
    });
    let numbers: Vec<_> = refused.map(|event| event["refusals"].clone()).collect();
    assert_eq!(numbers, ["1", "2", "4", "8", "16", "32", "64", "128"]);
}

/// Returns everything the server sends in response to `bytes`.
fn response_to(url: &str, bytes: &[u8]) -> String {
    let mut client = web::connect(url);
    client.write_all(bytes).unwrap();
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

#[test]
fn non_http_client_gets_error_message() {
    let (_host, url) = serve(HttpSettings::default());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let request = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";
    let response = response_to(&url, &[&preface[..], &request[..]].concat());
    assert!(response.contains("505") && response.contains("only HTTP/1.1"), "{response}");
    let response = response_to(&url, b"\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03");
    assert!(response.starts_with("HTTP/1.1 400") && response.contains("without TLS"), "{response}");
    let proxy =
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let response = response_to(&url, proxy);
    assert!(response.starts_with("HTTP/1.1 400") && response.contains("PROXY"), "{response}");
    let metrics = get(&format!("{url}/metrics")).text();
    for line in [r#"{route="other",code="505"} 1"#, r#"{route="other",code="400"} 2"#] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn long_captures_do_not_block_short_ones() {
    let (_host, url) = serve(HttpSettings::default());
    let long: Vec<_> = (0..20)
        .map(|_| {
            let mut client = web::connect(&url);
            let path = "/debug/pprof/goroutine?seconds=299";
            write!(client, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            client
        })
        .collect();
    wait_for("the first to run", || {
        let status = get(&format!("{url}/status")).json();
        let captures = status["on_demand_captures"].as_array().unwrap().len();
        assert!(captures <= 1, "{status}");
        (captures == 1).then_some(())
    });
    for path in ["threadcreate", "goroutine", "symbol?0x1"] {
        assert_eq!(get(&format!("{url}/debug/pprof/{path}")).status, 200, "{path}");
    }
    drop(long);
}

#[test]
fn requests_are_rate_limited_as_configured() {
    let http = HttpSettings {
        token: Some(Secret::new("s3cret")),
        max_requests_per_second: 20,
        ..HttpSettings::default()
    };
    let (_host, url) = serve(http);
    let (began, answered) = (Instant::now(), AtomicUsize::new(0));
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (url, answered, refused) = (&url, &answered, &refused);
            scope.spawn(move || {
                let mut connection = web::connect(url);
                let token = if client < 4 { "s3cret" } else { "wrong" };
                let head = format!(
                    "GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
                );
                while began.elapsed() < Duration::from_secs(4) {
                    match exchange(&mut connection, url, head.as_bytes()) {
                        Some(200) => answered.fetch_add(1, Ordering::Relaxed),
                        Some(401) => refused.fetch_add(1, Ordering::Relaxed),
                        _ => 0,
                    };
                }
            });
        }
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    // Both bursts, and the tokens gained in the elapsed time.
    let limit = 100 + 20 * (began.elapsed().as_secs() as usize + 1);
    println!("{answered} answered, {refused} refused, at most {limit}");
    assert!(answered + refused <= limit, "{answered} + {refused} of {limit}");
    assert!(answered > 20, "{answered}: those with the token are served");
    // Requests without a token wait after their free refusals, and do not delay the others.
    assert!((1..=60).contains(&refused) && refused < answered, "{refused} of {answered}");
}

fn one_of(words: &str) -> impl Strategy<Value = String> + use<> {
    proptest::sample::select(words.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

fn path_segment() -> impl Strategy<Value = String> {
    let escapes = r"/ // .. . %2e%2e %252e %2f %00 %ff % %zz \ ~ état {id} :id *";
    let ours = "debug pprof heap allocs goroutine threadcreate symbol cmdline block mutex incidents status \
                metrics monitor notify .tar.gz incident.json 00000000000000000000000000";
    prop_oneof![one_of(escapes), one_of(ours), "[!-~]{0,12}"]
}

fn query_parameter() -> impl Strategy<Value = String> {
    let key = one_of("seconds debug gc hz rate action %73econds x ");
    let numbers = "-1 0 x 1e999 nan -inf 99999999999999999999 status %00 %zz 1.5 0x10 + ; \
                   9223372036854775808 12345678";
    let value = prop_oneof![one_of(numbers), "[!-~]{0,8}"];
    (key, value).prop_map(|(key, value)| format!("{key}={value}"))
}

/// Sends random requests: each gets a response, none a 5xx, and none changes anything. There are
/// 4,000, or as many as `MARPLE_TEST_REQUESTS` says.
#[test]
fn fuzzed_paths_and_parameters_never_return_5xx() {
    let http = HttpSettings {
        // Every timed capture exceeds the cap and is refused.
        max_duration: Duration::from_millis(1),
        compat_get_toggle: false,
        ..HttpSettings::default()
    };
    let (_host, url) = serve(http);
    let client = std::cell::RefCell::new(web::connect(&url));
    let path = prop_oneof![
        proptest::collection::vec(path_segment(), 0..6).prop_map(|pieces| pieces.join("/")),
        path_segment().prop_map(|name| format!("debug/pprof/{name}")),
        (path_segment(), path_segment()).prop_map(|(id, file)| format!("incidents/{id}/{file}")),
        Just("monitor/notify".to_owned()),
    ];
    let request = (path, proptest::collection::vec(query_parameter(), 0..4));
    let cases = std::env::var("MARPLE_TEST_REQUESTS").map_or(4000, |cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let outcome = runner.run(&request, |(path, parameters)| {
        let target = format!("/{path}?{}", parameters.join("&"));
        let target: String =
            target.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
        let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let status = exchange(&mut client.borrow_mut(), &url, head.as_bytes());
        let known = matches!(status, Some(200 | 307 | 400 | 403 | 404 | 405)) || status.is_none();
        prop_assert!(known, "{target}: {status:?}");
        Ok(())
    });
    outcome.unwrap();
    assert!(!toggle_is_on(&url, &[]));
    // The clients of the last requests may have disconnected before those were served.
    let status = wait_for("all of it to be over", || {
        let status = get(&format!("{url}/status")).json();
        (status["on_demand_captures"] == serde_json::json!([])).then_some(status)
    });
    assert_eq!(status["counters"]["incidents"], 0);
}

/// Sends a request over `client` and reads the response. Reconnects if the server closed the
/// connection.
fn exchange(client: &mut std::net::TcpStream, url: &str, request: &[u8]) -> Option<u16> {
    let response = client.write_all(request).ok().and_then(|()| read_response(client));
    if response.is_none() {
        *client = web::connect(url);
    }
    response
}

fn read_response(client: &mut std::net::TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    client.read_exact(&mut body).ok()?;
    head.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()
}
