//! The page at `/debug/pprof/`, as people know it. Links are relative, so it stands under any prefix.

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::answer::NOSNIFF;

/// Every profile, what its link asks for, and what it is.
const PROFILES: [(&str, &str, &str); 10] = [
    ("allocs", "?debug=1", "A sampling of all memory allocations since the start."),
    ("block", "?debug=1", "Not recorded: a profile of nothing, for those who ask by habit."),
    ("cmdline", "", "The command line of this process."),
    (
        "goroutine",
        "?debug=1",
        "Where every thread of this process stands; with debug=2 every task too.",
    ),
    (
        "heap",
        "?debug=1",
        "A sampling of the memory in use. With <code>seconds=N</code> what it gained in that time, sampled \
         every <code>rate=BYTES</code>.",
    ),
    ("mutex", "?debug=1", "Not recorded: a profile of nothing, for those who ask by habit."),
    (
        "profile",
        "",
        "CPU profile of <code>seconds=N</code> (30), at <code>hz=N</code> samples a second. Open it with \
         <code>go tool pprof</code>.",
    ),
    (
        "symbol",
        "",
        "Maps addresses to names of functions, separated by '+', in the query or the body.",
    ),
    ("threadcreate", "?debug=1", "How many threads there are."),
    (
        "trace",
        "",
        "A trace of the runtime of <code>seconds=N</code> (1). Open it with <code>ui.perfetto.dev</code>.",
    ),
];

pub(super) fn page() -> Response {
    let mut rows = String::new();
    for (name, query, what) in PROFILES {
        rows += &format!("<tr><td><a href=\"{name}{query}\">{name}</a></td><td>{what}</td></tr>\n");
    }
    let page = format!(
        "<!DOCTYPE html>\n<html>\n<head>\n<title>/debug/pprof/</title>\n</head>\n<body>\n\
         /debug/pprof/\n<br>\n\
         <p>Set debug=1 as a query parameter to export in legacy text format</p>\n\
         Types of profiles available:\n<table>\n{rows}</table>\n\
         <p><a href=\"goroutine?debug=2\">all threads</a> · <a href=\"../../status\">status</a> · \
         <a href=\"../../incidents\">incidents</a></p>\n</body>\n</html>\n"
    );
    let mut response = ([NOSNIFF], page).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // Nothing on the page is loaded or run, and nothing may be.
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    response
}
