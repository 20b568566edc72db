//! Thread dumps: `threads.txt`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use super::{format_duration, frame_names, plural, write_losses, write_stack};
use crate::model::{ThreadDump, ThreadRow};

/// Writes the dump as text.
pub fn write(dump: &ThreadDump, mut out: impl Write) -> io::Result<()> {
    let out = &mut out;
    let profile = &dump.profile;
    writeln!(out, "# {} at {}", plural(dump.threads.len(), "thread"), profile.started)?;
    profile.comments.iter().try_for_each(|comment| writeln!(out, "# {comment}"))?;
    write_losses(out, &profile.losses)?;

    let mut groups: BTreeMap<_, Vec<&ThreadRow>> = BTreeMap::new();
    for thread in &dump.threads {
        let stack: Vec<String> = frame_names(profile, thread.stack).collect();
        groups.entry((stack, thread.remark)).or_default().push(thread);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for group in groups {
        let Some(first) = group.first() else { continue };
        let cpu: Duration = group.iter().map(|thread| thread.cpu_time).sum();
        writeln!(out, "\n{}, {} of CPU time", plural(group.len(), "thread"), format_duration(cpu))?;
        for thread in &group {
            write!(out, "  {} {:?} {}", thread.tid, thread.name, state_name(thread.state))?;
            if !thread.wait_channel.is_empty() {
                write!(out, " in {}", thread.wait_channel)?;
            }
            writeln!(out, ", {}", format_duration(thread.cpu_time))?;
        }
        if !first.remark.is_empty() {
            writeln!(out, "  ({})", first.remark)?;
        }
        write_stack(out, profile, first.stack)?;
    }
    Ok(())
}

fn state_name(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "in the kernel, uninterruptible",
        'T' | 't' => "stopped",
        'Z' | 'X' => "ended",
        'I' => "idle",
        _ => "in an unknown state",
    }
}
