//! State of the agent loop: measurements, decisions and pending requests.
//!
//! One thread owns it, and no method waits. Each method handles one kind of event.

mod dead_rules;
pub(crate) mod dispatch;
pub(crate) mod missing_features;
pub(crate) mod requests;
pub(crate) mod status;

use crate::capture::messages::CaptureCommand;
use crate::capture::messages::CaptureResult;
use crate::policy::on_demand::OnDemandResult;
use crate::stalls::detector;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use jiff::Timestamp;

use crate::agent::event::AgentEvent;
use crate::agent::history::{History, VitalsRecording};
use crate::agent::reload;
use crate::agent::state::requests::PendingReply;
use crate::agent::status::{AgentCounters, ConfigStatus};
use crate::base::failure::chain;
use crate::base::{
    Clock, ClockReading, Error as PublicError, IncidentId, Moment, TimeAnchor, log, panic_log,
    spare, standstill, warnings,
};
use crate::capture::collectors;
use crate::capture::custom_collectors::Collectors;
use crate::capture::messages::IncidentTaskResult;
use crate::capture::worker::directory::OpenedStore;
use crate::config::Settings;
use crate::model::{CaptureKind, CaptureSet, Losses, Vitals};
use crate::policy::decider::Decider;
use crate::policy::on_demand::OnDemandCaptures;
use crate::stalls::recent::RecentStalls;
use crate::store::{Location, StoreUsage};
use crate::vitals::Reader;
use dead_rules::DeadRules;

/// An open incident: its directory, the vitals for its manifest, and the requests waiting for the
/// directory.
struct OpenIncident {
    id: IncidentId,
    dir: Option<PathBuf>,
    recording: VitalsRecording,
    waiting: Vec<(Moment, PendingReply)>,
}

pub(super) struct AgentState {
    clock: Arc<dyn Clock>,
    started: Timestamp,
    settings: Arc<Settings>,
    config: ConfigStatus,
    reader: Reader,
    vitals: Vitals,
    history: History,
    decider: Decider,
    open: Vec<OpenIncident>,
    streams: OnDemandCaptures,
    collectors: Collectors,
    tasks: SyncSender<CaptureCommand>,
    /// True while the capture thread is performing a command.
    busy: bool,
    location: Location,
    /// Description of that command and the time it was sent.
    current: Option<(TimeAnchor, &'static str)>,
    /// Disk usage of the store after the last command.
    stored: StoreUsage,
    /// Address of the endpoint, until the start of the agent is logged.
    endpoint: Option<String>,
    counters: AgentCounters,
    engines: BTreeMap<CaptureKind, String>,
    failures: Losses,
    last_failure: Option<String>,
    cpu: collectors::cpu::LookbackState,
    stuck: RecentStalls,
    dead_rules: DeadRules,
    /// Total standstill time already applied to the rules.
    stood_still: Duration,
}

/// The values an agent starts with.
pub(super) struct InitialState {
    pub(super) settings: Settings,
    /// Path of the settings file.
    pub(super) path: Option<PathBuf>,
    pub(super) collectors: Collectors,
    /// Location of the incident directory.
    pub(super) location: Location,
    /// The incident directory, if it is open.
    pub(super) directory: Option<OpenedStore>,
    /// Address of the endpoint, for the log.
    pub(super) endpoint: String,
}

impl AgentState {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        begun: InitialState,
        reader: Reader,
        tasks: SyncSender<CaptureCommand>,
    ) -> Self {
        let InitialState { settings, path, collectors, location, directory, endpoint } = begun;
        let started = clock.wall();
        let decider = Decider::new(settings.rules.clone(), settings.budget.clone());
        let streams = OnDemandCaptures::new(settings.budget.streams_per_day);
        report_doubts(&settings);
        crate::agent::state::missing_features::report_missing(&settings);
        report_heap(&settings);
        collectors::heap::set_rates(&settings.heap);
        collectors::trace::configure(&settings.trace);
        let mut core = Self {
            started,
            location,
            stored: StoreUsage::unknown(&settings.store),
            endpoint: Some(endpoint),
            config: ConfigStatus { path, applied: Some(started), ..ConfigStatus::default() },
            cpu: collectors::cpu::launch(&settings),
            collectors,
            decider,
            settings: Arc::new(settings),
            clock,
            reader,
            vitals: Vitals::default(),
            history: History::default(),
            open: Vec::new(),
            streams,
            tasks,
            busy: false,
            current: None,
            counters: AgentCounters::default(),
            engines: BTreeMap::new(),
            failures: Losses::default(),
            last_failure: None,
            stuck: RecentStalls::default(),
            dead_rules: DeadRules::default(),
            stood_still: standstill::total(),
        };
        if let Some(opened) = directory {
            core.directory_opened(opened);
        }
        core
    }

    /// Continues from the budgets saved by an earlier process, once the incident directory is open.
    pub(super) fn directory_opened(&mut self, opened: OpenedStore) {
        let anchor = self.clock.anchor();
        let saved = opened.saved.map(|saved| saved.rebase(&ClockReading::new(anchor)));
        if let Some(saved) = &saved {
            self.decider.restore(anchor, saved);
            self.streams.allowance.restore(anchor, &saved.streams);
        }
        if self.counters.ticks > 0 {
            // Earlier decisions of this process have not been saved.
            self.decider.state_changed();
            log::info(format!("incidents are stored in {}", opened.path.display()));
        }
        self.stored = opened.holdings;
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Handles detected stalls. The rules are evaluated at once if there is a stack for the
    /// incident, else at the next tick. When many stalls occur at once, few have a stack.
    pub(super) fn stalled(&mut self, found: Vec<detector::FoundStalls>) {
        self.counters.stalls += found.len() as u64;
        let has_stack = found.iter().any(|found| found.dump.is_some());
        found.iter().for_each(|found| collectors::trace::record_stall(&found.stall));
        self.stuck.hear(found, self.clock.now());
        if has_stack {
            self.tick();
        }
    }

    /// Excludes standstills of the process from the durations counted by the rules.
    pub(super) fn follow_standstills(&mut self) {
        let total = standstill::total();
        let fresh = total.saturating_sub(self.stood_still);
        if !fresh.is_zero() {
            self.stood_still = total;
            self.decider.engine.stood_still(fresh);
        }
    }

    /// Returns the interval at which to call [`AgentState::tick`].
    pub(super) fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Returns the time until [`AgentState::expire`] is due, or `None` if nothing expires.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let patience =
            self.open.iter().flat_map(|open| open.waiting.iter().map(|(until, _)| *until));
        let incidents = &self.decider.incidents;
        let next =
            patience.chain(incidents.next_expiry()).chain(self.streams.next_expiry()).min()?;
        Some(next.since(self.clock.now()))
    }

    /// Returns `true` if everything is closed and the capture thread is idle.
    pub(super) fn is_at_rest(&self) -> bool {
        self.decider.incidents.is_empty() && self.streams.is_empty() && !self.busy
    }

    /// Reads the vitals and evaluates the rules.
    pub(super) fn tick(&mut self) {
        let now = self.clock.now();
        self.reader.read_into(now, &mut self.vitals);
        self.counters.ticks += 1;
        collectors::names::tick(&self.vitals);
        collectors::heap::tick(&mut self.vitals);
        self.decider.stall = self.stuck.tick(&mut self.vitals, detector::threshold(&self.settings));
        self.decider.panics = match self.vitals.panics {
            Some(0) | None => None,
            Some(_) => panic_log::most_frequent(),
        };
        collectors::trace::record_vitals(&self.vitals);
        collectors::tasks::record_vitals(&self.vitals);
        self.history.record(&self.vitals);
        for open in &mut self.open {
            open.recording.record(&self.vitals);
        }
        self.decider.incidents.set_collectors(!self.collectors.is_empty());
        let new_id = || IncidentId::new(self.clock.wall());
        let wall = || self.clock.wall();
        for fired in self.decider.observe(now, &self.vitals, new_id, wall) {
            let (rule, text) = (fired.rule, fired.text);
            match fired.incident {
                Some(id) => {
                    self.counters.fired += 1;
                    log::LogEvent::new(log::LogLevel::Warn, text).rule(&rule).send();
                    self.stuck.goes_to(id, &rule, &self.settings.rules);
                    self.track(id);
                }
                None => {
                    self.counters.would_have_fired += 1;
                    let text = format!("dry run, nothing is captured: {text}");
                    log::LogEvent::new(log::LogLevel::Warn, text).rule(rule).send();
                }
            }
        }
        self.expire();
        self.report_dead_rules();
        self.log_start();
        spare::refill();
        self.watch_capture_thread();
        log::check();
        log_warnings();
    }

    /// Sets the conditions that trigger a tick between regular ticks.
    pub(super) fn watch(&self) {
        collectors::heap::watch(&self.vitals, self.settings.rules.iter());
    }

    /// Ends the claims and requests that have expired.
    pub(super) fn expire(&mut self) {
        let now = self.clock.now();
        self.decider.expire(now);
        for at in 0..self.open.len() {
            let (late, waiting) = std::mem::take(&mut self.open[at].waiting)
                .into_iter()
                .partition(|(until, _)| *until <= now);
            self.open[at].waiting = waiting;
            self.answer(late, self.open[at].id, None);
        }
    }

    pub(super) fn handle(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Toggle { action, origin, kinds, reply } => {
                self.toggle(action, origin, kinds, reply);
            }
            AgentEvent::Capture { kinds, duration, reply } => self.capture(kinds, duration, reply),
            AgentEvent::Status { reply } => {
                let status = self.status();
                let _ = reply.send(Ok(Box::new(status)));
            }
            AgentEvent::Result(result) => self.handle_result(result),
            AgentEvent::Stream(ask) => {
                let (anchor, taken) = (self.clock.anchor(), self.taken());
                self.streams.ask(anchor, ask, &taken);
            }
            AgentEvent::StreamGone => {}
            AgentEvent::Reloaded { settings } => self.reload(settings),
            AgentEvent::Shutdown => {
                self.decider.incidents.shut();
                self.streams.shut();
            }
        }
    }

    fn handle_result(&mut self, result: CaptureResult) {
        match result {
            CaptureResult::Incident(result) => self.done(result),
            CaptureResult::OnDemand(result) => {
                self.capture_thread_is_free();
                if let OnDemandResult::Started { engine: Some(engine), .. } = &result {
                    self.engines.extend([engine.clone()]);
                }
                self.streamed(result);
            }
            CaptureResult::Encoded(result) => self.streamed(result),
            CaptureResult::Collected { id } => self.decider.incidents.collected(id),
            CaptureResult::DirectoryOpened(opened) => self.directory_opened(*opened),
            CaptureResult::StateNotSaved(error) => self.fail("state not saved", error),
        }
    }

    fn streamed(&mut self, done: OnDemandResult) {
        if let Some(bytes) = self.streams.done(self.clock.now(), done) {
            self.counters.streams += 1;
            self.counters.stream_bytes.0 += bytes;
        }
    }

    /// Stops recording at the end of the agent.
    pub(super) fn end(&self) {
        collectors::trace::end(&self.settings.trace);
    }

    fn done(&mut self, task: IncidentTaskResult) {
        self.capture_thread_is_free();
        spare::refill();
        let tally = task.stats;
        self.engines.extend(tally.engines);
        self.counters.captures += tally.captures;
        self.counters.captures_failed += tally.captures_failed;
        self.counters.artifacts += tally.artifacts;
        self.counters.artifact_bytes.0 += tally.artifact_bytes;
        self.stored = tally.store.unwrap_or(self.stored);
        if let (Some(path), crate::policy::incidents::CommandResult::Opened { id, .. }) =
            (task.dir, &task.result)
        {
            self.counters.incidents += 1;
            if let Some(open) = self.open.iter_mut().find(|open| open.id == *id) {
                open.dir = Some(path);
                let waiting = std::mem::take(&mut open.waiting);
                self.answer(waiting, *id, None);
            }
        }
        let why = tally.failures.last().map(|(_, error)| error.clone());
        for (cause, error) in tally.failures {
            self.fail(cause, error);
        }
        if matches!(task.result, crate::policy::incidents::CommandResult::Closed { ok: true, .. }) {
            self.counters.incidents_closed += 1;
        }
        let now = self.clock.now();
        for id in self.decider.done(now, task.result) {
            if let Some(at) = self.open.iter().position(|open| open.id == id) {
                let open = self.open.remove(at);
                self.answer(open.waiting, id, why.clone());
            }
        }
    }

    fn reload(&mut self, settings: Result<Box<Settings>, PublicError>) {
        let settings = match settings {
            Ok(settings) => *settings,
            Err(error) => {
                let why = chain(&error);
                log::error(format!("the settings stay as they are: {why}"));
                self.config.rejected = Some(why);
                return;
            }
        };
        let (settings, needs_restart) = reload::merge(&self.settings, settings);
        self.decider.replace(settings.rules.clone(), settings.budget.clone());
        self.dead_rules.forget();
        self.streams.allowance.set_limit(settings.budget.streams_per_day);
        report_doubts(&settings);
        crate::agent::state::missing_features::report_missing(&settings);
        report_heap(&settings);
        collectors::heap::set_rates(&settings.heap);
        collectors::trace::configure(&settings.trace);
        let applied = log::LogEvent::new(log::LogLevel::Info, "new settings are in force");
        applied.needs_restart(format_args!("{needs_restart:?}")).send();
        self.settings = Arc::new(settings);
        self.config.applied = Some(self.clock.wall());
        self.config.rejected = None;
        self.config.needs_restart = needs_restart;
    }

    fn dir(&self, id: IncidentId) -> Option<PathBuf> {
        self.open.iter().find(|open| open.id == id)?.dir.clone()
    }

    fn new_id(&self) -> impl FnOnce() -> IncidentId + use<> {
        let clock = Arc::clone(&self.clock);
        move || IncidentId::new(clock.wall())
    }

    /// Starts to record the vitals of an incident unless it is already recorded.
    fn track(&mut self, id: IncidentId) {
        if !self.open.iter().any(|open| open.id == id) {
            let recording = self.history.begin(&self.vitals);
            self.open.push(OpenIncident { id, dir: None, recording, waiting: Vec::new() });
        }
    }

    /// Counts a failure. Each cause is logged the first time and then at every power of two.
    fn fail(&mut self, cause: &'static str, error: String) {
        self.failures.add(cause, 1);
        let times =
            self.failures.iter().find(|loss| loss.cause == cause).map_or(1, |loss| loss.count);
        if times.is_power_of_two() {
            let text = format!("{cause}: {error}");
            log::LogEvent::new(log::LogLevel::Error, text).times(times).send();
        }
        self.last_failure = Some(format!("{cause}: {error}"));
    }
}

/// Warns about valid `settings` that are most likely unintended.
fn report_doubts(settings: &Settings) {
    match settings.doubts().as_slice() {
        [] => warnings::clear("rule"),
        doubts => warnings::set("rule", doubts.join("; ")),
    }
}

/// Warns if `settings` request heap profiles and this program has none.
fn report_heap(settings: &Settings) {
    let wanted = settings.rules.iter().fold(CaptureSet::EMPTY, |all, rule| all.union(rule.capture));
    match collectors::heap::why_absent().filter(|_| wanted.contains(CaptureKind::Heap)) {
        Some(why) => warnings::set("heap", format!("no heap profiles: {why}")),
        None => warnings::clear("heap"),
    }
}

/// Logs the warnings raised or cleared since the last tick.
fn log_warnings() {
    for change in warnings::take_changes() {
        match change {
            warnings::WarningChange::Set(warning) => {
                let event = log::LogEvent::new(log::LogLevel::Warn, warning.text);
                event.topic(warning.topic).send();
            }
            warnings::WarningChange::Cleared(topic) => {
                log::LogEvent::new(log::LogLevel::Info, "works again").topic(topic).send();
            }
        }
    }
}
