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
use crate::base::failure::error_chain;
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
    pending_replies: Vec<(Moment, PendingReply)>,
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
    open_incidents: Vec<OpenIncident>,
    on_demand: OnDemandCaptures,
    collectors: Collectors,
    commands: SyncSender<CaptureCommand>,
    /// True while the capture thread is performing a command.
    capture_thread_busy: bool,
    location: Location,
    /// Description of that command and the time it was sent.
    current_command: Option<(TimeAnchor, &'static str)>,
    /// Disk usage of the store after the last command.
    store_usage: StoreUsage,
    /// Address of the endpoint, until the start of the agent is logged.
    endpoint: Option<String>,
    counters: AgentCounters,
    engines: BTreeMap<CaptureKind, String>,
    failures: Losses,
    last_failure: Option<String>,
    lookback: collectors::cpu::LookbackState,
    recent_stalls: RecentStalls,
    dead_rules: DeadRules,
    /// Total standstill time already applied to the rules.
    standstill_total: Duration,
}

/// The values an agent starts with.
pub(super) struct InitialState {
    pub(super) settings: Settings,
    /// Path of the settings file.
    pub(super) config_path: Option<PathBuf>,
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
        initial: InitialState,
        reader: Reader,
        tasks: SyncSender<CaptureCommand>,
    ) -> Self {
        let InitialState { settings, config_path: path, collectors, location, directory, endpoint } =
            initial;
        let started = clock.wall();
        let decider = Decider::new(settings.rules.clone(), settings.budget.clone());
        let streams = OnDemandCaptures::new(settings.budget.on_demand_captures_per_day);
        warn_about_settings(&settings);
        crate::agent::state::missing_features::warn_about_missing_features(&settings);
        warn_if_no_heap_profiles(&settings);
        collectors::heap::set_rates(&settings.heap);
        collectors::trace::configure(&settings.trace);
        let mut state = Self {
            started,
            location,
            store_usage: StoreUsage::unknown(&settings.store),
            endpoint: Some(endpoint),
            config: ConfigStatus { path, applied: Some(started), ..ConfigStatus::default() },
            lookback: collectors::cpu::start_lookback(&settings),
            collectors,
            decider,
            settings: Arc::new(settings),
            clock,
            reader,
            vitals: Vitals::default(),
            history: History::default(),
            open_incidents: Vec::new(),
            on_demand: streams,
            commands: tasks,
            capture_thread_busy: false,
            current_command: None,
            counters: AgentCounters::default(),
            engines: BTreeMap::new(),
            failures: Losses::default(),
            last_failure: None,
            recent_stalls: RecentStalls::default(),
            dead_rules: DeadRules::default(),
            standstill_total: standstill::total(),
        };
        if let Some(opened) = directory {
            state.on_directory_opened(opened);
        }
        state
    }

    /// Continues from the budgets saved by an earlier process, once the incident directory is open.
    pub(super) fn on_directory_opened(&mut self, opened: OpenedStore) {
        let anchor = self.clock.anchor();
        let saved = opened.saved.map(|saved| saved.rebase(&ClockReading::new(anchor)));
        if let Some(saved) = &saved {
            self.decider.restore(anchor, saved);
            self.on_demand.quota.restore(anchor, &saved.streams);
        }
        if self.counters.ticks > 0 {
            // Earlier decisions of this process have not been saved.
            self.decider.mark_dirty();
            log::info(format!("incidents are stored in {}", opened.path.display()));
        }
        self.store_usage = opened.usage;
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Handles detected stalls. The rules are evaluated at once if there is a stack for the
    /// incident, else at the next tick. When many stalls occur at once, few have a stack.
    pub(super) fn on_stalls(&mut self, found: Vec<detector::DetectedStall>) {
        self.counters.stalls += found.len() as u64;
        let has_stack = found.iter().any(|found| found.dump.is_some());
        found.iter().for_each(|found| collectors::trace::record_stall(&found.stall));
        self.recent_stalls.record(found, self.clock.now());
        if has_stack {
            self.tick();
        }
    }

    /// Excludes standstills of the process from the durations counted by the rules.
    pub(super) fn apply_standstills(&mut self) {
        let total = standstill::total();
        let new_standstill = total.saturating_sub(self.standstill_total);
        if !new_standstill.is_zero() {
            self.standstill_total = total;
            self.decider.engine.exclude_standstill(new_standstill);
        }
    }

    /// Returns the interval at which to call [`AgentState::tick`].
    pub(super) fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Returns the time until [`AgentState::expire`] is due, or `None` if nothing expires.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let deadlines = self
            .open_incidents
            .iter()
            .flat_map(|open| open.pending_replies.iter().map(|(until, _)| *until));
        let incidents = &self.decider.incidents;
        let next =
            deadlines.chain(incidents.next_expiry()).chain(self.on_demand.next_expiry()).min()?;
        Some(next.since(self.clock.now()))
    }

    /// Returns `true` if everything is closed and the capture thread is idle.
    pub(super) fn is_idle(&self) -> bool {
        self.decider.incidents.is_empty() && self.on_demand.is_empty() && !self.capture_thread_busy
    }

    /// Reads the vitals and evaluates the rules.
    pub(super) fn tick(&mut self) {
        let now = self.clock.now();
        self.reader.read_into(now, &mut self.vitals);
        self.counters.ticks += 1;
        collectors::names::tick(&self.vitals);
        collectors::heap::tick(&mut self.vitals);
        self.decider.stall_description =
            self.recent_stalls.update_vitals(&mut self.vitals, detector::threshold(&self.settings));
        self.decider.panic_description = match self.vitals.panics {
            Some(0) | None => None,
            Some(_) => panic_log::describe_most_frequent(),
        };
        collectors::trace::record_vitals(&self.vitals);
        collectors::tasks::record_vitals(&self.vitals);
        self.history.record(&self.vitals);
        for open in &mut self.open_incidents {
            open.recording.record(&self.vitals);
        }
        self.decider.incidents.set_has_collectors(!self.collectors.is_empty());
        let new_id = || IncidentId::new(self.clock.wall());
        let wall = || self.clock.wall();
        for fired in self.decider.evaluate(now, &self.vitals, new_id, wall) {
            let (rule, text) = (fired.rule, fired.text);
            match fired.incident {
                Some(id) => {
                    self.counters.fired += 1;
                    log::LogEvent::new(log::LogLevel::Warn, text).rule(&rule).send();
                    self.recent_stalls.attach_to(id, &rule, &self.settings.rules);
                    self.start_vitals_recording(id);
                }
                None => {
                    self.counters.dry_run_fires += 1;
                    let text = format!("dry run, nothing is captured: {text}");
                    log::LogEvent::new(log::LogLevel::Warn, text).rule(rule).send();
                }
            }
        }
        self.expire();
        self.warn_about_dead_rules();
        self.log_start();
        spare::refill();
        self.check_capture_thread();
        log::check_status();
        log_warnings();
    }

    /// Sets the conditions that trigger a tick between regular ticks.
    pub(super) fn arm_early_ticks(&self) {
        collectors::heap::arm_threshold(&self.vitals, self.settings.rules.iter());
    }

    /// Ends the claims and requests that have expired.
    pub(super) fn expire(&mut self) {
        let now = self.clock.now();
        self.decider.expire(now);
        for index in 0..self.open_incidents.len() {
            let (expired, waiting) =
                std::mem::take(&mut self.open_incidents[index].pending_replies)
                    .into_iter()
                    .partition(|(until, _)| *until <= now);
            self.open_incidents[index].pending_replies = waiting;
            self.send_replies(expired, self.open_incidents[index].id, None);
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
            AgentEvent::OnDemandRequested(request) => {
                let (anchor, in_use) = (self.clock.anchor(), self.engines_in_use());
                self.on_demand.submit(anchor, request, &in_use);
            }
            AgentEvent::ClientDisconnected => {}
            AgentEvent::SettingsChanged { settings } => self.reload(settings),
            AgentEvent::Shutdown => {
                self.decider.incidents.shut_down();
                self.on_demand.shut_down();
            }
        }
    }

    fn handle_result(&mut self, result: CaptureResult) {
        match result {
            CaptureResult::Incident(result) => self.apply_incident_result(result),
            CaptureResult::OnDemand(result) => {
                self.mark_capture_thread_idle();
                if let OnDemandResult::Started { engine: Some(engine), .. } = &result {
                    self.engines.extend([engine.clone()]);
                }
                self.apply_on_demand_result(result);
            }
            CaptureResult::Encoded(result) => self.apply_on_demand_result(result),
            CaptureResult::Collected { id } => self.decider.incidents.collector_returned(id),
            CaptureResult::DirectoryOpened(opened) => self.on_directory_opened(*opened),
            CaptureResult::StateNotSaved(error) => self.record_failure("state not saved", error),
        }
    }

    fn apply_on_demand_result(&mut self, done: OnDemandResult) {
        if let Some(bytes) = self.on_demand.apply_result(self.clock.now(), done) {
            self.counters.streams += 1;
            self.counters.stream_bytes.0 += bytes;
        }
    }

    /// Stops recording at the end of the agent.
    pub(super) fn stop_recording(&self) {
        collectors::trace::stop_recording(&self.settings.trace);
    }

    fn apply_incident_result(&mut self, task: IncidentTaskResult) {
        self.mark_capture_thread_idle();
        spare::refill();
        let tally = task.stats;
        self.engines.extend(tally.engines);
        self.counters.captures += tally.captures;
        self.counters.captures_failed += tally.captures_failed;
        self.counters.artifacts += tally.artifacts;
        self.counters.artifact_bytes.0 += tally.artifact_bytes;
        self.store_usage = tally.store.unwrap_or(self.store_usage);
        if let (Some(path), crate::policy::incidents::CommandResult::Opened { id, .. }) =
            (task.dir, &task.result)
        {
            self.counters.incidents += 1;
            if let Some(open) = self.open_incidents.iter_mut().find(|open| open.id == *id) {
                open.dir = Some(path);
                let waiting = std::mem::take(&mut open.pending_replies);
                self.send_replies(waiting, *id, None);
            }
        }
        let last_error = tally.failures.last().map(|(_, error)| error.clone());
        for (cause, error) in tally.failures {
            self.record_failure(cause, error);
        }
        if matches!(task.result, crate::policy::incidents::CommandResult::Closed { ok: true, .. }) {
            self.counters.incidents_closed += 1;
        }
        let now = self.clock.now();
        for id in self.decider.apply_result(now, task.result) {
            if let Some(index) = self.open_incidents.iter().position(|open| open.id == id) {
                let open = self.open_incidents.remove(index);
                self.send_replies(open.pending_replies, id, last_error.clone());
            }
        }
    }

    fn reload(&mut self, settings: Result<Box<Settings>, PublicError>) {
        let settings = match settings {
            Ok(settings) => *settings,
            Err(error) => {
                let why = error_chain(&error);
                log::error(format!(
                    "configuration reload failed, keeping the current settings: {why}"
                ));
                self.config.rejected = Some(why);
                return;
            }
        };
        let (settings, needs_restart) = reload::merge(&self.settings, settings);
        self.decider.replace(settings.rules.clone(), settings.budget.clone());
        self.dead_rules.report_again();
        self.on_demand.quota.set_limit(settings.budget.on_demand_captures_per_day);
        warn_about_settings(&settings);
        crate::agent::state::missing_features::warn_about_missing_features(&settings);
        warn_if_no_heap_profiles(&settings);
        collectors::heap::set_rates(&settings.heap);
        collectors::trace::configure(&settings.trace);
        let applied = log::LogEvent::new(log::LogLevel::Info, "new settings applied");
        applied.needs_restart(format_args!("{needs_restart:?}")).send();
        self.settings = Arc::new(settings);
        self.config.applied = Some(self.clock.wall());
        self.config.rejected = None;
        self.config.needs_restart = needs_restart;
    }

    fn dir(&self, id: IncidentId) -> Option<PathBuf> {
        self.open_incidents.iter().find(|open| open.id == id)?.dir.clone()
    }

    fn new_id(&self) -> impl FnOnce() -> IncidentId + use<> {
        let clock = Arc::clone(&self.clock);
        move || IncidentId::new(clock.wall())
    }

    /// Starts to record the vitals of an incident unless it is already recorded.
    fn start_vitals_recording(&mut self, id: IncidentId) {
        if !self.open_incidents.iter().any(|open| open.id == id) {
            let recording = self.history.start_recording(&self.vitals);
            self.open_incidents.push(OpenIncident {
                id,
                dir: None,
                recording,
                pending_replies: Vec::new(),
            });
        }
    }

    /// Counts a failure. Each cause is logged the first time and then at every power of two.
    fn record_failure(&mut self, cause: &'static str, error: String) {
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
fn warn_about_settings(settings: &Settings) {
    match settings.warnings().as_slice() {
        [] => warnings::clear("rule"),
        doubts => warnings::set("rule", doubts.join("; ")),
    }
}

/// Warns if `settings` request heap profiles and this program has none.
fn warn_if_no_heap_profiles(settings: &Settings) {
    let wanted = settings.rules.iter().fold(CaptureSet::EMPTY, |all, rule| all.union(rule.capture));
    match collectors::heap::unavailable_reason().filter(|_| wanted.contains(CaptureKind::Heap)) {
        Some(why) => warnings::set("heap", format!("heap profiles are unavailable: {why}")),
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
                log::LogEvent::new(log::LogLevel::Info, "warning cleared").topic(topic).send();
            }
        }
    }
}
