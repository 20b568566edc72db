//! Requests of continuous profilers, taken from their public code; the responses must be usable for
//! them.
//!
//! | | Grafana Alloy, `pyroscope.scrape` | Parca |
//! |---|---|---|
//! | paths | `allocs`, `block`, `goroutine`, `mutex`, `profile` | the same |
//! | off by default | `delta_heap`, `delta_block`, `delta_mutex`, `/debug/fgprof` | |
//! | every | 15 s | 10 s |
//! | `seconds` of `profile` | 14 | 10 |
//! | within | 10 s, with `seconds` 24 s | 13 s |
//! | accepts | any 2xx with a body; logs the others as errors | 200 with a body |
//!
//! Both send `seconds` to every path if their configuration sets `params`, and both need Go's
//! sample types: Alloy computes differences of them by name. Both read the response with the
//! package that `go tool pprof` uses (`github.com/google/pprof/profile`), which `tests/http_go`
//! runs. The rows are those of `pkg/scrape/scrape.go` of parca-dev/parca (3223b7d) and
//! `internal/component/pyroscope/scrape/scrape_loop.go` of grafana/alloy (052446a).

use std::thread;

use marple::config::{HttpSettings, Secret};
use marple::internals::codec::pprof;

use crate::support::peers::GoServer;
use crate::support::web::{Response, send_request, serve};

/// Headers each scraper sends; Go's client adds the encoding by itself.
const ALLOY: [(&str, &str); 2] = [("User-Agent", "Alloy/v1.9.0 (linux; docker)"), GZIP];
const PARCA: [(&str, &str); 2] = [("User-Agent", "conprof/v0.24.0"), GZIP];
const GZIP: (&str, &str) = ("Accept-Encoding", "gzip");
const TOKEN: (&str, &str) = ("Authorization", "Bearer scr4pe");

fn sample_types(answer: &Response) -> Vec<(String, String)> {
    let profile = pprof::read(&answer.body).unwrap();
    let text = |index: i64| profile.string_table[index as usize].clone();
    profile
        .sample_type
        .iter()
        .map(|value_type| (text(value_type.r#type), text(value_type.unit)))
        .collect()
}

#[test]
fn scraper_requests_get_same_responses_as_from_go() {
    let go = GoServer::start();
    let settings =
        HttpSettings { capture_token: Some(Secret::new("scr4pe")), ..HttpSettings::default() };
    let (_host, ours) = serve(settings);
    // Each target of a scraper sends its request separately, all at the same time.
    thread::scope(|scope| {
        for (agent, path) in [
            (ALLOY, "/debug/pprof/allocs"),
            (ALLOY, "/debug/pprof/block"),
            (ALLOY, "/debug/pprof/goroutine"),
            (ALLOY, "/debug/pprof/mutex"),
            (ALLOY, "/debug/pprof/profile?seconds=14"),
            (ALLOY, "/debug/pprof/delta_heap"),
            (ALLOY, "/debug/pprof/delta_block"),
            (ALLOY, "/debug/pprof/delta_mutex"),
            (ALLOY, "/debug/fgprof?seconds=14"),
            (PARCA, "/debug/pprof/heap"),
            (PARCA, "/debug/pprof/threadcreate"),
            (PARCA, "/debug/pprof/allocs?seconds=2"),
            (PARCA, "/debug/pprof/block?seconds=2"),
            (PARCA, "/debug/pprof/goroutine?seconds=2"),
            (PARCA, "/debug/pprof/mutex?seconds=2"),
            (PARCA, "/debug/pprof/threadcreate?seconds=2"),
        ] {
            let (go, ours) = (&go.url, &ours);
            scope.spawn(move || {
                let headers = [agent[0], agent[1], TOKEN];
                let go_url = format!("{go}{path}");
                let theirs = thread::spawn(move || send_request("GET", &go_url, &headers, ""));
                let mut response = send_request("GET", &format!("{ours}{path}"), &headers, "");
                // Only one difference of threads is computed at a time: the scraper gets it with
                // the next scrape.
                while response.status == 500 && response.text().contains("in use by") {
                    thread::sleep(std::time::Duration::from_millis(200));
                    response = send_request("GET", &format!("{ours}{path}"), &headers, "");
                }
                let theirs = theirs.join().unwrap();
                assert_eq!(response.status, theirs.status, "{path}: {}", response.text());
                if response.status != 200 {
                    return;
                }
                assert!(
                    response.header("content-encoding").is_none(),
                    "{path}: it is packed already"
                );
                let name =
                    |answer: &Response| answer.header("content-disposition").map(str::to_owned);
                assert_eq!(name(&response), name(&theirs), "{path}");
                assert_eq!(sample_types(&response), sample_types(&theirs), "{path}");
            });
        }
    });
}

#[test]
fn scraper_without_token_gets_401() {
    let settings =
        HttpSettings { capture_token: Some(Secret::new("scr4pe")), ..HttpSettings::default() };
    let (_host, ours) = serve(settings);
    let response = send_request("GET", &format!("{ours}/debug/pprof/allocs"), &ALLOY, "");
    assert_eq!((response.status, response.header("www-authenticate")), (401, Some("Bearer")));
}
