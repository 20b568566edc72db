use jiff::Timestamp;
use proptest::prelude::*;

use super::incident::MAX_REASONS;
use super::*;
use crate::model::{CaptureKind, CaptureSet, Origin, Reason};

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(seconds * 1_000_000_000)
}

fn reason(origin: Origin) -> Reason {
    Reason {
        origin,
        at: Timestamp::UNIX_EPOCH,
        rule: None,
        metric: None,
        value: None,
        threshold: None,
        text: String::new(),
    }
}

fn id() -> IncidentId {
    IncidentId::new(Timestamp::UNIX_EPOCH)
}

const SECOND: Duration = Duration::from_secs(1);

fn cpu() -> CaptureSet {
    [CaptureKind::Cpu].into()
}

fn request(kinds: CaptureSet, seconds: u32) -> CaptureRequest {
    CaptureRequest { kinds, duration: SECOND * seconds }
}

fn cpu_for(seconds: u32) -> CaptureRequest {
    request(cpu(), seconds)
}

/// Simulates a capture thread on which every command succeeds at once.
fn run_all_commands(incidents: &mut Incidents, now: Moment) -> Vec<IncidentCommand> {
    let mut commands = Vec::new();
    while let Some(command) = incidents.next_command(now) {
        let result = match &command {
            IncidentCommand::Open { id, .. } => CommandResult::Opened { id: *id, ok: true },
            IncidentCommand::Start { id, kinds } => {
                CommandResult::Started { id: *id, requested: *kinds, running: *kinds }
            }
            IncidentCommand::StartCollectors { id, .. }
            | IncidentCommand::FinishCollectors { id, .. } => {
                CommandResult::Collecting { id: *id, deadline: None }
            }
            IncidentCommand::Stop { id, kinds } => {
                CommandResult::Stopped { id: *id, kinds: *kinds }
            }
            IncidentCommand::UpdateManifest { id, .. } => {
                CommandResult::ManifestUpdated { id: *id }
            }
            IncidentCommand::Recapture { id, .. } => CommandResult::Recaptured { id: *id },
            IncidentCommand::Close { id, .. } => CommandResult::Closed { id: *id, ok: true },
        };
        incidents.apply_result(now, result);
        commands.push(command);
        assert!(commands.len() < 100, "the commands do not end: {commands:?}");
    }
    commands
}

fn command_names(commands: &[IncidentCommand]) -> Vec<&'static str> {
    commands
        .iter()
        .map(|command| match command {
            IncidentCommand::Open { .. } => "open",
            IncidentCommand::Start { .. } => "start",
            IncidentCommand::StartCollectors { .. } => "collect",
            IncidentCommand::FinishCollectors { .. } => "gather",
            IncidentCommand::Stop { .. } => "stop",
            IncidentCommand::UpdateManifest { .. } => "note",
            IncidentCommand::Recapture { .. } => "again",
            IncidentCommand::Close { .. } => "close",
        })
        .collect()
}

#[test]
fn rule_opens_captures_and_closes_when_it_clears() {
    let mut incidents = Incidents::default();
    incidents.claim_for_rule(at(0), id, "memory", cpu_for(5), reason(Origin::Rule));
    assert_eq!(command_names(&run_all_commands(&mut incidents, at(0))), ["open", "start"]);
    assert_eq!(incidents.next_expiry(), Some(at(5)));
    assert_eq!(incidents.expire(at(5)), []);
    assert_eq!(
        incidents.next_command(at(5)).map(|command| command_names(&[command])),
        Some(vec!["stop"])
    );
    let stopped = CommandResult::Stopped { id: incidents.open[0].id, kinds: cpu() };
    assert_eq!(
        incidents.apply_result(at(6), stopped),
        [IncidentUpdate::CaptureEnded("memory".into())]
    );
    assert_eq!(
        command_names(&run_all_commands(&mut incidents, at(6))),
        Vec::<&str>::new(),
        "it has not cleared"
    );
    incidents.clear("memory");
    assert_eq!(command_names(&run_all_commands(&mut incidents, at(7))), ["close"]);
    assert!(incidents.is_empty());
}

#[test]
fn rule_firing_during_a_capture_joins_the_incident() {
    let mut incidents = Incidents::default();
    let first = incidents.claim_for_rule(at(0), id, "memory", cpu_for(5), reason(Origin::Rule));
    run_all_commands(&mut incidents, at(0));
    let heap = CaptureSet::from([CaptureKind::Heap]);
    let second =
        incidents.claim_for_rule(at(2), id, "tasks", request(heap, 5), reason(Origin::Rule));
    assert_eq!(first, second);
    assert_eq!(command_names(&run_all_commands(&mut incidents, at(2))), ["start", "note"]);
    assert_eq!(incidents.expire(at(5)), []);
    assert_eq!(
        run_all_commands(&mut incidents, at(5)),
        [IncidentCommand::Stop { id: first, kinds: cpu() }]
    );
    assert_eq!(incidents.expire(at(7)), []);
    assert_eq!(
        run_all_commands(&mut incidents, at(7)),
        [IncidentCommand::Stop { id: first, kinds: heap }]
    );
    incidents.clear("tasks");
    assert_eq!(run_all_commands(&mut incidents, at(7)), [], "rule `memory` is still active");
    incidents.clear("memory");
    assert_eq!(command_names(&run_all_commands(&mut incidents, at(8))), ["close"]);
}

#[test]
fn rule_does_not_join_incident_waiting_to_clear() {
    let mut incidents = Incidents::default();
    let first = incidents.claim_for_rule(at(0), id, "memory", cpu_for(1), reason(Origin::Rule));
    run_all_commands(&mut incidents, at(0));
    incidents.expire(at(1));
    run_all_commands(&mut incidents, at(1));
    let second = incidents.claim_for_rule(at(60), id, "cpu", cpu_for(1), reason(Origin::Rule));
    assert_ne!(first, second);
    run_all_commands(&mut incidents, at(60));
    incidents.expire(at(61));
    run_all_commands(&mut incidents, at(61));
    let again = incidents.claim_for_rule(at(90), id, "memory", cpu_for(1), reason(Origin::Rule));
    assert_eq!(again, first, "a rule captures again within its incident");
}

#[test]
fn failed_capture_start_is_not_retried_while_claimed() {
    let mut incidents = Incidents::default();
    let first = incidents.claim_from_code(at(0), id, cpu_for(1), reason(Origin::Code));
    assert!(matches!(incidents.next_command(at(0)), Some(IncidentCommand::Open { .. })));
    incidents.apply_result(at(0), CommandResult::Opened { id: first, ok: true });
    assert!(matches!(incidents.next_command(at(0)), Some(IncidentCommand::Start { .. })));
    let refused =
        CommandResult::Started { id: first, requested: cpu(), running: CaptureSet::EMPTY };
    incidents.apply_result(at(0), refused);
    assert_eq!(incidents.next_command(at(0)), None);
    incidents.expire(at(1));
    assert_eq!(command_names(&run_all_commands(&mut incidents, at(1))), ["close"]);
}

#[test]
fn incident_without_directory_is_removed_and_rule_is_notified() {
    let mut incidents = Incidents::default();
    let first = incidents.claim_for_rule(at(0), id, "memory", cpu_for(1), reason(Origin::Rule));
    incidents.next_command(at(0));
    let updates = incidents.apply_result(at(0), CommandResult::Opened { id: first, ok: false });
    assert_eq!(
        updates,
        [IncidentUpdate::OpenFailed("memory".into(), first), IncidentUpdate::Removed(first)]
    );
    assert!(incidents.is_empty());
}

#[test]
fn failed_close_is_retried_after_delay() {
    let mut incidents = Incidents::default();
    let first =
        incidents.claim_from_code(at(0), id, request(CaptureSet::EMPTY, 1), reason(Origin::Code));
    run_all_commands(&mut incidents, at(0));
    incidents.expire(at(1));
    assert!(matches!(incidents.next_command(at(1)), Some(IncidentCommand::Close { .. })));
    incidents.apply_result(at(1), CommandResult::Closed { id: first, ok: false });
    assert_eq!(incidents.next_command(at(2)), None);
    assert_eq!(
        command_names(&run_all_commands(&mut incidents, at(1) + CLOSE_RETRY_DELAY)),
        ["close"]
    );
}

#[test]
fn toggling_during_one_command_opens_one_incident() {
    let mut incidents = Incidents::default();
    let first = incidents.toggle_on(at(0), id, cpu_for(300), reason(Origin::Http)).incident;
    assert!(matches!(incidents.next_command(at(0)), Some(IncidentCommand::Open { .. })));
    for _ in 0..500 {
        incidents.toggle_off();
        let on = incidents.toggle_on(at(0), id, cpu_for(300), reason(Origin::Http));
        assert_eq!(on.incident, first);
    }
    incidents.toggle_off();
    incidents.apply_result(at(0), CommandResult::Opened { id: first, ok: true });
    let Some(IncidentCommand::Close { update, .. }) = incidents.next_command(at(0)) else {
        panic!("nothing ran")
    };
    assert_eq!(
        (update.reasons.len(), update.dropped_reasons),
        (MAX_REASONS - 1, 501 - MAX_REASONS as u64)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Fire(u8, u8, u64),
    Clear(u8),
    CollectorReturned,
    Toggle,
    Call(u8, u64),
    AdvanceTime(u64),
    RunCommand { fail: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8, 0..8u8, 0..20u64).prop_map(|(rule, kinds, secs)| Step::Fire(rule, kinds, secs)),
        (0..3u8).prop_map(Step::Clear),
        Just(Step::Toggle),
        Just(Step::CollectorReturned),
        (0..8u8, 0..20u64).prop_map(|(kinds, secs)| Step::Call(kinds, secs)),
        (0..15u64).prop_map(Step::AdvanceTime),
        any::<bool>().prop_map(|fail| Step::RunCommand { fail }),
        Just(Step::RunCommand { fail: false }),
    ]
}

fn kinds(bits: u8) -> CaptureSet {
    CaptureKind::ALL
        .into_iter()
        .enumerate()
        .filter(|(i, _)| bits & (1 << i) != 0)
        .map(|(_, k)| k)
        .collect()
}

/// State of the capture thread that the state machine must never contradict: open incidents and
/// running captures.
#[derive(Default)]
struct Thread {
    open: Vec<IncidentId>,
    collecting: Vec<IncidentId>,
    running: Vec<(IncidentId, CaptureSet)>,
}

impl Thread {
    fn run_next_command(&mut self, incidents: &mut Incidents, now: Moment, fail: bool) -> bool {
        let Some(command) = incidents.next_command(now) else { return false };
        let result = match command {
            IncidentCommand::Open { id, .. } => {
                assert!(!self.open.contains(&id));
                if !fail {
                    self.open.push(id);
                }
                CommandResult::Opened { id, ok: !fail }
            }
            IncidentCommand::Start { id, kinds } => {
                assert!(self.open.contains(&id));
                let others = self.running.iter().filter(|(other, _)| *other != id);
                assert!(others.count() == 0, "two incidents capture at once");
                let running = self.running_in(id);
                assert!(kinds.difference(running) == kinds, "started twice");
                let started = if fail { CaptureSet::EMPTY } else { kinds };
                self.set_running(id, running.union(started));
                CommandResult::Started { id, requested: kinds, running: started }
            }
            IncidentCommand::StartCollectors { id, .. } => {
                assert!(self.open.contains(&id));
                if !fail {
                    self.collecting.push(id);
                }
                // Collectors started earlier run on whatever the result of these.
                let is_running = self.collecting.contains(&id);
                CommandResult::Collecting { id, deadline: is_running.then_some(now + SECOND * 5) }
            }
            IncidentCommand::FinishCollectors { id, all } => {
                assert!(self.open.contains(&id) && self.collecting.contains(&id));
                // One collector has returned and another has not.
                let still_running = fail && !all;
                if !still_running {
                    self.collecting.retain(|other| *other != id);
                }
                CommandResult::Collecting { id, deadline: still_running.then_some(now + SECOND) }
            }
            IncidentCommand::Stop { id, kinds } => {
                let running = self.running_in(id);
                assert!(
                    kinds.difference(running).is_empty(),
                    "stopped a capture that is not running"
                );
                self.set_running(id, running.difference(kinds));
                CommandResult::Stopped { id, kinds }
            }
            IncidentCommand::Recapture { id, kinds, .. } => {
                assert!(
                    kinds.difference(self.running_in(id)).is_empty(),
                    "snapshot of a capture that is not running"
                );
                CommandResult::Recaptured { id }
            }
            IncidentCommand::UpdateManifest { id, .. } => {
                assert!(self.open.contains(&id));
                CommandResult::ManifestUpdated { id }
            }
            IncidentCommand::Close { id, .. } => {
                assert!(self.running_in(id).is_empty(), "closed while capturing");
                assert!(!self.collecting.contains(&id), "closed while collecting");
                if !fail {
                    assert!(self.open.contains(&id), "closed twice");
                    self.open.retain(|open| *open != id);
                }
                CommandResult::Closed { id, ok: !fail }
            }
        };
        incidents.apply_result(now, result);
        true
    }

    fn running_in(&self, id: IncidentId) -> CaptureSet {
        self.running.iter().find(|(i, _)| *i == id).map_or(CaptureSet::EMPTY, |(_, kinds)| *kinds)
    }

    fn set_running(&mut self, id: IncidentId, kinds: CaptureSet) {
        self.running.retain(|(i, _)| *i != id);
        if !kinds.is_empty() {
            self.running.push((id, kinds));
        }
    }
}

proptest! {
    #[test]
    fn invariants_hold_for_any_sequence_of_steps(steps in prop::collection::vec(step(), 0..120)) {
        let mut incidents = Incidents::default();
        incidents.set_has_collectors(true);
        let mut thread = Thread::default();
        let mut now = at(1);
        for step in steps {
            match step {
                Step::Fire(rule, bits, secs) => {
                    let captures = request(kinds(bits), secs as u32);
                    let rule = format!("rule{rule}");
                    let id = incidents.claim_for_rule(now, id, &rule, captures, reason(Origin::Rule));
                    incidents.request_collectors(id, &CollectorSelection::All);
                }
                Step::CollectorReturned => thread.collecting.iter().for_each(|id| incidents.collector_returned(*id)),
                Step::Clear(rule) => incidents.clear(&format!("rule{rule}")),
                Step::Toggle => match incidents.toggle_state() {
                    Some(_) => { incidents.toggle_off(); }
                    None => { incidents.toggle_on(now, id, request(CaptureSet::all(), 9), reason(Origin::Http)); }
                },
                Step::Call(bits, secs) => {
                    incidents.claim_from_code(now, id, request(kinds(bits), secs as u32), reason(Origin::Code));
                }
                Step::AdvanceTime(secs) => {
                    now = now + SECOND * secs as u32;
                    incidents.expire(now);
                }
                Step::RunCommand { fail } => { thread.run_next_command(&mut incidents, now, fail); }
            }
            prop_assert!(incidents.open.len() <= 3 + 2, "at most one per rule, and two others");
            if let Some(state) = incidents.toggle_state() {
                prop_assert!(incidents.iter().any(|incident| incident.id == state.incident));
            }
        }
        incidents.shut_down();
        let mut remaining_rounds = 1000;
        while !incidents.is_empty() {
            now = now + CLOSE_RETRY_DELAY;
            incidents.expire(now);
            while thread.run_next_command(&mut incidents, now, false) {}
            remaining_rounds -= 1;
            prop_assert!(remaining_rounds > 0, "shutting down does not end");
        }
        prop_assert!(thread.open.is_empty() && thread.running.is_empty());
    }
}
