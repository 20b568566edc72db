//! An HTTP client, and services to send requests to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use marple::Settings;
use marple::config::{HttpSettings, Listen};

use crate::support::host::{Host, WAIT_TIMEOUT, settings};

/// Returns an address without a listener.
pub(crate) fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Returns a service with an endpoint, and the URL of the endpoint.
pub(crate) fn serve(http: HttpSettings) -> (Host, String) {
    serve_with(http, settings())
}

pub(crate) fn serve_with(http: HttpSettings, settings: Settings) -> (Host, String) {
    let address = unused_address();
    let mut http = HttpSettings { listen: Listen::Tcp(address), ..http };
    if http.max_requests_per_second == HttpSettings::default().max_requests_per_second {
        // Tests send requests faster than any client; other tests cover the limit.
        http.max_requests_per_second = 1_000_000;
    }
    let host = Host::start(Settings { http: Some(http), ..settings });
    (host, format!("http://{address}"))
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

pub(crate) fn get(url: &str) -> Response {
    send_request("GET", url, &[], "")
}

pub(crate) fn send_request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(WAIT_TIMEOUT))
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = agent.run(request.body(body.to_owned()).unwrap()).unwrap();
    let headers = response.headers().iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Response {
        headers: headers.collect(),
        status: response.status().as_u16(),
        body: response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap(),
    }
}

/// Sends exactly these bytes and returns the status of the response, or `None` if the connection is
/// closed without one.
pub(crate) fn send_raw(base: &str, bytes: &[u8]) -> Option<u16> {
    let mut stream = connect(base);
    // The server may close the connection before everything is sent.
    let _ = stream.write_all(bytes);
    read_status(&mut stream)
}

pub(crate) fn connect(base: &str) -> TcpStream {
    let stream = TcpStream::connect(base.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

pub(crate) fn read_status(stream: &mut TcpStream) -> Option<u16> {
    let mut head = Vec::new();
    let mut byte = [0];
    while head.len() < 12 {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    String::from_utf8_lossy(&head).strip_prefix("HTTP/1.1 ")?.parse().ok()
}
