//! Access control for the HTTP endpoint.
//!
//! A request passes three checks, in this order, before it reaches a handler:
//!
//! 1. **The `Host` header.** A web page can point its name at 127.0.0.1 and then send same-site
//!    requests to this listener (DNS rebinding). Without a token only `localhost`, loopback
//!    addresses, the listening address and the names in `http.allowed_hosts` are accepted. An
//!    unspecified address (`0.0.0.0`, `[::]`) is always refused: some browsers route it to
//!    loopback. With a token the page would need the token too, so any name is accepted unless
//!    `http.allowed_hosts` is set. A guarded nested router accepts any other IP address, because
//!    only the service has its addresses.
//! 2. **The origin.** A browser states it in `Origin` and `Sec-Fetch-Site`. Requests that a browser
//!    sends on behalf of another site are refused, with or without a token.
//! 3. **The token.** Its digest is compared with the digest of every role in constant time. A
//!    missing and a wrong token get the same 401 for every path, including paths that do not exist.
//!
//! Passing these checks is not enough for a GET that changes state, since an image on any page
//! sends one without `Origin`: see [`RequestOrigin::is_proven`].

mod origin;

use std::net::IpAddr;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use hmac_sha256::Hash;
use subtle::ConstantTimeEq;

use crate::config::{HttpSettings, Listen, Secret};
use origin::{is_cross_site, is_same_origin_or_user};

/// Permissions of a caller; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AccessRole {
    /// Reads status, metrics and finished incidents.
    Read,
    /// Takes captures. They cost the service CPU time and expose its memory and command line.
    Capture,
    /// Changes the toggle.
    Control,
}

/// The sender of a request that passed all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestOrigin {
    pub(super) role: AccessRole,
    /// `true` if the request cannot come from another site through a browser. Proof is a token, the
    /// listener's Unix socket (no browser opens one), or `Sec-Fetch-Site: same-origin` or `none`
    /// without a prefetch. Scripts and old browsers over plain HTTP carry no proof, and neither
    /// does an image on a foreign page.
    pub(super) is_proven: bool,
}

/// The transport a request arrived on.
#[derive(Clone, Debug)]
enum EntryPoint {
    /// A router in the service's server, at addresses that only the service has.
    Nested,
    /// The listener of marple.
    Listener(Listen),
}

impl AccessRole {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Capture => "capture",
            Self::Control => "control",
        }
    }
}

/// The check that a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessDenied {
    Host,
    CrossSite,
    Token,
}

/// Access control for the HTTP endpoint.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// `None` if every caller that passes the other checks has every role.
    tokens: Option<Vec<(AccessRole, [u8; 32])>>,
    hosts: Hosts,
    entry_point: EntryPoint,
}

#[derive(Clone, Debug)]
enum Hosts {
    Any,
    /// The listener's addresses, `localhost` and these names.
    Only(Vec<String>),
}

impl Access {
    /// Returns access control that checks the origin only, for a router that the service protects.
    pub(super) fn with_origin_check_only() -> Self {
        Self { tokens: None, hosts: Hosts::Any, entry_point: EntryPoint::Nested }
    }

    /// Returns access control for a router nested in the service's server. `settings.listen` is
    /// ignored.
    pub(super) fn for_nested_router(settings: &HttpSettings) -> Self {
        Self::new(settings, EntryPoint::Nested)
    }

    /// Returns access control for the listener of marple.
    pub(super) fn for_listener(settings: &HttpSettings) -> Self {
        Self::new(settings, EntryPoint::Listener(settings.listen.clone()))
    }

    fn new(settings: &HttpSettings, entry_point: EntryPoint) -> Self {
        let digest = |role, token: &Option<Secret>| Some((role, *token.as_ref()?.sha256()));
        let tokens: Vec<_> = [
            digest(AccessRole::Control, &settings.token),
            digest(AccessRole::Capture, &settings.capture_token),
            digest(AccessRole::Read, &settings.read_token),
        ]
        .into_iter()
        .flatten()
        .collect();
        let hosts =
            settings.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect::<Vec<_>>();
        // No browser opens a Unix socket.
        let accepts_any_host = hosts.is_empty() && (entry_point.is_unix() || !tokens.is_empty());
        Self {
            tokens: (!tokens.is_empty()).then_some(tokens),
            hosts: if accepts_any_host { Hosts::Any } else { Hosts::Only(hosts) },
            entry_point,
        }
    }

    /// Returns `true` if requests need a token.
    pub(super) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Returns the sender of `request` and its permissions.
    pub(super) fn check(&self, request: &Parts) -> Result<RequestOrigin, AccessDenied> {
        if !self.allows_host(request) {
            return Err(AccessDenied::Host);
        }
        if is_cross_site(&request.headers) {
            return Err(AccessDenied::CrossSite);
        }
        let Some(tokens) = &self.tokens else {
            let is_proven = self.entry_point.is_unix() || is_same_origin_or_user(&request.headers);
            return Ok(RequestOrigin { role: AccessRole::Control, is_proven });
        };
        let token = bearer_token(&request.headers);
        let digest = Hash::hash(token.unwrap_or_default());
        let mut role = None;
        for (token_role, expected) in tokens {
            let is_match = bool::from(digest.as_slice().ct_eq(&expected[..]));
            if is_match & token.is_some() {
                role = role.max(Some(*token_role));
            }
        }
        role.map(|role| RequestOrigin { role, is_proven: true }).ok_or(AccessDenied::Token)
    }

    fn allows_host(&self, request: &Parts) -> bool {
        let Hosts::Only(names) = &self.hosts else { return true };
        let mut host_headers = request.headers.get_all(HOST).iter();
        let host = host_headers.next().and_then(|host| host.to_str().ok());
        let host = match (host, request.uri.authority()) {
            // A request for `http://name/path` is for that name, whatever its header says.
            (_, Some(authority)) => authority.as_str(),
            (Some(host), None) => host,
            (None, None) => return false,
        };
        if host_headers.next().is_some() {
            return false;
        }
        let name = strip_port(host).to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name == "localhost"
            || address.is_ok_and(|ip| self.entry_point.allows_address(ip.to_canonical()))
            || names.contains(&name)
    }
}

impl EntryPoint {
    fn is_unix(&self) -> bool {
        matches!(self, Self::Listener(Listen::Unix(_)))
    }

    /// Returns `true` if a request for `ip` can reach this entry point without DNS rebinding.
    fn allows_address(&self, ip: IpAddr) -> bool {
        match self {
            _ if ip.is_unspecified() => false,
            // The service binds these addresses, and they are not configured here.
            Self::Nested => true,
            Self::Listener(Listen::Unix(_)) => ip.is_loopback(),
            Self::Listener(Listen::Tcp(address)) => {
                let listen_ip = address.ip().to_canonical();
                // A listener on all addresses is reachable under every address of the machine.
                ip.is_loopback() || ip == listen_ip || listen_ip.is_unspecified()
            }
        }
    }
}

/// Removes the port: `[::1]:80` becomes `[::1]`, `name:80` becomes `name`.
fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Returns the bearer token if there is exactly one well-formed `Authorization` header.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let first = values.next()?;
    let second = values.next();
    let (scheme, token) = first.as_bytes().split_at_checked(7)?;
    (second.is_none() && scheme.eq_ignore_ascii_case(b"Bearer ")).then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn check_role(access: &Access, headers: &[(&str, &str)]) -> Result<AccessRole, AccessDenied> {
        let mut request = Request::builder().uri("/status");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access.check(&request.body(()).unwrap().into_parts().0).map(|caller| caller.role)
    }

    fn with_tokens() -> Access {
        Access::for_listener(&HttpSettings {
            token: Some(Secret::new("all")),
            capture_token: Some(Secret::new("take")),
            read_token: Some(Secret::new("look")),
            ..HttpSettings::default()
        })
    }

    #[test]
    fn token_grants_its_role_and_malformed_tokens_are_refused() {
        for (header, expected) in [
            ("Bearer all", Ok(AccessRole::Control)),
            ("bearer take", Ok(AccessRole::Capture)),
            ("BEARER look", Ok(AccessRole::Read)),
            ("Bearer al", Err(AccessDenied::Token)),
            ("Bearer all ", Err(AccessDenied::Token)),
            ("Bearer  all", Err(AccessDenied::Token)),
            ("Bearer ", Err(AccessDenied::Token)),
            ("Bearer", Err(AccessDenied::Token)),
            ("Basic all", Err(AccessDenied::Token)),
            ("all", Err(AccessDenied::Token)),
            ("", Err(AccessDenied::Token)),
        ] {
            assert_eq!(
                check_role(&with_tokens(), &[("authorization", header)]),
                expected,
                "{header}"
            );
        }
        let twice = [("authorization", "Bearer all"), ("authorization", "Bearer all")];
        assert_eq!(check_role(&with_tokens(), &twice), Err(AccessDenied::Token));
        assert_eq!(check_role(&with_tokens(), &[]), Err(AccessDenied::Token));
    }

    #[test]
    fn without_token_only_local_and_configured_hosts_are_accepted() {
        let hosts = vec!["Orders.internal".to_owned()];
        let access =
            Access::for_listener(&HttpSettings { allowed_hosts: hosts, ..HttpSettings::default() });
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
            ("127.9.9.9", true),
            ("0.0.0.0:6060", false),
            ("0.0.0.0", false),
            ("[::]:6060", false),
            ("[::ffff:0.0.0.0]:6060", false),
            ("[::ffff:127.0.0.1]:6060", true),
            ("10.0.0.1:6060", false),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(check_role(&access, &[("host", host)]).is_ok(), allowed, "{host}");
        }
        assert_eq!(check_role(&access, &[]), Err(AccessDenied::Host));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(check_role(&access, &twice), Err(AccessDenied::Host));
    }

    #[test]
    fn cross_site_requests_are_refused_even_with_valid_token() {
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
            let got = check_role(&with_tokens(), &[token, ("host", "orders:6060"), header]);
            assert_eq!(got == Ok(AccessRole::Control), allowed, "{header:?}: {got:?}");
            assert!(allowed || got == Err(AccessDenied::CrossSite));
        }
    }

    #[test]
    fn host_address_must_match_listen_address() {
        let token = Some(Secret::new("all"));
        let listen = |address: &str| Listen::Tcp(address.parse().unwrap());
        let hosts = vec!["orders.internal".to_owned()];
        for (listen, host, allowed) in [
            (listen("10.0.0.1:1"), "10.0.0.1:1", true),
            (listen("10.0.0.1:1"), "10.0.0.2:1", false),
            (listen("10.0.0.1:1"), "0.0.0.0:1", false),
            (listen("0.0.0.0:1"), "10.0.0.2:1", true),
            (listen("0.0.0.0:1"), "0.0.0.0:1", false),
            (listen("[::]:1"), "[::]:1", false),
            (listen("[::]:1"), "10.0.0.2:1", true),
            (Listen::Unix("/x".into()), "localhost", true),
            (Listen::Unix("/x".into()), "0.0.0.0", false),
        ] {
            let token = token.clone();
            let hosts = hosts.clone();
            let settings =
                HttpSettings { listen, token, allowed_hosts: hosts, ..HttpSettings::default() };
            let headers = [("host", host), ("authorization", "Bearer all")];
            let own = check_role(&Access::for_listener(&settings), &headers);
            assert_eq!(own.is_ok(), allowed, "{} {host}", settings.listen);
            let nested = check_role(&Access::for_nested_router(&settings), &headers);
            assert_eq!(
                nested.is_ok(),
                !host.contains("0.0.0.0") && !host.contains("[::]"),
                "{host}"
            );
        }
    }

    #[test]
    fn is_proven_requires_token_unix_socket_or_same_origin() {
        let access_for = |listen: &str| {
            let listen = match listen.strip_prefix("unix:") {
                Some(path) => Listen::Unix(path.into()),
                None => Listen::Tcp(listen.parse().unwrap()),
            };
            Access::for_listener(&HttpSettings { listen, ..HttpSettings::default() })
        };
        let tcp = access_for("127.0.0.1:1");
        let unix = access_for("unix:/x");
        let open = Access::with_origin_check_only();
        let token = with_tokens();
        let host = ("host", "localhost");
        let site = |site| ("sec-fetch-site", site);
        for (access, headers, expected) in [
            (&tcp, vec![host], false),
            (&open, vec![host], false),
            (&tcp, vec![host, site("same-origin")], true),
            (&open, vec![host, site("none")], true),
            (&tcp, vec![host, site("none"), ("sec-purpose", "prefetch;prerender")], false),
            (&tcp, vec![host, site("none"), ("purpose", "prefetch")], false),
            (&unix, vec![host], true),
            (&token, vec![("authorization", "Bearer all")], true),
        ] {
            let mut request = Request::builder().uri("/monitor/notify");
            for (name, value) in &headers {
                request = request.header(*name, *value);
            }
            let caller = access.check(&request.body(()).unwrap().into_parts().0).unwrap();
            assert_eq!(caller.is_proven, expected, "{headers:?}");
        }
    }
}
