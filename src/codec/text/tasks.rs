//! Task dumps: `tasks.txt` as text, `tasks.json` for scripts.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::{format_duration, frame_names, plural, write_losses, write_stack};
use crate::model::{Losses, Profile, SiteCount, StackHandle, TaskDump, TaskRow, TaskState};

/// Writes the dump as text.
pub fn write(dump: &TaskDump, mut out: impl Write) -> io::Result<()> {
    let out = &mut out;
    let total = plural(usize::try_from(dump.total()).unwrap_or(usize::MAX), "task");
    writeln!(
        out,
        "# {total} at {}, dumped within {}",
        dump.taken_at(),
        format_duration(dump.duration)
    )?;
    if dump.is_sample() {
        let listed = dump.tasks.len();
        writeln!(
            out,
            "# a sample of {listed} tasks: counts by spawn site are exact, counts by state and \
             stack are estimates"
        )?;
    }
    for (state, count) in count_by_state(dump) {
        writeln!(out, "# {count} {state}")?;
    }
    if let Some(unwrapped) = dump.unwrapped_tasks {
        writeln!(out, "# {unwrapped} more not listed: not spawned by marple::task")?;
    }
    write_losses(out, dump.losses())?;
    if dump.is_sample() {
        writeln!(out, "\nby spawn site")?;
        for SiteCount { location: spawned, name, tasks } in &dump.sites {
            write!(out, "{tasks:>8}  {}:{}", spawned.file, spawned.line)?;
            if !name.is_empty() {
                write!(out, " {name:?}")?;
            }
            writeln!(out)?;
        }
    }
    for group in group_tasks(dump) {
        write_group(out, dump, &group)?;
    }
    Ok(())
}

/// Tasks with the same spawn site that wait at the same place.
type TaskGroup<'a> = Vec<&'a TaskRow>;

fn group_tasks(dump: &TaskDump) -> Vec<TaskGroup<'_>> {
    let mut groups: BTreeMap<_, TaskGroup<'_>> = BTreeMap::new();
    for task in &dump.tasks {
        let stacks: Vec<Vec<String>> = task
            .stacks
            .iter()
            .map(|stack| visible_frames(&dump.profile, *stack).collect())
            .collect();
        let spawn_site = (task.location.file, task.location.line);
        groups.entry((task.state, spawn_site, task.name, stacks)).or_default().push(task);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(total_weight(group)));
    groups
}

/// Returns the number of tasks that a group represents.
fn total_weight(group: &[&TaskRow]) -> usize {
    usize::try_from(group.iter().map(|task| task.weight).sum::<u64>()).unwrap_or(usize::MAX)
}

fn count_by_state(dump: &TaskDump) -> BTreeMap<&'static str, u64> {
    let mut states = BTreeMap::new();
    for task in &dump.tasks {
        *states.entry(task.state.name()).or_default() += task.weight;
    }
    states
}

fn write_group(out: &mut impl Write, dump: &TaskDump, group: &TaskGroup<'_>) -> io::Result<()> {
    let Some(first) = group.first() else { return Ok(()) };
    let prefix = if total_weight(group) > group.len() { "about " } else { "" };
    write!(out, "\n{prefix}{}", plural(total_weight(group), "task"))?;
    if !first.name.is_empty() {
        write!(out, " {:?}", first.name)?;
    }
    write!(
        out,
        " spawned at {}:{}, {}",
        first.location.file,
        first.location.line,
        first.state.name()
    )?;
    if let TaskState::Running { tid } = first.state {
        write!(out, " on thread {tid}")?;
    }
    let ages = group.iter().filter_map(|task| task.time_since_poll);
    if let (Some(shortest), Some(longest)) = (ages.clone().min(), ages.max()) {
        let label = match first.state {
            TaskState::Running { .. } => "for",
            _ => "time since last poll",
        };
        let shortest = format_duration(shortest);
        let longest = format_duration(longest);
        if shortest == longest {
            write!(out, ", {label} {shortest}")?;
        } else {
            write!(out, ", {label} {shortest} to {longest}")?;
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
        visible_frames(&dump.profile, *stack).try_for_each(|frame| writeln!(out, "    {frame}"))?;
    }
    if first.omitted_stacks > 0 {
        writeln!(out, "  and {} more leaf futures, not shown", first.omitted_stacks)?;
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
fn visible_frames(profile: &Profile, stack: StackHandle) -> impl Iterator<Item = String> + '_ {
    let is_waker_frame = |frame: &String| frame.contains("core::task::wake::Waker");
    frame_names(profile, Some(stack)).skip_while(is_waker_frame)
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
    let SiteCount { location: spawned, name, tasks } = site;
    JsonSite { spawned: format!("{}:{}", spawned.file, spawned.line), name, tasks: *tasks }
}

/// Writes the dump as one JSON object, with each stack once.
pub fn write_json(dump: &TaskDump, mut out: impl Write) -> io::Result<()> {
    let mut stacks = Vec::new();
    let mut stack_indices: std::collections::HashMap<StackHandle, usize> = Default::default();
    let mut stack_index = |stack: StackHandle| {
        *stack_indices.entry(stack).or_insert_with(|| {
            stacks.push(visible_frames(&dump.profile, stack).collect());
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
            spawned: format!("{}:{}", task.location.file, task.location.line),
            state: task.state.name(),
            thread,
            since_poll_ms: task.time_since_poll.map(|since| since.as_millis()),
            stacks: task.stacks.iter().chain(on_thread).map(|stack| stack_index(*stack)).collect(),
            more_stacks: task.omitted_stacks,
            weight: task.weight,
        }
    });
    let tasks = tasks.collect();
    let json = TasksJson {
        schema: 1,
        taken: dump.taken_at().to_string(),
        took_ms: dump.duration.as_millis(),
        unwrapped: dump.unwrapped_tasks,
        losses: dump.losses(),
        total: dump.total(),
        sites: dump.sites.iter().map(json_site).collect(),
        tasks,
        stacks,
    };
    serde_json::to_writer(&mut out, &json)?;
    out.write_all(b"\n")
}
