//! Whether to capture: a pure function of the vitals.
//!
//! Every rule sees every tick, also while captures run, so that what happened before and during one is
//! known after it. A rule is asked in this order, which begins as that of mosn/holmes does, in floating
//! point:
//!
//! 1. no value: nothing. A missing value enters no average, breaks a `for`, and neither fires nor clears.
//! 2. the value enters a ring of the last [`WINDOW`], the average being over all of it, itself included.
//!    Until the ring is full for the first time, nothing.
//! 3. below `min`: no. At or above `max`: no.
//! 4. above `abs`: yes. Else, at or above the average times `(100 + diff) / 100`, *and above the
//!    average*: yes. Else, the limit reached within `forecast` at the rate at which the value rises in
//!    both halves of the ring: yes. Else no. A rule with `below` has that instead: below it, yes.
//! 5. yes, but not yet for as long as `for`, which runs for each condition by itself: not yet. A condition may be
//!    false for a fifth of `for` in all without starting anew, but must be true now.
//! 6. with the incident open, it depends on `again`.
//!    - `cooldown`, which is holmes: a capture of the rule runs: not now. Less than `cooldown` since the
//!      end of its last capture: not now. Else: fire.
//!    - `worse`: fire if the headroom below the limit has shrunk to two thirds of what it was at the last
//!      capture (where there is no limit: the value has grown by half; with `below`: has fallen by a third),
//!      even if that capture runs. Else not now.
//! 7. without an open incident, it depends on what the rule captured in the last 24 hours (`history`).
//!    - worse than all of it by that step, or the first of it: fire, whatever was spent. With
//!      `again = "cooldown"`, the cooldown must be over.
//!    - beyond `critical` again, and the last capture was four hours ago: likewise.
//!    - else it is a repeat. It waits for `cooldown`, and for twice as long with each repeat of the day
//!      (always the same with `again = "cooldown"`), and needs the owner's permission ([`Opening`]).
//!
//!    Beyond `critical`, or nearer to a limit than ever in these hours, it does not wait for the gap.
//!
//! "And above the average" is what keeps a steady value from firing, 0 included, where 0 >= 0 * 1.25.
//! For an average below zero, "`diff` per cent above" is towards zero: above -10 by 25 % is -7.5. "In
//! both halves" is what keeps a step from being taken for a leak.
//!
//! A third each time makes the captures logarithmic in number: from 80 % they are at 80, 87, 91, 94, 96,
//! 97.4, 98.2 and 98.8 %, however long that takes, and a plateau has one.
//!
//! A rule that has fired is *active*: its incident is open. It clears when nothing is crossed any more
//! and, with `clear`, the value is at or below that, for as long as `clear_for`. At or above `max` it
//! does not: that is no end of the trouble. Its capture under way, it does not clear before that has
//! ended.
//!
//! A decision costs a few dozen additions and allocates nothing. An average kept up to date by adding
//! the newest value and taking off the oldest would cost less, and drift.

mod engine;
mod history;
mod past;
mod ring;
mod verdict;
mod watch;

pub use engine::{Engine, State};
pub use history::{FireKind, FireRecord, MAX_URGENT};
pub use past::Said;
pub use ring::WINDOW;
pub use verdict::{By, Crossing, Decision, Explain, Hold};

use crate::base::Moment;

/// Whether a rule that repeats what it captured before may open an incident. One whose incident is open, and
/// one that finds an incident to join, needs no permission to do so: [`Opening::Free`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opening {
    /// It may.
    #[default]
    Free,
    /// The last incident was too little ago.
    Gap {
        /// When there may be another.
        until: Moment,
    },
    /// There were as many incidents in a day as there may be.
    Spent {
        /// When there may be another.
        until: Moment,
    },
    /// It would join an incident that has had as many captures as it may have.
    Exhausted,
}

/// What a rule fired on, for telling whether it has become worse. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// The value.
    pub value: f64,
    /// What was left below the limit; none without a limit.
    pub room: Option<f64>,
}
