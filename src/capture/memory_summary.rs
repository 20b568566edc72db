//! Comparison of a heap profile's total with the resident memory, and a breakdown of the rest.

use std::fmt::{self, Write};

use crate::base::Bytes;
use crate::model::Profile;
use crate::os::proc::resident::{MAX_WALKED_RSS, MappingKinds, ResidentMemory, ResidentReader};

/// Percentage of the resident memory below which the profile is said to explain little.
const LOW_COVERAGE_PERCENT: f64 = 50.0;

/// Minimum unexplained memory for a conclusion. Less is normal: tables, stacks and code of a small
/// program.
const MIN_UNEXPLAINED_BYTES: u64 = 32 << 20;

/// Prefix that identifies the summary among the comments of a profile.
const COMMENT_PREFIX: &str = "memory: ";

/// The in-use total of a profile and the resident memory of the process at the same moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemorySummary {
    in_use: u64,
    resident: ResidentMemory,
}

impl MemorySummary {
    /// Reads the resident memory. Allocates nothing.
    pub(crate) fn read(in_use: u64, reader: &mut ResidentReader) -> Option<Self> {
        Some(Self { in_use, resident: reader.read()? })
    }

    /// Prepends the summary to the comments of a heap profile.
    pub(crate) fn prepend_to(profile: &mut Profile) {
        let Some(column) =
            profile.sample_types.iter().position(|sample_type| sample_type.name == "inuse_space")
        else {
            return;
        };
        let values = profile.samples.iter().filter_map(|sample| sample.values.get(column));
        let in_use = values.sum::<i64>().max(0) as u64;
        let Some(summary) = Self::read(in_use, &mut ResidentReader::with_buffer()) else { return };
        let mut comments = vec![summary.to_string()];
        comments.extend(summary.resident.kinds.map(|kinds| LargestMappings(kinds).to_string()));
        profile.comments.splice(..0, comments);
    }

    /// Returns the summary among the comments of a profile.
    pub(crate) fn from_comments(profile: &Profile) -> Option<String> {
        profile.comments.iter().find(|line| line.starts_with(COMMENT_PREFIX)).cloned()
    }

    /// Passes the summary and the list of the largest mappings to `emit`, a line per
    /// call.
    pub(crate) fn write_lines<E>(
        &self,
        mut emit: impl FnMut(fmt::Arguments<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        emit(format_args!("{self}"))?;
        match self.resident.kinds {
            Some(kinds) => emit(format_args!("{}", LargestMappings(kinds))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for MemorySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { in_use, resident } = *self;
        let ResidentMemory { anonymous, file, shared, kinds } = resident;
        let total = resident.total();
        let explained = in_use.min(total.get());
        write!(
            f,
            "{COMMENT_PREFIX}the heap profile explains at most {} of {total} resident ({:.1} %): {anonymous} \
             anonymous, {file} of files, {shared} shared",
            Bytes(explained),
            percent(explained, total.get())
        )?;
        match kinds {
            Some(MappingKinds { malloc, anonymous, stacks, files, shared, is_partial, .. }) => {
                let partly = if is_partial { " of the first mappings" } else { "" };
                write!(
                    f,
                    "; by mapping{partly}: malloc's heap {malloc}, other anonymous mappings {anonymous}, \
                     stacks {stacks}, files with their private pages {files}, shared memory {shared}"
                )?;
            }
            None if total > MAX_WALKED_RSS => write!(
                f,
                "; not broken down by mapping: above {MAX_WALKED_RSS}, /proc/self/smaps takes too \
                 long to read"
            )?,
            None => {
                f.write_str("; not broken down by mapping: /proc/self/smaps cannot be read")?;
            }
        }
        let outside = resident.total().get() - explained;
        if outside >= MIN_UNEXPLAINED_BYTES
            && percent(explained, total.get()) < LOW_COVERAGE_PERCENT
        {
            write!(
                f,
                "; {} are outside the profile: memory of C code and of mmap, files, stacks, and \
                 freed memory that the allocator keeps",
                Bytes(outside)
            )?;
        }
        Ok(())
    }
}

/// The largest mappings, formatted as one line.
struct LargestMappings(MappingKinds);

impl fmt::Display for LargestMappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory: largest mappings:")?;
        for (index, large) in self.0.largest.iter().enumerate() {
            if large.resident > Bytes(0) {
                if index > 0 {
                    f.write_char(',')?;
                }
                let resident = large.resident;
                let kind = large.kind.name();
                write!(f, " {resident} {kind} at {:x}", large.start)?;
            }
        }
        Ok(())
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole > 0 { part as f64 / whole as f64 * 100.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::proc::resident::{LargeMapping, MappingKind};

    #[test]
    fn summary_breaks_down_memory_outside_the_profile() {
        let kinds = MappingKinds {
            malloc: Bytes::mib(21),
            anonymous: Bytes::mib(850),
            stacks: Bytes::mib(1),
            files: Bytes::mib(13),
            largest: [
                LargeMapping {
                    start: 0x7f00_0000,
                    resident: Bytes::mib(850),
                    kind: MappingKind::Anonymous,
                },
                LargeMapping::default(),
                LargeMapping::default(),
            ],
            ..MappingKinds::default()
        };
        let resident = ResidentMemory {
            anonymous: Bytes::mib(873),
            file: Bytes::mib(12),
            shared: Bytes(0),
            kinds: Some(kinds),
        };
        let summary = MemorySummary { in_use: 20 << 20, resident };
        assert_eq!(
            summary.to_string(),
            "memory: the heap profile explains at most 20.0 MiB of 885.0 MiB resident (2.3 %): 873.0 MiB \
             anonymous, 12.0 MiB of files, 0 B shared; by mapping: malloc's heap 21.0 MiB, other anonymous \
             mappings 850.0 MiB, stacks 1.0 MiB, files with their private pages 13.0 MiB, shared memory 0 B; \
             865.0 MiB are outside the profile: memory of C code and of mmap, files, stacks, and freed memory \
             that the allocator keeps"
        );
        assert_eq!(
            LargestMappings(kinds).to_string(),
            "memory: largest mappings: 850.0 MiB anonymous at 7f000000"
        );
        let most = MemorySummary { in_use: 870 << 20, resident };
        assert!(!most.to_string().contains("outside"), "{most}");
        // Requested but never written, hence not resident.
        let more = MemorySummary { in_use: 2 << 40, resident };
        assert!(more.to_string().contains("at most 885.0 MiB of 885.0 MiB resident (100.0 %)"));
    }
    #[test]
    fn missing_breakdown_has_its_cause() {
        for (anonymous, cause) in [
            (Bytes::gib(8), "/proc/self/smaps cannot be read"),
            (
                Bytes(Bytes::gib(8).get() + 1),
                "above 8.0 GiB, /proc/self/smaps takes too long to read",
            ),
        ] {
            let resident = ResidentMemory { anonymous, ..ResidentMemory::default() };
            let text = MemorySummary { in_use: anonymous.get(), resident }.to_string();
            assert!(text.ends_with(&format!("; not broken down by mapping: {cause}")), "{text}");
        }
    }
}
