//! The section of the vitals around the trigger: one line per metric.

use std::fmt::Write;

use super::{fence, worth};
use crate::analysis::overview::IncidentOverview;
use crate::analysis::{MetricCourse, VitalsWindow};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::verbatim;
use crate::render::number::{amount, duration, time};
use crate::render::sparkline::sparkline;

/// Width of the metrics' names: the longest built-in ones. Those of the service are shortened.
const NAME_WIDTH: usize = 20;

pub(super) fn section(overview: &IncidentOverview<'_>) -> DocumentSection {
    let mut section = DocumentSection::new("Vitals", "");
    if let Some(window) = &overview.vitals {
        let intro = format!(
            "From {} to {}; each character covers {}. Lowest and highest are values of \
             this time.",
            time(window.from),
            time(window.to),
            duration(window.column)
        );
        section.push_detail(
            worth::VITALS,
            format!("{}\n{}", wrap("", "", &intro), fence("text", &lines(window))),
        );
    }
    section
}

fn lines(window: &VitalsWindow) -> String {
    let course_width = window.metrics.first().map_or(0, |course| course.columns.len());
    let trigger = window.trigger_column;
    let mut lines = format!(
        "{:NAME_WIDTH$} {:trigger$}{:rest$} {:>10} {:>10} {:>10} {:>10}\n",
        "metric",
        "",
        "v trigger",
        "lowest",
        "at trigger",
        "highest",
        "threshold",
        rest = course_width.saturating_sub(trigger),
    );
    for course in &window.metrics {
        let _ = writeln!(lines, "{}", line(course).trim_end());
    }
    lines
}

fn line(course: &MetricCourse) -> String {
    let unit = course.metric.unit();
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), |value| amount(value, unit));
    format!(
        "{:NAME_WIDTH$} {} {:>10} {:>10} {:>10} {:>10}",
        short_name(&course.metric.to_string()),
        sparkline(&course.columns),
        amount(course.lowest, unit),
        optional(course.at_trigger),
        amount(course.highest, unit),
        optional(course.threshold),
    )
}

fn short_name(name: &str) -> String {
    let shown = verbatim(name, NAME_WIDTH).to_string();
    // Characters that are not ASCII leave a gap of `…` and its neighbours.
    shown.chars().take(NAME_WIDTH).collect()
}
