//! Who may do what.
//!
//! Three doors, in this order, before a request meets anything else:
//!
//! 1. **The name it calls us by.** A web page can make its own name point at 127.0.0.1 and then talk to us
//!    as its own site (DNS rebinding). An address in `Host` cannot be made to point elsewhere and
//!    `localhost` is not the page's; other names are refused unless `http.hosts` has them. With a token the
//!    page would have to know it, so any name does unless `http.hosts` is set. In the service's own router
//!    the names are the service's matter.
//! 2. **Where it comes from.** A browser says it in `Origin` and `Sec-Fetch-Site`. What another site makes a
//!    browser send is refused, whatever it asks, with or without a token.
//! 3. **The token.** Its digest is compared with every role's in constant time. Whoever has none, or a wrong
//!    one, gets the same 401 whatever he asks for, also for what does not exist.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{HttpSettings, Listen, Secret};

/// What somebody may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Look at what is there.
    Read,
    /// Take captures, which cost the service something and show its memory and its arguments.
    Capture,
    /// Use the toggle.
    Control,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Capture => "capture",
            Self::Control => "control",
        }
    }
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    Host,
    CrossSite,
    Token,
}

/// The doors.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// None: whoever comes this far may do everything.
    tokens: Option<Vec<(Role, [u8; 32])>>,
    hosts: Hosts,
}

#[derive(Clone, Debug)]
enum Hosts {
    /// Any.
    Any,
    /// `localhost`, addresses, and these.
    Local(Vec<String>),
}

impl Access {
    /// No door but the second: the service's router stands before us.
    pub(super) fn open() -> Self {
        Self { tokens: None, hosts: Hosts::Any }
    }

    pub(super) fn new(settings: &HttpSettings) -> Self {
        let digest = |role, token: &Option<Secret>| Some((role, *token.as_ref()?.sha256()));
        let tokens: Vec<_> = [
            digest(Role::Control, &settings.token),
            digest(Role::Capture, &settings.capture_token),
            digest(Role::Read, &settings.read_token),
        ]
        .into_iter()
        .flatten()
        .collect();
        let hosts = settings.hosts.iter().map(|host| host.to_ascii_lowercase()).collect::<Vec<_>>();
        // No browser opens a Unix socket.
        let unix = matches!(settings.listen, Listen::Unix(_));
        let any = hosts.is_empty() && (unix || !tokens.is_empty());
        Self {
            tokens: (!tokens.is_empty()).then_some(tokens),
            hosts: if any { Hosts::Any } else { Hosts::Local(hosts) },
        }
    }

    /// What whoever sent this may do.
    pub(super) fn role(&self, request: &Parts) -> Result<Role, Denied> {
        if !self.hosts.allow(request) {
            return Err(Denied::Host);
        }
        if is_cross_site(&request.headers) {
            return Err(Denied::CrossSite);
        }
        let Some(tokens) = &self.tokens else { return Ok(Role::Control) };
        let given = bearer(&request.headers);
        let digest = Sha256::digest(given.unwrap_or_default());
        let mut role = None;
        for (of, expected) in tokens {
            let right = bool::from(digest.as_slice().ct_eq(&expected[..]));
            if right & given.is_some() {
                role = role.max(Some(*of));
            }
        }
        role.ok_or(Denied::Token)
    }
}

impl Hosts {
    fn allow(&self, request: &Parts) -> bool {
        let Self::Local(names) = self else { return true };
        let mut given = request.headers.get_all(HOST).iter();
        let host = given.next().and_then(|host| host.to_str().ok());
        let host = match (host, request.uri.authority()) {
            // A request for `http://name/path` is for that name, whatever its header says.
            (_, Some(authority)) => authority.as_str(),
            (Some(host), None) => host,
            (None, None) => return false,
        };
        if given.next().is_some() {
            return false;
        }
        let name = without_port(host).to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || address.parse::<IpAddr>().is_ok() || names.contains(&name)
    }
}

/// `[::1]` of `[::1]:80`, `name` of `name:80`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser sent it on behalf of another site.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let text =
        |value: &HeaderValue| value.to_str().map(str::to_ascii_lowercase).unwrap_or_default();
    if let Some(site) = headers.get("sec-fetch-site").map(text)
        && !["same-origin", "none"].contains(&site.as_str())
    {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN).map(text) else { return false };
    let host = headers.get(HOST).map(text).unwrap_or_default();
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_none_or(|authority| host.is_empty() || authority != host)
}

/// The token, if there is one header and it is well formed.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (given.next()?, given.next());
    let (scheme, token) = first.as_bytes().split_at_checked(7)?;
    (second.is_none() && scheme.eq_ignore_ascii_case(b"Bearer ")).then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn role(access: &Access, headers: &[(&str, &str)]) -> Result<Role, Denied> {
        let mut request = Request::builder().uri("/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access.role(&request.body(()).unwrap().into_parts().0)
    }

    fn with_tokens() -> Access {
        Access::new(&HttpSettings {
            token: Some(Secret::new("all")),
            capture_token: Some(Secret::new("take")),
            read_token: Some(Secret::new("look")),
            ..HttpSettings::default()
        })
    }

    #[test]
    fn a_token_is_worth_its_role_and_everything_else_is_worth_nothing() {
        for (header, expected) in [
            ("Bearer all", Ok(Role::Control)),
            ("bearer take", Ok(Role::Capture)),
            ("BEARER look", Ok(Role::Read)),
            ("Bearer al", Err(Denied::Token)),
            ("Bearer all ", Err(Denied::Token)),
            ("Bearer  all", Err(Denied::Token)),
            ("Bearer ", Err(Denied::Token)),
            ("Bearer", Err(Denied::Token)),
            ("Basic all", Err(Denied::Token)),
            ("all", Err(Denied::Token)),
            ("", Err(Denied::Token)),
        ] {
            assert_eq!(role(&with_tokens(), &[("authorization", header)]), expected, "{header}");
        }
        let twice = [("authorization", "Bearer all"), ("authorization", "Bearer all")];
        assert_eq!(role(&with_tokens(), &twice), Err(Denied::Token));
        assert_eq!(role(&with_tokens(), &[]), Err(Denied::Token));
    }

    #[test]
    fn without_a_token_only_our_own_names_are_answered() {
        let hosts = vec!["Orders.internal".to_owned()];
        let access = Access::new(&HttpSettings { hosts, ..HttpSettings::default() });
        for (host, allowed) in [
            ("localhost", true),
            ("LOCALHOST:6060", true),
            ("127.0.0.1:6060", true),
            ("[::1]:6060", true),
            ("[::1]", true),
            ("orders.internal:6060", true),
            ("evil.example", false),
            ("evil.example:6060", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost:evil", false),
            ("", false),
        ] {
            assert_eq!(role(&access, &[("host", host)]).is_ok(), allowed, "{host}");
        }
        assert_eq!(role(&access, &[]), Err(Denied::Host));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(role(&access, &twice), Err(Denied::Host));
    }

    #[test]
    fn what_another_site_has_a_browser_send_is_refused_even_with_the_token() {
        let token = ("authorization", "Bearer all");
        for (header, allowed) in [
            (("origin", "http://orders:6060"), true),
            (("origin", "http://evil.example"), false),
            (("origin", "http://orders"), false),
            (("origin", "null"), false),
            (("origin", ""), false),
            (("sec-fetch-site", "same-origin"), true),
            (("sec-fetch-site", "none"), true),
            (("sec-fetch-site", "same-site"), false),
            (("sec-fetch-site", "cross-site"), false),
            (("sec-fetch-site", "?"), false),
        ] {
            let got = role(&with_tokens(), &[token, ("host", "orders:6060"), header]);
            assert_eq!(got == Ok(Role::Control), allowed, "{header:?}: {got:?}");
            assert!(allowed || got == Err(Denied::CrossSite));
        }
    }
}
