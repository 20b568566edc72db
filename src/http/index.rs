//! The page at `/debug/pprof/`, laid out like Go's, for an on-call engineer. The current problems
//! come first, then the profiles, each with its command. Links are relative, so the page works
//! under any prefix; it loads and runs nothing.

use std::fmt::{self, Write as _};

use axum::extract::OriginalUri;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use crate::agent::Status;
use crate::http::responses::NOSNIFF;

/// Profiles as `(name, query of the link, description)`.
const PROFILES: [(&str, &str, &str); 10] = [
    ("allocs", "?debug=1", "Sampled memory allocations since the process started."),
    ("block", "?debug=1", "Not recorded: always empty, present for compatibility."),
    ("cmdline", "", "The command line of this process."),
    ("goroutine", "?debug=1", "Stacks of all threads. With <code>debug=2</code>, also all tasks."),
    (
        "heap",
        "?debug=1",
        "Sampled live heap. With <code>seconds=N</code>, the change over that time, sampled every \
         <code>rate=BYTES</code>.",
    ),
    ("mutex", "?debug=1", "Not recorded: always empty, present for compatibility."),
    (
        "profile",
        "",
        "CPU profile over <code>seconds=N</code> (default 30), with <code>hz=N</code> samples per \
         second. With <code>mode=wall</code>, waiting threads are sampled too. Open it with \
         <code>go tool pprof</code>.",
    ),
    ("symbol", "", "Maps addresses, separated by '+' in the query or the body, to function names."),
    ("threadcreate", "?debug=1", "Number of threads."),
    (
        "trace",
        "",
        "Trace of the runtime over <code>seconds=N</code> (default 1). Open it in \
         <code>ui.perfetto.dev</code>.",
    ),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}h1{font-size:1.3em}h2{font-size:1em;margin:1.6em 0 .4em}table{border-collapse:\
collapse}td{padding:.25em 1.2em .25em 0;vertical-align:top}code,pre{font:13px/1.5 ui-monospace,monospace;\
background:#f2f2f2;padding:.1em .3em}pre{padding:.6em .8em;overflow-x:auto}.bad{color:#b00020;font-weight:600}\
.dim{color:#666}a{color:#0b57d0}@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}\
code,pre{background:#24272d}.dim{color:#999}.bad{color:#ff8a80}a{color:#8ab4f8}}";

/// Returns the page. `status` is `None` if the agent has stopped; the page then reports that first.
pub(super) fn page(status: Option<&Status>, request: &Parts) -> Response {
    let base_url = base_url(request);
    let mut rows = String::new();
    for (name, query, description) in PROFILES {
        rows += &format!(
            "<tr><td><a href=\"{name}{query}\">{name}</a></td><td>{description}</td></tr>\n"
        );
    }
    let mut status_html = String::new();
    match status {
        Some(status) => write_status(&mut status_html, status),
        None => status_html += "<p class=\"bad\">The agent has stopped; nothing is captured.</p>\n",
    }
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>/debug/pprof/</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>/debug/pprof/</h1>\n{status_html}\
         <p><a href=\"goroutine?debug=2\">stacks of all threads and tasks</a> · \
         <a href=\"../../incidents\">incidents</a> · <a href=\"../../status\">status</a> · \
         <a href=\"../../metrics\">metrics</a></p>\n<h2>Types of profiles available</h2>\n\
         <table>\n{rows}</table>\n\
         <p class=\"dim\">Set debug=1 as a query parameter to export in legacy text format.</p>\n\
         <h2>From a shell</h2>\n<pre># CPU profile\n\
         go tool pprof -http=: '{base_url}/debug/pprof/profile?seconds=10'\n\
         # live heap, and its growth over 30 seconds\n\
         go tool pprof -http=: '{base_url}/debug/pprof/heap'\n\
         go tool pprof -http=: '{base_url}/debug/pprof/heap?seconds=30'\n\
         # start a capture to disk; repeat to stop it\n\
         curl -X POST '{base_url}/monitor/notify'</pre>\n</body>\n</html>\n"
    );
    let mut response = ([NOSNIFF], page).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // The policy allows only the page's inline style, even if a name contains markup.
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// Returns the base URL of the request, for commands to be copied into a shell. If it contains
/// characters that are special to a shell, it is replaced by a placeholder.
fn base_url(request: &Parts) -> String {
    let path = request.extensions.get::<OriginalUri>().map_or(request.uri.path(), |uri| uri.path());
    let host = request.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_shell_safe_char = |c: char| c.is_ascii_alphanumeric() || ".:-_/~[]".contains(c);
    let is_shell_safe =
        !host.is_empty() && host.chars().chain(path.chars()).all(is_shell_safe_char);
    let (host, path) = if is_shell_safe { (host, path) } else { ("HOST", "/debug/pprof/") };
    format!("http://{host}{}", path.trim_end_matches("/debug/pprof/"))
}

/// Writes the service, its vitals and its open incidents. Writing into a `String` cannot fail.
fn write_status(out: &mut String, status: &Status) {
    let service = EscapedHtml(&status.service);
    let instance = EscapedHtml(&status.instance);
    let started = status.started.strftime("%Y-%m-%d %H:%M:%SZ");
    let _ = writeln!(
        out,
        "<p><b>{service}</b> in {instance} <span class=\"dim\">\
         · marple {} running since {started}</span></p>",
        status.version
    );
    let value = |name: &str| status.vitals.values.get(name).copied();
    let readings = [
        ("memory", value("memory").map(|share| format!("{share:.0} % of the limit"))),
        ("rss", value("memory.rss").map(|bytes| format!("{:.0} MiB", bytes / f64::from(1 << 20)))),
        ("cpu", value("cpu").map(|share| format!("{share:.0} % of the limit"))),
        ("threads", value("threads").map(|count| count.to_string())),
        ("tasks", value("tasks").map(|count| count.to_string())),
        ("runtime lag", value("runtime.lag").map(|lag| format!("{:.0} ms", lag * 1e3))),
    ];
    let readings =
        readings.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)));
    let _ = writeln!(out, "<p>{}</p>", readings.collect::<Vec<_>>().join(" · "));
    for incident in &status.incidents {
        let opened = incident.opened.strftime("%H:%M:%SZ");
        let _ = writeln!(
            out,
            "<p class=\"bad\">Incident {} open since {opened}: \
             <a href=\"../../incidents/{}\">files</a></p>",
            EscapedHtml(&incident.name),
            incident.id
        );
    }
    if status.incidents.is_empty() {
        *out += "<p>No open incidents.</p>\n";
    }
    let active = status.rules.iter().filter(|rule| rule.active || rule.decision == "fire");
    for rule in active {
        let _ =
            writeln!(out, "<p>{}: {}</p>", EscapedHtml(&rule.name), EscapedHtml(&rule.explanation));
    }
    for capture in &status.on_demand_captures {
        let kind = capture.kind;
        let client = EscapedHtml(&capture.client);
        let _ = writeln!(out, "<p>Capture in progress: {kind}, for {client}</p>");
    }
    if let Some(failure) = &status.last_failure {
        let _ = writeln!(out, "<p class=\"bad\">Last failure: {}</p>", EscapedHtml(failure));
    }
}

/// A text that is escaped for HTML.
pub(super) struct EscapedHtml<'a>(pub(super) &'a str);

impl fmt::Display for EscapedHtml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_commands_use_request_url_only_if_shell_safe() {
        for (uri, host, expected) in [
            ("/debug/pprof/", "127.0.0.1:6060", "http://127.0.0.1:6060"),
            ("/ops/debug/pprof/", "[::1]:1", "http://[::1]:1/ops"),
            ("/debug/pprof/", "x$(reboot)", "http://HOST"),
            ("/a';b/debug/pprof/", "x", "http://HOST"),
            ("/debug/pprof/", "", "http://HOST"),
        ] {
            let request = axum::http::Request::builder().uri(uri).header(HOST, host);
            assert_eq!(
                base_url(&request.body(()).unwrap().into_parts().0),
                expected,
                "{uri} {host}"
            );
        }
    }

    #[test]
    fn html_special_characters_are_escaped() {
        let text = "<script src=\"x\">&";
        assert_eq!(EscapedHtml(text).to_string(), "&lt;script src=&quot;x&quot;&gt;&amp;");
    }
}
