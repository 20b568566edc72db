//! State of the agent loop: measurements, decisions and pending requests.
//!
//! One thread owns it, and no method waits. Each method handles one kind of event.

mod dead_rules;
mod dispatch;
mod missing_features;
mod requests;
mod results;
mod settings;
mod status;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use jiff::Timestamp;

use crate::agent::event::AgentEvent;
use crate::agent::history::{History, VitalsRecording};
use crate::agent::status::{AgentCounters, ConfigStatus};
use crate::base::{
    Clock, ClockReading, IncidentId, Moment, TimeAnchor, log, panic_log, spare, standstill,
    warnings,
};
use crate::capture::collectors;
use crate::capture::custom_collectors::Collectors;
use crate::capture::messages::CaptureCommand;
use crate::capture::worker::directory::OpenedStore;
use crate::config::Settings;
use crate::model::{CaptureKind, Finding, Losses, Vitals};
use crate::policy::decider::{Decider, FiredRule};
use crate::policy::on_demand::OnDemandCaptures;
use crate::stalls::detector;
use crate::stalls::recent::RecentStalls;
use crate::store::{Location, StoreUsage};
use crate::vitals::Reader;
use dead_rules::DeadRules;
use requests::PendingReply;

/// An open incident: its directory, the vitals for its manifest, and the requests waiting for the
/// directory.
struct OpenIncident {
    id: IncidentId,
    dir: Option<PathBuf>,
    first_finding: Option<Finding>,
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
        commands: SyncSender<CaptureCommand>,
    ) -> Self {
        let InitialState { settings, config_path, collectors, location, directory, endpoint } =
            initial;
        let started = clock.wall();
        let decider = Decider::new(settings.rules.clone(), settings.budget.clone());
        let on_demand = OnDemandCaptures::new(settings.budget.on_demand_captures_per_day);
        settings::configure(&settings);
        let mut state = Self {
            started,
            location,
            store_usage: StoreUsage::unknown(&settings.store),
            endpoint: Some(endpoint),
            config: ConfigStatus {
                path: config_path,
                applied: Some(started),
                ..ConfigStatus::default()
            },
            lookback: collectors::cpu::start_lookback(&settings),
            collectors,
            decider,
            settings: Arc::new(settings),
            clock,
            reader,
            vitals: Vitals::default(),
            history: History::default(),
            open_incidents: Vec::new(),
            on_demand,
            commands,
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
            self.on_demand.quota.restore(anchor, &saved.on_demand_captures);
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
        collectors::symbol_files::tick(&self.vitals);
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
            let FiredRule { rule, text, incident } = fired;
            match incident {
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
            let (expired, remaining) =
                std::mem::take(&mut self.open_incidents[index].pending_replies)
                    .into_iter()
                    .partition(|(until, _)| *until <= now);
            self.open_incidents[index].pending_replies = remaining;
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
                let anchor = self.clock.anchor();
                let in_use = self.engines_in_use();
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

    /// Stops recording at the end of the agent.
    pub(super) fn stop_recording(&self) {
        collectors::trace::stop_recording(&self.settings.trace);
    }

    fn dir(&self, id: IncidentId) -> Option<PathBuf> {
        self.open_incidents.iter().find(|open| open.id == id)?.dir.clone()
    }

    fn first_finding(&self, id: IncidentId) -> Option<Finding> {
        self.open_incidents.iter().find(|open| open.id == id)?.first_finding.clone()
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
                first_finding: None,
                recording,
                pending_replies: Vec::new(),
            });
        }
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
