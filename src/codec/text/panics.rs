//! Dumps of the service's panics: `panics.txt`.

use std::io::{self, Write};

use super::write_losses;
use crate::base::log::escape;
use crate::model::PanicDump;

/// Writes the dump as text.
pub fn write(dump: &PanicDump, mut out: impl Write) -> io::Result<()> {
    let out = &mut out;
    let panics = super::plural(usize::try_from(dump.total).unwrap_or(usize::MAX), "panic");
    writeln!(out, "# {panics} until {}, by location", dump.taken_at)?;
    write_losses(out, &dump.losses)?;
    for place in &dump.locations {
        let count = super::plural(usize::try_from(place.count).unwrap_or(usize::MAX), "panic");
        writeln!(out, "\n{count} at {}:{}:{}", place.file, place.line, place.column)?;
        writeln!(out, "    message: {}", escape(&place.message))?;
        if place.first_message != place.message {
            writeln!(out, "    first message: {}", escape(&place.first_message))?;
        }
        write!(out, "    last at {} on thread `{}`", place.last_at, escape(&place.thread))?;
        if let Some(task) = &place.task {
            write!(out, ", task id {task}")?;
        }
        writeln!(out, "\n    first at {}", place.first_at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{PanicLocation, RecordedPanics};

    #[test]
    fn places_are_listed_with_message_thread_and_task() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let place = PanicLocation {
            file: "src/orders.rs".into(),
            line: 17,
            column: 9,
            count: 3,
            first_at: at,
            last_at: at,
            first_message: "order 1 is empty".into(),
            message: "order 3\nis empty".into(),
            thread: "tokio-rt-worker".into(),
            task: Some("12".into()),
        };
        let recorded = RecordedPanics { total: 5, without_location: 2, locations: vec![place] };
        let mut text = Vec::new();
        write(&PanicDump::new(at, recorded), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let expected = "\
# 5 panics until 1970-01-01T00:00:00Z, by location
# panics without a recorded location: 2

3 panics at src/orders.rs:17:9
    message: order 3\\nis empty
    first message: order 1 is empty
    last at 1970-01-01T00:00:00Z on thread `tokio-rt-worker`, task id 12
    first at 1970-01-01T00:00:00Z
";
        assert_eq!(text, expected);
    }
}
