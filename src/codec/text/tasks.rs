//! Task dumps: `tasks.txt` as text, `tasks.json` for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::{frames, plural, rough, write_losses, write_stack};
use crate::model::{Losses, Profile, SiteCount, StackHandle, TaskDump, TaskRow, TaskState};

/// Writes the dump as text.
pub fn write(dump: &TaskDump, mut out: impl Write) -> io::Result<()> {
    let out = &mut out;
    let total = plural(usize::try_from(dump.total()).unwrap_or(usize::MAX), "task");
    writeln!(out, "# {total} at {}, asked within {}", dump.taken(), rough(dump.took))?;
    if dump.is_sample() {
        let listed = dump.tasks.len();
        writeln!(
            out,
            "# a sample: {listed} were asked; counts by spawn site are exact, those by state and stack are estimates"
        )?;
    }
    for (state, count) in states(dump) {
        writeln!(out, "# {count} {state}")?;
    }
    if let Some(unwrapped) = dump.unwrapped {
        writeln!(out, "# {unwrapped} more, not spawned through marple::task: not listed")?;
    }
    write_losses(out, dump.losses())?;
    if dump.is_sample() {
        writeln!(out, "\nby spawn site")?;
        for SiteCount { spawned, name, tasks } in &dump.sites {
            write!(out, "{tasks:>8}  {}:{}", spawned.file, spawned.line)?;
            if !name.is_empty() {
                write!(out, " {name:?}")?;
            }
            writeln!(out)?;
        }
    }
    for group in groups(dump) {
        write_group(out, dump, &group)?;
    }
    Ok(())
}

/// Tasks with the same spawn site that wait at the same place.
type TaskGroup<'a> = Vec<&'a TaskRow>;

fn groups(dump: &TaskDump) -> Vec<TaskGroup<'_>> {
    let mut groups: BTreeMap<_, TaskGroup<'_>> = BTreeMap::new();
    for task in &dump.tasks {
        let stacks: Vec<Vec<String>> =
            task.stacks.iter().map(|stack| shown(&dump.profile, *stack).collect()).collect();
        let place = (task.spawned.file, task.spawned.line);
        groups.entry((task.state, place, task.name, stacks)).or_default().push(task);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(weight_of(group)));
    groups
}

/// Returns the number of tasks that a group represents.
fn weight_of(group: &[&TaskRow]) -> usize {
    usize::try_from(group.iter().map(|task| task.weight).sum::<u64>()).unwrap_or(usize::MAX)
}

fn states(dump: &TaskDump) -> BTreeMap<&'static str, u64> {
    let mut states = BTreeMap::new();
    for task in &dump.tasks {
        *states.entry(task.state.name()).or_default() += task.weight;
    }
    states
}

fn write_group(out: &mut impl Write, dump: &TaskDump, group: &TaskGroup<'_>) -> io::Result<()> {
    let Some(first) = group.first() else { return Ok(()) };
    let about = if weight_of(group) > group.len() { "about " } else { "" };
    write!(out, "\n{about}{}", plural(weight_of(group), "task"))?;
    if !first.name.is_empty() {
        write!(out, " {:?}", first.name)?;
    }
    write!(out, " of {}:{}, {}", first.spawned.file, first.spawned.line, first.state.name())?;
    if let TaskState::Running { tid } = first.state {
        write!(out, " on thread {tid}")?;
    }
    let ages = group.iter().filter_map(|task| task.since_poll);
    if let (Some(least), Some(most)) = (ages.clone().min(), ages.max()) {
        let what = match first.state {
            TaskState::Running { .. } => "for",
            _ => "last polled before",
        };
        let (least, most) = (rough(least), rough(most));
        if least == most {
            write!(out, ", {what} {least}")?;
        } else {
            write!(out, ", {what} {least} to {most}")?;
        }
    }
    let ids: Vec<String> =
        group.iter().filter_map(|task| task.id).take(8).map(|id| id.to_string()).collect();
    if !ids.is_empty() {
        let more = if group.len() > ids.len() { ", …" } else { "" };
        write!(out, " (id {}{more})", ids.join(", "))?;
    }
    writeln!(out)?;
    for (at, stack) in first.stacks.iter().enumerate() {
        if at > 0 {
            writeln!(out, "  and")?;
        }
        shown(&dump.profile, *stack).try_for_each(|frame| writeln!(out, "    {frame}"))?;
    }
    if first.more_stacks > 0 {
        writeln!(out, "  and {} more leaves, not shown", first.more_stacks)?;
    }
    if let TaskState::Running { tid } = first.state
        && let Some(stack) = dump.threads.get(&tid)
    {
        write_stack(out, &dump.profile, Some(*stack))?;
    }
    Ok(())
}

/// Returns a task's frames without the innermost ones, which clone the waker and occur in every
/// stack.
fn shown(profile: &Profile, stack: StackHandle) -> impl Iterator<Item = String> + '_ {
    let cloning = |frame: &String| frame.contains("core::task::wake::Waker");
    frames(profile, Some(stack)).skip_while(cloning)
}

#[derive(Serialize)]
struct TasksJson<'a> {
    schema: u32,
    taken: String,
    took_ms: u128,
    unwrapped: Option<u64>,
    losses: &'a Losses,
    /// Number of tasks. If it exceeds the number listed, the list is a sample.
    total: u64,
    /// Number of tasks by spawn site, exact.
    sites: Vec<JsonSite<'a>>,
    tasks: Vec<JsonTask<'a>>,
    /// Frames of each stack, innermost first. Tasks refer to stacks by index.
    stacks: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct JsonSite<'a> {
    spawned: String,
    name: &'a str,
    tasks: u64,
}

#[derive(Serialize)]
struct JsonTask<'a> {
    number: u64,
    id: Option<u64>,
    name: &'a str,
    spawned: String,
    state: &'a str,
    thread: Option<u32>,
    since_poll_ms: Option<u128>,
    stacks: Vec<usize>,
    more_stacks: u32,
    /// Number of tasks of its spawn site that it represents.
    weight: u64,
}

fn json_site(site: &SiteCount) -> JsonSite<'_> {
    let SiteCount { spawned, name, tasks } = site;
    JsonSite { spawned: format!("{}:{}", spawned.file, spawned.line), name, tasks: *tasks }
}

/// Writes the dump as one JSON object, with each stack once.
pub fn write_json(dump: &TaskDump, mut out: impl Write) -> io::Result<()> {
    let mut stacks = Vec::new();
    let mut places: std::collections::HashMap<StackHandle, usize> = Default::default();
    let mut place = |stack: StackHandle| {
        *places.entry(stack).or_insert_with(|| {
            stacks.push(shown(&dump.profile, stack).collect());
            stacks.len() - 1
        })
    };
    let tasks = dump.tasks.iter().map(|task| {
        let thread = match task.state {
            TaskState::Running { tid } => Some(tid),
            _ => None,
        };
        let on_thread = thread.and_then(|tid| dump.threads.get(&tid));
        JsonTask {
            number: task.number,
            id: task.id,
            name: task.name,
            spawned: format!("{}:{}", task.spawned.file, task.spawned.line),
            state: task.state.name(),
            thread,
            since_poll_ms: task.since_poll.map(|since| since.as_millis()),
            stacks: task.stacks.iter().chain(on_thread).map(|stack| place(*stack)).collect(),
            more_stacks: task.more_stacks,
            weight: task.weight,
        }
    });
    let tasks = tasks.collect();
    let json = TasksJson {
        schema: 1,
        taken: dump.taken().to_string(),
        took_ms: dump.took.as_millis(),
        unwrapped: dump.unwrapped,
        losses: dump.losses(),
        total: dump.total(),
        sites: dump.sites.iter().map(json_site).collect(),
        tasks,
        stacks,
    };
    serde_json::to_writer(&mut out, &json)?;
    out.write_all(b"\n")
}
