//! A log event for the host's `tracing` subscriber.

use std::fmt::Display;
use std::time::Duration;

use tracing::dispatcher::has_been_set;
use tracing::level_filters::LevelFilter;

use super::text::escape_and_truncate;

/// Queueing time from which an event reports its delay. Its timestamp is taken at delivery.
const LATE_DELIVERY_THRESHOLD: Duration = Duration::from_secs(1);

/// The severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLevel {
    /// A function does not work.
    Error,
    /// A condition needs attention.
    Warn,
    /// A notable event.
    Info,
    /// A routine event.
    Debug,
}

impl LogLevel {
    /// Returns `true` if some subscriber may want this level. Calls no host code.
    ///
    /// Also `true` without a subscriber, except for `Debug`: one may be set later, or `tracing` may
    /// forward events to `log`.
    pub(crate) fn is_enabled(self) -> bool {
        let filter = match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        };
        filter <= LevelFilter::current() || (self != Self::Debug && !has_been_set())
    }
}

/// A log event: a message and fields. All texts are escaped and bounded. [`LogEvent::send`] queues
/// it.
#[must_use = "an event is logged by `send`"]
#[derive(Clone, Debug)]
pub(crate) struct LogEvent {
    level: LogLevel,
    is_audit: bool,
    message: String,
    fields: Box<EventFields>,
}

/// The fields of an event. Fields that are `None` are not recorded.
#[derive(Clone, Debug, Default)]
struct EventFields {
    rule: Option<String>,
    incident: Option<String>,
    name: Option<String>,
    dir: Option<String>,
    path: Option<String>,
    times: Option<u64>,
    topic: Option<String>,
    needs_restart: Option<String>,
    method: Option<String>,
    route: Option<String>,
    status: Option<u64>,
    who: Option<String>,
    role: Option<String>,
    millis: Option<u64>,
    refusals: Option<u64>,
}

impl EventFields {
    fn texts(&self) -> impl Iterator<Item = &String> {
        let texts = [
            &self.rule,
            &self.incident,
            &self.name,
            &self.dir,
            &self.path,
            &self.topic,
            &self.needs_restart,
            &self.method,
            &self.route,
            &self.who,
            &self.role,
        ];
        texts.into_iter().flatten()
    }
}

/// Defines the setters of text fields and of numeric fields.
macro_rules! setters {
    ($($text:ident: $text_doc:literal),*; $($number:ident: $number_doc:literal),*) => {
        $(
            #[doc = $text_doc]
            pub(crate) fn $text(mut self, value: impl Display) -> Self {
                self.fields.$text = Some(escape_and_truncate(&value.to_string()));
                self
            }
        )*
        $(
            #[doc = $number_doc]
            pub(crate) fn $number(mut self, value: impl Into<u64>) -> Self {
                self.fields.$number = Some(value.into());
                self
            }
        )*
    };
}

/// Sends an event to the subscriber. Fields with `display` are recorded without quotes.
macro_rules! deliver {
    ($level:ident, $event:expr, $late_millis:expr) => {{
        let fields = &$event.fields;
        tracing::event!(
            target: "marple",
            tracing::Level::$level,
            rule = fields.rule.as_deref(),
            incident = fields.incident.as_ref().map(display),
            name = fields.name.as_deref(),
            dir = fields.dir.as_ref().map(display),
            path = fields.path.as_ref().map(display),
            times = fields.times,
            topic = fields.topic.as_deref(),
            needs_restart = fields.needs_restart.as_ref().map(display),
            late_millis = $late_millis,
            "{}",
            $event.message
        );
    }};
}

/// Sends an event of the audit log to the subscriber.
macro_rules! deliver_audit {
    ($level:ident, $event:expr, $late_millis:expr) => {{
        let fields = &$event.fields;
        tracing::event!(
            target: "marple::audit",
            tracing::Level::$level,
            method = fields.method.as_deref(),
            route = fields.route.as_deref(),
            status = fields.status,
            who = fields.who.as_deref(),
            role = fields.role.as_deref(),
            millis = fields.millis,
            refusals = fields.refusals,
            times = fields.times,
            late_millis = $late_millis,
            "{}",
            $event.message
        );
    }};
}

impl LogEvent {
    /// Creates an event of target `marple`.
    pub(crate) fn new(level: LogLevel, message: impl Into<String>) -> Self {
        let message = escape_and_truncate(&message.into());
        Self { level, is_audit: false, message, fields: Box::default() }
    }

    /// Creates an event of target `marple::audit`.
    pub(crate) fn audit(level: LogLevel, message: impl Into<String>) -> Self {
        Self { is_audit: true, ..Self::new(level, message) }
    }

    setters! {
        rule: "Sets the rule that fired.",
        incident: "Sets the incident it is about.",
        name: "Sets the name of that incident.",
        dir: "Sets the directory of that incident.",
        path: "Sets the file it is about.",
        topic: "Sets the topic of a warning.",
        needs_restart: "Sets the settings that take effect at the next start only.",
        method: "Sets the method of a request.",
        route: "Sets the route of a request.",
        who: "Sets the client of a request.",
        role: "Sets the role of that client.";
        times: "Sets how often it has happened.",
        status: "Sets the status of an answer.",
        millis: "Sets how long a request took.",
        refusals: "Sets how often such a request was refused."
    }

    /// Queues the event if a subscriber wants its level. Never blocks; takes a few microseconds.
    pub(crate) fn send(self) {
        if self.level.is_enabled()
            && let Some(queue) = super::queue()
        {
            queue.send(self);
        }
    }

    /// Returns the size of its texts in bytes.
    pub(super) fn size(&self) -> usize {
        self.message.len() + self.fields.texts().map(String::len).sum::<usize>()
    }

    /// Delivers the event to the host's subscriber, which may block or panic. `waited` is the time
    /// it was queued.
    pub(super) fn deliver(&self, queue_time: Duration) {
        let late = (queue_time >= LATE_DELIVERY_THRESHOLD)
            .then(|| u64::try_from(queue_time.as_millis()).unwrap_or(u64::MAX));
        match (self.is_audit, self.level) {
            (false, LogLevel::Error) => deliver!(ERROR, self, late),
            (false, LogLevel::Warn) => deliver!(WARN, self, late),
            (false, LogLevel::Info) => deliver!(INFO, self, late),
            (false, LogLevel::Debug) => deliver!(DEBUG, self, late),
            (true, LogLevel::Error | LogLevel::Warn) => deliver_audit!(WARN, self, late),
            (true, LogLevel::Info) => deliver_audit!(INFO, self, late),
            (true, LogLevel::Debug) => deliver_audit!(DEBUG, self, late),
        }
    }
}
