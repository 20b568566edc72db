//! When polls and parks are recorded.

/// When polls and parks are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    /// All the time, so that a trace begins before what it is made for.
    #[default]
    Always,
    /// While a trace is captured.
    OnDemand,
    /// Never: a trace shows spans, events and vitals.
    Off,
}

impl TraceMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Always, Self::OnDemand, Self::Off];

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnDemand => "on-demand",
            Self::Off => "off",
        }
    }
}
