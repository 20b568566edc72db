//! The decision to capture, as a pure function of the vitals.
//!
//! Every rule is evaluated at every tick, also while captures run, so that its state is complete
//! before, during and after a capture. The evaluation has these steps. The first ones are those of
//! mosn/holmes, in floating point:
//!
//! 1. No value: hold. A missing value is not part of the average, resets `for`, and neither fires
//!    nor clears.
//! 2. The value enters a ring of the last [`WINDOW`] values. The average includes the value itself.
//!    Until the ring is full for the first time: hold.
//! 3. `value < min`, or `value >= max`: hold.
//! 4. A condition is crossed if one of these holds:
//!    - `abs`: `value > abs`.
//!    - `diff`: `value >= average * (100 + diff) / 100`, *and* `value > average`.
//!    - `forecast`: at the current rate of rise, the limit is reached within `forecast`. The rate
//!      must show in both halves of the ring.
//!    - `below`, instead of all others: `value < below`.
//! 5. A crossed condition must have held for `for`, which is measured for each condition
//!    separately. It may be false for a fifth of `for` in total without a restart, but must be true
//!    at this tick.
//! 6. If the incident is open, `refire` decides.
//!    - `after-cooldown` (holmes semantics): hold while a capture of the rule is running, and until
//!      `cooldown` after the end of the last one. Then fire.
//!    - `on-worsening`: fire if `headroom <= 2/3 * headroom at the last capture`, even if that
//!      capture is running. Without a limit: `value >= 1.5 * last value`. With `below`: the value
//!      has fallen by a third. Otherwise hold.
//! 7. If no incident is open, the rule's captures of the last 24 hours decide (`history`).
//!    - First capture, or worse than all of them by that step: fire, regardless of the budget. With
//!      `refire = "after-cooldown"`, the cooldown must be over.
//!    - Beyond `critical` again, and the last capture was four hours ago: likewise.
//!    - Otherwise it is a repeat. It waits for `cooldown`, doubled with each repeat of the day
//!      (constant with `refire = "after-cooldown"`). It also needs the owner's permission
//!      ([`Admission`]).
//!
//!    A value beyond `critical`, or nearer to a limit than at any capture of these hours, does not
//!    wait for the gap between incidents.
//!
//! The condition `value > average` keeps a steady value from firing. This matters for 0, where the
//! first comparison is `0 >= 0`. For a negative average, `diff` is relative to its absolute value:
//! 25 % above -10 is -7.5. Requiring a rise in both halves keeps a step from being taken for a
//! leak.
//!
//! Captures at steps of a third are logarithmic in number. From 80 % they are at 80, 87, 91, 94,
//! 96, 97.4, 98.2 and 98.8 %, at any speed, and a plateau has one.
//!
//! A rule that has fired is *active*: its incident is open. It clears when no condition is crossed
//! and, with `clear`, the value is at or below that, for at least `clear_for`. It does not clear at
//! or above `max`, because the problem persists there. It does not clear while its capture is
//! running.
//!
//! A decision takes a few dozen additions and allocates nothing. A running sum, updated with the
//! newest and the oldest value, would be cheaper but would drift.

mod decision;
mod decision_history;
mod engine;
mod history;
mod ring;
mod watched_rule;

pub use decision::{Condition, Decision, HoldReason, StateExplanation, ThresholdCrossing};
pub use decision_history::DecisionChange;
pub use engine::{Engine, State};
pub use history::{FireKind, FireRecord};
pub use ring::WINDOW;

use crate::base::Moment;

/// Permission to open an incident for a rule that repeats an earlier capture.
/// [`Admission::Allowed`] if its incident is open or another one can be joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// An incident may be opened.
    #[default]
    Allowed,
    /// The minimum time since the last incident has not passed.
    TooSoon {
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// The daily budget of incidents is used up.
    DailyBudgetSpent {
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// The incident to be joined has reached its maximum number of captures.
    CaptureLimitReached,
}

/// The value on which a rule fired, kept to detect a worse one. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LastFire {
    /// The value.
    pub value: f64,
    /// Headroom below the limit. `None` without a limit.
    pub headroom: Option<f64>,
}
