//! Dumps as text, for a terminal or `less`.
//!
//! Rows with the same stack are grouped, the largest group first. For ten thousand connections that
//! wait for a byte, the useful information is one stack and the count.

pub mod descriptors;
pub mod panics;
pub mod tasks;
pub mod threads;

use std::io::{self, Write};
use std::time::Duration;

use crate::model::{Losses, Profile, StackHandle};

/// Returns the frames of a stack, innermost first, by name if known.
pub(in crate::codec) fn frame_names(
    profile: &Profile,
    stack: Option<StackHandle>,
) -> impl Iterator<Item = String> + '_ {
    profile.stacks.frames(stack).flat_map(|frame| {
        let frame = profile.frames.get(frame);
        let function = |line: &crate::model::Line| {
            let function = profile.functions.get(line.function.index())?;
            Some(profile.strings.get(function.name).to_owned())
        };
        let names: Vec<String> = frame.lines.iter().filter_map(function).collect();
        if !names.is_empty() {
            return names;
        }
        let mapping = frame.mapping.and_then(|mapping| profile.mappings.get(mapping.index()));
        let file = mapping.and_then(|mapping| mapping.path.file_name());
        vec![match file {
            Some(file) => format!("{:#x} in {}", frame.address, file.to_string_lossy()),
            None => format!("{:#x}", frame.address),
        }]
    })
}

fn write_stack(
    out: &mut impl Write,
    profile: &Profile,
    stack: Option<StackHandle>,
) -> io::Result<()> {
    frame_names(profile, stack).try_for_each(|frame| writeln!(out, "    {frame}"))
}

fn write_losses(out: &mut impl Write, losses: &Losses) -> io::Result<()> {
    losses.iter().try_for_each(|loss| writeln!(out, "# {}: {}", loss.cause, loss.count))
}

/// Returns `n thread` or `n threads`.
fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Formats a duration with about three digits.
fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_about_three_digits() {
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (59_999, "59.9 s"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }
}
