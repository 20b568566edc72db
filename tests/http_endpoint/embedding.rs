//! Tests of embedding the routes in other servers: the responses are the same as those of marple's
//! own listener.

use std::net::SocketAddr;

use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use marple::config::{HttpSettings, Secret};
use marple::http;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::support::host::{self, Host};
use crate::support::web::{Response, send_request, serve};

/// Serves `routes` with hyper alone: no axum server, no middleware, one task per connection.
fn behind_hyper(runtime: &Runtime, routes: Router) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(routes.clone());
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    address
}

fn behind_axum(runtime: &Runtime, routes: Router) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async { axum::serve(listener, routes).await });
    address
}

/// Serves `routes` from a tonic server, which speaks HTTP/1.1 too.
fn behind_tonic(runtime: &Runtime, routes: Router) -> SocketAddr {
    let bind = async { TcpIncoming::bind("127.0.0.1:0".parse().unwrap()) };
    let incoming = runtime.block_on(bind).unwrap();
    let address = incoming.local_addr().unwrap();
    let server = Server::builder().accept_http1(true).add_routes(Routes::from(routes));
    runtime.spawn(server.serve_with_incoming(incoming));
    address
}

/// Returns the parts of a response that are the same for every request.
fn shape(answer: &Response) -> (u16, Vec<Option<&str>>, Option<String>) {
    let names =
        ["content-type", "content-disposition", "x-content-type-options", "x-go-pprof", "allow"];
    let refused = (answer.status >= 400).then(|| answer.text());
    (answer.status, names.iter().map(|name| answer.header(name)).collect(), refused)
}

#[test]
fn all_embeddings_return_same_responses() {
    let token = || HttpSettings { token: Some(Secret::new("s3cret")), ..HttpSettings::default() };
    let (host, own): (Host, String) = serve(token());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let routes = || http::guarded(&host.handle(), &token());
    let hyper = format!("http://{}", behind_hyper(&runtime, routes()));
    let tonic = format!("http://{}", behind_tonic(&runtime, routes()));
    let axum = format!("http://{}", behind_axum(&runtime, routes()));
    let nested = behind_axum(&runtime, Router::new().nest("/internal/x", routes()));
    let nested = format!("http://{nested}/internal/x");
    for (method, path) in [
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("GET", "/incidents"),
        ("GET", "/incidents/00000000000000000000000000"),
        ("GET", "/incidents/00000000000000000000000000.tar.gz"),
        ("GET", "/incidents/..%2f..%2fetc/passwd"),
        ("GET", "/debug/pprof/"),
        ("GET", "/debug/pprof/goroutine"),
        ("GET", "/debug/pprof/goroutine?debug=2"),
        ("GET", "/debug/pprof/cmdline"),
        ("GET", "/debug/pprof/nosuch"),
        ("GET", "/debug/pprof/profile?hz=0"),
        ("GET", "/debug/pprof/trace?seconds=0.1"),
        ("POST", "/debug/pprof/symbol"),
        ("POST", "/debug/pprof/heap"),
        ("GET", "/monitor/notify?action=status"),
        ("GET", "/monitor/notify?action=x"),
        ("DELETE", "/status"),
        ("HEAD", "/metrics"),
        ("GET", "/nowhere"),
    ] {
        for headers in [&[][..], &[("Authorization", "Bearer s3cret")]] {
            let expected = send_request(method, &format!("{own}{path}"), headers, "");
            for other in [&hyper, &tonic, &axum, &nested] {
                let response = send_request(method, &format!("{other}{path}"), headers, "");
                assert_eq!(
                    shape(&response),
                    shape(&expected),
                    "{method} {other}{path} {headers:?}"
                );
            }
        }
    }
    drop(host);
    runtime.shutdown_background();
}

#[test]
fn routes_work_under_secret_prefix_only() {
    let host = Host::start(host::settings());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let app = Router::new().nest("/a-long-random-prefix", http::router(&host.handle()));
    let url = format!("http://{}", behind_axum(&runtime, app));
    let status = |path: &str| send_request("GET", &format!("{url}{path}"), &[], "").status;
    assert_eq!(status("/a-long-random-prefix/status"), 200);
    assert_eq!(status("/a-long-random-prefix/debug/pprof/"), 200);
    assert_eq!((status("/status"), status("/debug/pprof/")), (404, 404));
    drop(host);
    runtime.shutdown_background();
}
