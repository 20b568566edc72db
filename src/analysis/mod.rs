//! Analysis of an incident: from profiles, dumps and vitals to tables and ranked findings.
//!
//! ```text
//! model values ─► ProfileTable, ThreadTable, TaskTable ─► findings::find ─► Vec<Finding>
//! ```
//!
//! All functions are pure: the same input gives the same findings, in the process and later from
//! the files. Everything that a person reads about an incident is computed here; `render` only
//! formats it.
//!
//! A table is a bounded reduction of one artifact. It is computed while the artifact is in memory,
//! and kept until the incident closes; the artifact itself is not.

pub(crate) mod evidence;
pub(crate) mod findings;
mod idle;
pub(crate) mod overview;
mod profile_table;
mod rankings;
mod symbol;
mod task_table;
mod thread_table;
mod vitals_window;

pub(crate) use idle::{ThreadActivity, is_idle};
pub(crate) use profile_table::{ProfileRow, ProfileTable, SubjectTotal};
pub(crate) use rankings::{FunctionRanking, RankingSource, TaskRanking, ThreadRanking};
pub(crate) use symbol::{Symbol, application_frame, display_name};
pub(crate) use task_table::{TaskGroup, TaskTable};
pub(crate) use thread_table::{ThreadGroup, ThreadTable};
pub(crate) use vitals_window::{MetricCourse, VitalsWindow};
