//! The routes, what they are called in counters, and who may use them.

use axum::http::Method;

use super::access::Role;

/// A place to ask at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Notify,
    Status,
    Metrics,
    Incidents,
    Incident,
    Artifact,
    PprofRoot,
    Index,
    Pprof,
    Unknown,
}

impl Route {
    /// Every route with its path.
    pub(super) const ALL: [(Self, &'static str); 9] = [
        (Self::Notify, "/monitor/notify"),
        (Self::Status, "/status"),
        (Self::Metrics, "/metrics"),
        (Self::Incidents, "/incidents"),
        (Self::Incident, "/incidents/{id}"),
        (Self::Artifact, "/incidents/{id}/{file}"),
        (Self::PprofRoot, "/debug/pprof"),
        (Self::Index, "/debug/pprof/"),
        (Self::Pprof, "/debug/pprof/{name}"),
    ];

    /// How it is called where requests are counted. Never the path of a request: that may hold the secret
    /// prefix of a nested router, or a token somebody put there.
    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(route, _)| *route == self).map_or("other", |(_, path)| path)
    }

    /// Its place among the counters.
    pub(super) fn index(self) -> usize {
        Self::ALL.iter().position(|(route, _)| *route == self).unwrap_or(Self::ALL.len())
    }

    /// The methods it takes, as `Allow` lists them.
    pub(super) const fn methods(self) -> &'static str {
        match self {
            Self::Notify => "GET, POST",
            // Go's client asks for symbols by POST.
            Self::Pprof => "GET, HEAD, POST",
            _ => "GET, HEAD",
        }
    }

    pub(super) fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|known| known == method.as_str())
    }

    /// What one must be allowed to; `name` is the profile's. Reading the toggle's state is reading.
    pub(super) fn role(self, name: &str, reads_toggle: bool) -> Role {
        match (self, name) {
            (Self::Notify, _) if reads_toggle => Role::Read,
            (Self::Notify, _) => Role::Control,
            (Self::Pprof, "symbol") => Role::Read,
            // The arguments of a process are where people put passwords.
            (Self::Pprof, _) => Role::Capture,
            _ => Role::Read,
        }
    }
}
