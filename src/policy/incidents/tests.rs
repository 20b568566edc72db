use jiff::Timestamp;
use proptest::prelude::*;

use super::incident::MAX_REASONS;
use super::*;
use crate::model::{CaptureKind, Origin};

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

/// Simulates a capture thread on which every command succeeds at once.
fn run(incidents: &mut Incidents, now: Moment) -> Vec<IncidentCommand> {
    let mut jobs = Vec::new();
    while let Some(job) = incidents.next_job(now) {
        let done = match &job {
            IncidentCommand::Open { id, .. } => CommandResult::Opened { id: *id, ok: true },
            IncidentCommand::Start { id, kinds } => {
                CommandResult::Started { id: *id, asked: *kinds, running: *kinds }
            }
            IncidentCommand::Collect { id, .. } | IncidentCommand::Gather { id, .. } => {
                CommandResult::Collecting { id: *id, until: None }
            }
            IncidentCommand::Stop { id, kinds } => {
                CommandResult::Stopped { id: *id, kinds: *kinds }
            }
            IncidentCommand::Note { id, .. } => CommandResult::Noted { id: *id },
            IncidentCommand::Again { id, .. } => CommandResult::Again { id: *id },
            IncidentCommand::Close { id, .. } => CommandResult::Closed { id: *id, ok: true },
        };
        incidents.done(now, done);
        jobs.push(job);
        assert!(jobs.len() < 100, "the jobs do not come to an end: {jobs:?}");
    }
    jobs
}

fn names(jobs: &[IncidentCommand]) -> Vec<&'static str> {
    jobs.iter()
        .map(|job| match job {
            IncidentCommand::Open { .. } => "open",
            IncidentCommand::Start { .. } => "start",
            IncidentCommand::Collect { .. } => "collect",
            IncidentCommand::Gather { .. } => "gather",
            IncidentCommand::Stop { .. } => "stop",
            IncidentCommand::Note { .. } => "note",
            IncidentCommand::Again { .. } => "again",
            IncidentCommand::Close { .. } => "close",
        })
        .collect()
}

#[test]
fn a_rule_opens_captures_and_closes_when_it_clears() {
    let mut incidents = Incidents::default();
    incidents.fire(at(0), id, "memory", (cpu(), SECOND * 5), reason(Origin::Rule));
    assert_eq!(names(&run(&mut incidents, at(0))), ["open", "start"]);
    assert_eq!(incidents.next_expiry(), Some(at(5)));
    assert_eq!(incidents.expire(at(5)), []);
    assert_eq!(incidents.next_job(at(5)).map(|job| names(&[job])), Some(vec!["stop"]));
    let stopped = CommandResult::Stopped { id: incidents.open[0].id, kinds: cpu() };
    assert_eq!(incidents.done(at(6), stopped), [IncidentUpdate::Captured("memory".into())]);
    assert_eq!(names(&run(&mut incidents, at(6))), Vec::<&str>::new(), "it has not cleared");
    incidents.clear("memory");
    assert_eq!(names(&run(&mut incidents, at(7))), ["close"]);
    assert!(incidents.is_empty());
}

#[test]
fn a_rule_that_fires_while_another_captures_joins_it() {
    let mut incidents = Incidents::default();
    let first = incidents.fire(at(0), id, "memory", (cpu(), SECOND * 5), reason(Origin::Rule));
    run(&mut incidents, at(0));
    let heap = CaptureSet::from([CaptureKind::Heap]);
    let second = incidents.fire(at(2), id, "tasks", (heap, SECOND * 5), reason(Origin::Rule));
    assert_eq!(first, second);
    assert_eq!(names(&run(&mut incidents, at(2))), ["start", "note"]);
    assert_eq!(incidents.expire(at(5)), []);
    assert_eq!(run(&mut incidents, at(5)), [IncidentCommand::Stop { id: first, kinds: cpu() }]);
    assert_eq!(incidents.expire(at(7)), []);
    assert_eq!(run(&mut incidents, at(7)), [IncidentCommand::Stop { id: first, kinds: heap }]);
    incidents.clear("tasks");
    assert_eq!(run(&mut incidents, at(7)), [], "memory still holds it");
    incidents.clear("memory");
    assert_eq!(names(&run(&mut incidents, at(8))), ["close"]);
}

#[test]
fn a_rule_beside_an_incident_that_only_waits_to_clear_opens_its_own() {
    let mut incidents = Incidents::default();
    let first = incidents.fire(at(0), id, "memory", (cpu(), SECOND), reason(Origin::Rule));
    run(&mut incidents, at(0));
    incidents.expire(at(1));
    run(&mut incidents, at(1));
    let second = incidents.fire(at(60), id, "cpu", (cpu(), SECOND), reason(Origin::Rule));
    assert_ne!(first, second);
    run(&mut incidents, at(60));
    incidents.expire(at(61));
    run(&mut incidents, at(61));
    let again = incidents.fire(at(90), id, "memory", (cpu(), SECOND), reason(Origin::Rule));
    assert_eq!(again, first, "a rule captures again into its own incident");
}

#[test]
fn a_capture_that_cannot_start_is_not_tried_again_until_asked_again() {
    let mut incidents = Incidents::default();
    let first = incidents.call(at(0), id, (cpu(), SECOND), reason(Origin::Code));
    assert!(matches!(incidents.next_job(at(0)), Some(IncidentCommand::Open { .. })));
    incidents.done(at(0), CommandResult::Opened { id: first, ok: true });
    assert!(matches!(incidents.next_job(at(0)), Some(IncidentCommand::Start { .. })));
    let refused = CommandResult::Started { id: first, asked: cpu(), running: CaptureSet::EMPTY };
    incidents.done(at(0), refused);
    assert_eq!(incidents.next_job(at(0)), None);
    incidents.expire(at(1));
    assert_eq!(names(&run(&mut incidents, at(1))), ["close"]);
}

#[test]
fn an_incident_without_a_directory_is_gone_and_its_rule_hears_of_it() {
    let mut incidents = Incidents::default();
    let first = incidents.fire(at(0), id, "memory", (cpu(), SECOND), reason(Origin::Rule));
    incidents.next_job(at(0));
    let notices = incidents.done(at(0), CommandResult::Opened { id: first, ok: false });
    assert_eq!(
        notices,
        [IncidentUpdate::Lost("memory".into(), first), IncidentUpdate::Gone(first)]
    );
    assert!(incidents.is_empty());
}

#[test]
fn a_close_that_fails_is_tried_again_later() {
    let mut incidents = Incidents::default();
    let first = incidents.call(at(0), id, (CaptureSet::EMPTY, SECOND), reason(Origin::Code));
    run(&mut incidents, at(0));
    incidents.expire(at(1));
    assert!(matches!(incidents.next_job(at(1)), Some(IncidentCommand::Close { .. })));
    incidents.done(at(1), CommandResult::Closed { id: first, ok: false });
    assert_eq!(incidents.next_job(at(2)), None);
    assert_eq!(names(&run(&mut incidents, at(1) + CLOSE_RETRY)), ["close"]);
}

#[test]
fn a_thousand_toggles_during_one_job_cost_one_incident() {
    let mut incidents = Incidents::default();
    let first =
        incidents.toggle_on(at(0), id, (cpu(), SECOND * 300), reason(Origin::Http)).incident;
    assert!(matches!(incidents.next_job(at(0)), Some(IncidentCommand::Open { .. })));
    for _ in 0..500 {
        incidents.toggle_off();
        let on = incidents.toggle_on(at(0), id, (cpu(), SECOND * 300), reason(Origin::Http));
        assert_eq!(on.incident, first);
    }
    incidents.toggle_off();
    incidents.done(at(0), CommandResult::Opened { id: first, ok: true });
    let Some(IncidentCommand::Close { noted, .. }) = incidents.next_job(at(0)) else {
        panic!("nothing ran")
    };
    assert_eq!((noted.reasons.len(), noted.dropped), (MAX_REASONS - 1, 501 - MAX_REASONS as u64));
}

#[derive(Clone, Debug)]
enum Step {
    Fire(u8, u8, u64),
    Clear(u8),
    Collected,
    Toggle,
    Call(u8, u64),
    Pass(u64),
    Work { fail: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8, 0..8u8, 0..20u64).prop_map(|(rule, kinds, secs)| Step::Fire(rule, kinds, secs)),
        (0..3u8).prop_map(Step::Clear),
        Just(Step::Toggle),
        Just(Step::Collected),
        (0..8u8, 0..20u64).prop_map(|(kinds, secs)| Step::Call(kinds, secs)),
        (0..15u64).prop_map(Step::Pass),
        any::<bool>().prop_map(|fail| Step::Work { fail }),
        Just(Step::Work { fail: false }),
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
    fn work(&mut self, incidents: &mut Incidents, now: Moment, fail: bool) -> bool {
        let Some(job) = incidents.next_job(now) else { return false };
        let done = match job {
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
                let runs = self.running_in(id);
                assert!(kinds.without(runs) == kinds, "started twice");
                let started = if fail { CaptureSet::EMPTY } else { kinds };
                self.set(id, runs.union(started));
                CommandResult::Started { id, asked: kinds, running: started }
            }
            IncidentCommand::Collect { id, .. } => {
                assert!(self.open.contains(&id));
                if !fail {
                    self.collecting.push(id);
                }
                // Collectors started earlier run on whatever the result of these.
                let runs = self.collecting.contains(&id);
                CommandResult::Collecting { id, until: runs.then_some(now + SECOND * 5) }
            }
            IncidentCommand::Gather { id, all } => {
                assert!(self.open.contains(&id) && self.collecting.contains(&id));
                // One collector has returned and another has not.
                let goes_on = fail && !all;
                if !goes_on {
                    self.collecting.retain(|it| *it != id);
                }
                CommandResult::Collecting { id, until: goes_on.then_some(now + SECOND) }
            }
            IncidentCommand::Stop { id, kinds } => {
                let runs = self.running_in(id);
                assert!(kinds.without(runs).is_empty(), "stopped what does not run");
                self.set(id, runs.without(kinds));
                CommandResult::Stopped { id, kinds }
            }
            IncidentCommand::Again { id, kinds, .. } => {
                assert!(
                    kinds.without(self.running_in(id)).is_empty(),
                    "taken while it does not run"
                );
                CommandResult::Again { id }
            }
            IncidentCommand::Note { id, .. } => {
                assert!(self.open.contains(&id));
                CommandResult::Noted { id }
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
        incidents.done(now, done);
        true
    }

    fn running_in(&self, id: IncidentId) -> CaptureSet {
        self.running.iter().find(|(i, _)| *i == id).map_or(CaptureSet::EMPTY, |(_, kinds)| *kinds)
    }

    fn set(&mut self, id: IncidentId, kinds: CaptureSet) {
        self.running.retain(|(i, _)| *i != id);
        if !kinds.is_empty() {
            self.running.push((id, kinds));
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_invariants_hold(steps in prop::collection::vec(step(), 0..120)) {
        let mut incidents = Incidents::default();
        incidents.set_collectors(true);
        let mut thread = Thread::default();
        let mut now = at(1);
        for step in steps {
            match step {
                Step::Fire(rule, bits, secs) => {
                    let claim = (kinds(bits), SECOND * secs as u32);
                    let rule = format!("rule{rule}");
                    let id = incidents.fire(now, id, &rule, claim, reason(Origin::Rule));
                    incidents.collect(id, &Collect::All);
                }
                Step::Collected => thread.collecting.iter().for_each(|id| incidents.collected(*id)),
                Step::Clear(rule) => incidents.clear(&format!("rule{rule}")),
                Step::Toggle => match incidents.toggle() {
                    Some(_) => { incidents.toggle_off(); }
                    None => { incidents.toggle_on(now, id, (CaptureSet::all(), SECOND * 9), reason(Origin::Http)); }
                },
                Step::Call(bits, secs) => {
                    incidents.call(now, id, (kinds(bits), SECOND * secs as u32), reason(Origin::Code));
                }
                Step::Pass(secs) => {
                    now = now + SECOND * secs as u32;
                    incidents.expire(now);
                }
                Step::Work { fail } => { thread.work(&mut incidents, now, fail); }
            }
            prop_assert!(incidents.open.len() <= 3 + 2, "at most one a rule, and two besides");
            if let Some(state) = incidents.toggle() {
                prop_assert!(incidents.iter().any(|incident| incident.id == state.incident));
            }
        }
        incidents.shut();
        let mut left = 1000;
        while !incidents.is_empty() {
            now = now + CLOSE_RETRY;
            incidents.expire(now);
            while thread.work(&mut incidents, now, false) {}
            left -= 1;
            prop_assert!(left > 0, "shutting down does not end");
        }
        prop_assert!(thread.open.is_empty() && thread.running.is_empty());
    }
}
