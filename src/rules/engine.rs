//! All the rules together.

use std::time::Duration;

use super::Opening;
use super::history::FireRecord;
use super::past::{Past, Said};
use super::verdict::{Decision, Explain};
use super::watch::Watch;
use crate::base::{EventTime, Moment};
use crate::model::{Rule, Vitals};

/// The rules and their states. Rules know nothing of each other, so that their order does not matter.
///
/// The owner tells it what became of a [`Decision::Fire`]: [`Engine::capturing`] when the capture
/// begins, [`Engine::captured`] when it has ended, or at once if there will be none. Otherwise a rule
/// with [`Again::Cooldown`](crate::model::Again) fires again at the next tick.
#[derive(Clone, Debug)]
pub struct Engine {
    watches: Vec<Watch>,
    now: Moment,
    opening: Opening,
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug)]
pub struct State<'e> {
    /// The rule.
    pub rule: &'e Rule,
    /// The metric's value at the last tick, in its unit; none if it could not be measured.
    pub value: Option<f64>,
    /// What it decided at the last tick.
    pub decision: Decision,
    /// Since when it has been deciding so, be it with other numbers; none before the first tick.
    pub since: Option<Moment>,
    /// Whether its incident is open.
    pub active: bool,
    /// Incidents it had in the last 24 hours, opened or joined.
    pub incidents: usize,
    past: &'e Past,
    now: Moment,
}

impl<'e> State<'e> {
    /// The decision in one sentence, as of the last tick.
    pub fn explain(&self) -> Explain<'e> {
        self.decision.explain(self.rule, self.now)
    }

    /// The last 16 decisions that were other than the one before, the newest first.
    pub fn past(&self) -> impl Iterator<Item = Said> + use<'e> {
        self.past.newest_first()
    }
}

impl Engine {
    /// An engine that has seen nothing. The rules' names should differ; see `Settings::validate`.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            watches: rules.into_iter().map(Watch::new).collect(),
            now: Moment::default(),
            opening: Opening::Free,
        }
    }

    /// Says whether a rule that fires may open an incident, from the next tick on.
    pub fn permit(&mut self, opening: Opening) {
        self.opening = opening;
    }

    /// Shows a tick to every rule; gives each rule's index and decision, in the rules' order. All have
    /// seen the tick even if nobody looks at what they decided.
    pub fn observe<'e>(
        &'e mut self,
        now: Moment,
        vitals: &Vitals,
    ) -> impl Iterator<Item = (usize, Decision)> + use<'e> {
        let opening = self.opening;
        self.observe_within(now, vitals, &|_| opening)
    }

    /// The same, where `opening` returns for each rule that is about to open an incident whether it may.
    pub fn observe_within<'e>(
        &'e mut self,
        now: Moment,
        vitals: &Vitals,
        opening: &dyn Fn(&Rule) -> Opening,
    ) -> impl Iterator<Item = (usize, Decision)> + use<'e> {
        self.now = now;
        for watch in &mut self.watches {
            watch.observe(now, vitals, opening);
        }
        self.watches.iter().map(|watch| watch.decision).enumerate()
    }

    /// The process stood still for `time`, in which nothing was measured: no condition has held for it.
    pub fn stood_still(&mut self, time: Duration) {
        self.watches.iter_mut().for_each(|watch| watch.stood_still(time));
    }

    /// The rule at `index`.
    pub fn rule(&self, index: usize) -> Option<&Rule> {
        self.watches.get(index).map(|watch| &watch.rule)
    }

    /// A capture of the rule called `name` has begun: it does not fire until [`Engine::captured`]. By
    /// name, because the rules may be replaced while it runs; a name that is gone does nothing.
    pub fn capturing(&mut self, name: &str) {
        self.find(name).into_iter().for_each(Watch::capture_began);
    }

    /// A capture of the rule called `name` has ended at `now`, or will not be: its cooldown begins.
    pub fn captured(&mut self, name: &str, now: Moment) {
        self.find(name).into_iter().for_each(|watch| watch.capture_ended(now));
    }

    /// The incident of the rule called `name` could not be opened: its next is tried within a minute.
    pub fn lost(&mut self, name: &str, now: Moment) {
        self.find(name).into_iter().for_each(|watch| watch.capture_lost(now));
    }

    /// The incident of the rule called `name` may have no more captures.
    pub fn exhausted(&mut self, name: &str) {
        self.find(name).into_iter().for_each(Watch::exhaust);
    }

    /// When the last capture of the rule called `name` ended, or began if it runs, and what it captured in the
    /// last 24 hours; `None` if there is neither.
    pub fn history(&self, name: &str) -> Option<(EventTime, &[FireRecord])> {
        let watch = self.watches.iter().find(|watch| watch.rule.name == name)?;
        let records = watch.history.records();
        let times = [watch.captured, records.last().map(|record| record.at)];
        let last = times.into_iter().flatten().min_by_key(|time| time.age(self.now))?;
        Some((last, records))
    }

    /// Continues the rule called `name` from what an earlier process saved of it: the end of its last
    /// capture and its incidents.
    pub fn remember(&mut self, name: &str, captured: EventTime, records: &[FireRecord]) {
        self.find(name).into_iter().for_each(|watch| watch.remember(captured, records));
    }

    /// Puts `rules` in place of those there are. A rule goes on where the one of the same name was:
    ///
    /// - unchanged: as if nothing had happened;
    /// - other thresholds: it keeps its average, its cooldown (counted anew from the same capture), its
    ///   capture under way and its open incident; a `for` begins anew;
    /// - another metric: it keeps its cooldown, its capture under way and its open incident, and warms up.
    ///
    /// Gives back the rules that are gone while their incidents are open.
    pub fn replace(&mut self, rules: Vec<Rule>) -> Vec<Rule> {
        let mut old = std::mem::take(&mut self.watches);
        for rule in rules {
            let known = old.iter().position(|watch| watch.rule.name == rule.name);
            let watch = match known {
                Some(index) => {
                    let mut watch = old.swap_remove(index);
                    watch.change(rule);
                    watch
                }
                None => Watch::new(rule),
            };
            self.watches.push(watch);
        }
        old.into_iter().filter(|watch| watch.active).map(|watch| watch.rule).collect()
    }

    /// Where each rule stands, in the rules' order.
    pub fn states(&self) -> impl Iterator<Item = State<'_>> {
        self.watches.iter().map(|watch| State {
            rule: &watch.rule,
            value: watch.value,
            decision: watch.decision,
            since: watch.since,
            active: watch.active,
            incidents: watch.history.incidents(self.now),
            past: &watch.past,
            now: self.now,
        })
    }

    fn find(&mut self, name: &str) -> Option<&mut Watch> {
        self.watches.iter_mut().find(|watch| watch.rule.name == name)
    }
}
