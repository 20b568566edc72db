//! The section of the functions with most memory and CPU time, and of the places of most waits.

use std::fmt::Write;

use super::{MAX_FILE_NAME, fence, worth};
use crate::analysis::overview::IncidentOverview;
use crate::analysis::{FunctionRanking, RankingSource, TaskRanking, ThreadRanking};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::{code, verbatim};
use crate::render::number::{bytes, plural, seconds, share, time};

/// Maximum bytes of a function's name in a row, beside its numbers.
const MAX_ROW_FUNCTION: usize = 60;

/// Maximum bytes of the name of a thread, a task or a kernel function in a row. The kernel cuts the
/// names of threads at 15.
const MAX_ROW_NAME: usize = 24;

/// Maximum bytes of a spawn site in a row.
const MAX_SITE: usize = 60;

pub(super) fn section(overview: &IncidentOverview<'_>) -> DocumentSection {
    let IncidentOverview { heap, cpu, threads, tasks, .. } = overview;
    let mut section = DocumentSection::new("Memory, CPU time and waits by function", "")
        .intro("The largest five of each. The number after +- is the standard error.");
    let blocks = [
        heap.as_ref().map(heap_block),
        cpu.as_ref().map(cpu_block),
        threads.as_ref().map(thread_block),
        tasks.as_ref().map(task_block),
    ];
    let mut gap = "";
    for block in blocks.into_iter().flatten() {
        section.push_detail(worth::RANKING, format!("{gap}{block}"));
        gap = "\n";
    }
    section
}

fn block(intro: &str, lines: &str) -> String {
    format!("{}\n{}", wrap("", "", intro), fence("text", lines))
}

fn at(source: &RankingSource<'_>) -> String {
    format!("{} ({})", time(source.taken), code(source.file, MAX_FILE_NAME))
}

fn heap_block(ranking: &FunctionRanking<'_>) -> String {
    let total = bytes(ranking.total as f64);
    let intro = match &ranking.base {
        Some(base) => format!(
            "Heap growth: {total} from {} to {}, by function:",
            at(base),
            at(&ranking.source)
        ),
        None => format!("Live heap: {total} at {}, by function:", at(&ranking.source)),
    };
    block(&intro, &function_lines(ranking, bytes))
}

fn cpu_block(ranking: &FunctionRanking<'_>) -> String {
    let amount = |nanoseconds: f64| seconds(nanoseconds / 1e9);
    let total = amount(ranking.total as f64);
    let intro = format!("CPU time: {total} until {}, by function:", at(&ranking.source));
    block(&intro, &function_lines(ranking, amount))
}

fn function_lines(ranking: &FunctionRanking<'_>, amount: impl Fn(f64) -> String) -> String {
    let mut lines = String::new();
    for row in &ranking.rows {
        let value = amount(row.value as f64);
        let _ = write!(lines, "{value:>10} +- {:<10}", amount(row.standard_error));
        if let Some(part) = row.share {
            let _ = write!(lines, " {:>7}", share(part));
        }
        let _ = writeln!(lines, "  {}", verbatim(&row.function, MAX_ROW_FUNCTION));
    }
    lines
}

fn thread_block(ranking: &ThreadRanking<'_>) -> String {
    let total = plural(ranking.total, "thread");
    let intro =
        format!("Threads: {total} at {}; those that wait, by function:", at(&ranking.source));
    let mut lines = String::new();
    for row in &ranking.rows {
        let _ = write!(lines, "{:>10}  {}", row.threads, place(&row.function));
        if !row.wait_channel.is_empty() {
            let _ = write!(lines, ", kernel {}", verbatim(&row.wait_channel, MAX_ROW_NAME));
        }
        let names = row.names.iter().map(|name| verbatim(name, MAX_ROW_NAME).to_string());
        let _ = writeln!(lines, ", threads {}", names.collect::<Vec<_>>().join(", "));
    }
    block(&intro, &lines)
}

fn task_block(ranking: &TaskRanking<'_>) -> String {
    let total = plural(ranking.total, "task");
    let estimate = if ranking.is_estimate { ", estimated from a sample" } else { "" };
    let intro = format!(
        "Tasks: {total} at {}; those that wait, by spawn site and function{estimate}:",
        at(&ranking.source)
    );
    let mut lines = String::new();
    for row in &ranking.rows {
        let site = verbatim(&row.site, MAX_SITE);
        let _ = write!(lines, "{:>10}  {site}", row.tasks);
        if !row.name.is_empty() {
            let _ = write!(lines, " {}", verbatim(&row.name, MAX_ROW_NAME));
        }
        let _ = match &*row.function {
            "" => writeln!(lines, ": {}", row.state),
            function => {
                writeln!(lines, ": {} in {}", row.state, verbatim(function, MAX_ROW_FUNCTION))
            }
        };
    }
    block(&intro, &lines)
}

fn place(function: &str) -> String {
    match function {
        "" => "stack unknown".to_owned(),
        function => verbatim(function, MAX_ROW_FUNCTION).to_string(),
    }
}
