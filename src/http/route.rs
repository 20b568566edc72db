//! The routes, their names in counters and the roles they need.

use axum::http::Method;

use super::access::AccessRole;

/// A route of the endpoint.
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

    /// Returns the name under which requests are counted. It never contains the path of a request,
    /// which may hold the secret prefix of a nested router or a misplaced token.
    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(route, _)| *route == self).map_or("other", |(_, path)| path)
    }

    /// Returns the index of its counters.
    pub(super) fn index(self) -> usize {
        Self::ALL.iter().position(|(route, _)| *route == self).unwrap_or(Self::ALL.len())
    }

    /// Returns the methods that it accepts, in the form of an `Allow` header.
    pub(super) const fn methods(self) -> &'static str {
        match self {
            Self::Notify => "GET, POST",
            // Go's client sends symbol requests by POST.
            Self::Pprof => "GET, HEAD, POST",
            _ => "GET, HEAD",
        }
    }

    pub(super) fn allows_method(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// Returns the role that a request needs. `name` is the profile; reading the toggle's state
    /// needs [`AccessRole::Read`].
    pub(super) fn role(self, name: &str, reads_toggle: bool) -> AccessRole {
        match (self, name) {
            (Self::Notify, _) if reads_toggle => AccessRole::Read,
            (Self::Notify, _) => AccessRole::Control,
            (Self::Pprof, "symbol") => AccessRole::Read,
            // Command lines often contain passwords.
            (Self::Pprof, _) => AccessRole::Capture,
            _ => AccessRole::Read,
        }
    }
}
