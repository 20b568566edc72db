//! Dumps of the open file descriptors: `descriptors.txt`.

use std::io::{self, Write};

use super::write_losses;
use crate::model::{DescriptorCount, DescriptorDump};

/// Writes the dump as text.
pub fn write(dump: &DescriptorDump, mut out: impl Write) -> io::Result<()> {
    let out = &mut out;
    let limit = dump.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    writeln!(out, "# {} open file descriptors at {}, limit {limit}", dump.open, dump.taken_at)?;
    write_losses(out, &dump.losses)?;
    for (title, counts) in [
        ("by kind", &dump.kinds),
        ("by target", &dump.targets),
        ("files by path, digits replaced by #", &dump.patterns),
        ("files by directory", &dump.directories),
    ] {
        write_counts(out, title, counts)?;
    }
    Ok(())
}

fn write_counts(out: &mut impl Write, title: &str, counts: &[DescriptorCount]) -> io::Result<()> {
    if counts.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    for DescriptorCount { kind, target, count } in counts {
        match target.as_str() {
            "" => writeln!(out, "{count:>8}  {kind}")?,
            target => writeln!(out, "{count:>8}  {kind:<9}  {target}")?,
        }
    }
    Ok(())
}
