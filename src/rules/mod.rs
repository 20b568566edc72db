//! Whether to capture: a pure function of the vitals.
//!
//! Every rule sees every tick, also while captures run, so that what happened before and during one is
//! known after it. A rule is asked in this order, which is that of mosn/holmes, in floating point:
//!
//! 1. no value: nothing. A missing value enters no average, breaks a `for`, and neither fires nor clears.
//! 2. the value enters a ring of the last [`WINDOW`], the average being over all of it, itself included.
//!    Until the ring is full for the first time, nothing.
//! 3. below `min`: no. At or above `max`: no.
//! 4. above `abs`: yes. Else, at or above the average times `(100 + diff) / 100`, *and above the
//!    average*: yes. Else no.
//! 5. yes, but not yet for as long as `for`: not yet. A capture of the rule runs: not now. Less than
//!    `cooldown` since the end of its last capture: not now. Else: fire.
//!
//! "And above the average" is what keeps a steady value from firing, 0 included, where 0 >= 0 * 1.25.
//! For an average below zero, "`diff` per cent above" is towards zero: above -10 by 25 % is -7.5.
//!
//! A rule that has fired is *active*: its incident is open. It clears when nothing is crossed any more
//! and, with `clear`, the value is at or below that. At or above `max` it does not: that is no end of
//! the trouble. Its capture under way, it does not clear before that has ended. While it is active and
//! the condition goes on, it fires again after each cooldown, as holmes does: another capture in the
//! same incident.
//!
//! A decision costs a few dozen additions and allocates nothing. An average kept up to date by adding
//! the newest value and taking off the oldest would cost less, and drift.

mod engine;
mod ring;
mod verdict;
mod watch;

pub use engine::{Engine, State};
pub use ring::WINDOW;
pub use verdict::{By, Crossing, Decision, Explain, Hold};
