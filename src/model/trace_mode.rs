//! Recording modes of polls and parks.

/// The times at which polls and parks are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum TraceMode {
    /// Always, so that a trace includes the time before its trigger.
    #[default]
    Always,
    /// Only while a trace is being captured.
    OnDemand,
    /// Never: a trace contains spans, events and vitals only.
    Off,
}

impl TraceMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Always, Self::OnDemand, Self::Off];

    /// Returns the name used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnDemand => "on-demand",
            Self::Off => "off",
        }
    }
}
