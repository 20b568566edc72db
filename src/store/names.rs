//! Names of files and directories: creation and recognition. The store never deletes an entry whose
//! name these functions do not recognise.
//!
//! ```text
//! 20261123T025733.123Z-memory-01KC…      an incident
//! .new-01KC…                             an incident being created; deleted at start
//! .gone-20261123T025733.123Z-memory-…    an incident being evicted; deleted at start
//! orders_eu-1.001.memory.pprof           an artifact
//! orders_eu-1.002.custom.queries.txt     a custom artifact
//! incident.json  incident.md             the manifest and the report
//! incident.json.part  .draft-3.part      files being written; deleted at start
//! ```

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::base::IncidentId;
use crate::model::{ArtifactFormat, FileName};

/// The file name of a manifest.
pub const MANIFEST_FILE: &str = "incident.json";
/// The file name of a report.
pub const REPORT_FILE: &str = "incident.md";
/// State that survives restarts, apart from the incidents.
pub(super) const STATE_FILE: &str = "state.json";
pub(super) const AGES_FILE: &str = "ages.json";
/// The lock file with the record of the writer.
pub(super) const LOCK_FILE: &str = ".lock";
/// Suffix of a named file that is being written.
pub(super) const PART_SUFFIX: &str = ".part";
/// Prefix of the directory of an incident that is being created.
pub(super) const NEW_PREFIX: &str = ".new-";
/// Prefix of the directory of an incident that is being evicted.
pub(super) const EVICTED_PREFIX: &str = ".gone-";

/// `YYYYMMDDTHHMMSS.mmmZ`: sorts by time and contains no character special to shells or file
/// systems.
const TIME_FORMAT: &str = "%Y%m%dT%H%M%S%.3fZ";
const TIME_LEN: usize = 20;
const ULID_LEN: usize = 26;
/// A limit for each part of a name; longer parts are cut. It bounds the longest names, of the 255
/// bytes that file systems allow, to
///
/// ```text
/// incident         20 + 1 + 48 + 1 + 26      =  96
/// artifact         48 + 1 + 48 + 5 + 15      = 117   `.001.` and `descriptors.txt`
/// custom artifact  48 + 1 + 48 + 5 + 7 + 64  = 173   `.001.`, `custom.` and a `FileName`
/// ```
const MAX_COMPONENT_LEN: usize = 48;
const SHORT_COMPONENT_LEN: usize = 12;

/// The parts of an incident's directory name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IncidentName {
    pub(super) opened: Timestamp,
    pub(super) name: String,
    pub(super) id: IncidentId,
}

/// Returns `name` as it is written in the directory name of an incident.
pub(super) fn sanitize_incident_name(name: &str) -> String {
    sanitize(&name.to_ascii_lowercase(), "_-", "incident")
}

impl IncidentName {
    pub(super) fn format(&self) -> String {
        let name = sanitize_incident_name(&self.name);
        format!("{}-{name}-{}", self.opened.strftime(TIME_FORMAT), self.id)
    }

    /// Returns `None` for any name that [`Self::format`] does not create.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, rest) = text.split_at_checked(TIME_LEN)?;
        let rest = rest.strip_prefix('-')?;
        let (name, id) = rest.split_at_checked(rest.len().checked_sub(ULID_LEN)?)?;
        let parsed = Self {
            opened: DateTime::strptime(TIME_FORMAT.replace(".3", ".").as_str(), time)
                .ok()?
                .to_zoned(TimeZone::UTC)
                .ok()?
                .timestamp(),
            name: name.strip_suffix('-')?.to_owned(),
            id: id.parse().ok()?,
        };
        (parsed.format() == text).then_some(parsed)
    }
}

/// Returns `{service}_{instance}`, the part of an artifact's name that identifies its origin.
pub(super) fn artifact_stem(service: &str, instance: &str) -> String {
    format!("{}_{}", sanitize(service, "-", "service"), sanitize(instance, "-", "instance"))
}

/// Returns a shorter stem, for file systems with names of at most 143 bytes (eCryptfs) or less.
pub(super) fn short_stem(stem: &str) -> String {
    let truncate = |piece: &str| piece.chars().take(SHORT_COMPONENT_LEN).collect::<String>();
    match stem.split_once('_') {
        Some((service, instance)) => format!("{}_{}", truncate(service), truncate(instance)),
        None => truncate(stem),
    }
}

pub(super) fn artifact_name(stem: &str, seq: u32, extension: &str) -> String {
    format!("{stem}.{seq:03}.{extension}")
}

/// Returns the last part of a custom artifact's name. No other form has an extension with this
/// prefix.
pub(super) fn custom_extension(name: &FileName) -> String {
    format!("{}.{name}", ArtifactFormat::Custom.extension())
}

/// Returns the form of the artifact `file`, or `None` for any name that [`artifact_name`] does not
/// create.
pub(super) fn artifact_form(file: &str) -> Option<ArtifactFormat> {
    let mut parts = file.splitn(3, '.');
    let stem = parts.next()?;
    let seq = parts.next()?;
    let extension = parts.next()?;
    let form = form_from_extension(extension)?;
    let (service, instance) = stem.split_once('_')?;
    (artifact_stem(service, instance) == stem && format!("{:03}", seq.parse::<u32>().ok()?) == seq)
        .then_some(form)
}

/// Returns the last part of the artifact's name `file`, which identifies its form. `None` for any
/// name that [`artifact_name`] does not create.
pub(super) fn artifact_extension(file: &str) -> Option<&str> {
    artifact_form(file)?;
    file.splitn(3, '.').nth(2)
}

pub(super) fn artifact_number(file: &str) -> Option<u32> {
    file.split('.').nth(1)?.parse().ok()
}

fn form_from_extension(extension: &str) -> Option<ArtifactFormat> {
    let custom = extension.strip_prefix(ArtifactFormat::Custom.extension());
    if custom
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|name| name.parse::<FileName>().is_ok())
    {
        return Some(ArtifactFormat::Custom);
    }
    ArtifactFormat::ALL
        .into_iter()
        .chain([ArtifactFormat::Custom])
        .find(|form| form.extension() == extension)
}

/// Returns `true` if `file` is the name of a finished file of an incident: its manifest, its report
/// or an artifact.
pub(super) fn is_incident_file(file: &str) -> bool {
    [MANIFEST_FILE, REPORT_FILE].contains(&file) || artifact_form(file).is_some()
}

/// Returns `true` if `file` is the name of a file that the store was writing.
pub(super) fn is_part_file(file: &str) -> bool {
    file.strip_suffix(PART_SUFFIX).is_some_and(|base| {
        [MANIFEST_FILE, REPORT_FILE].contains(&base)
            || base.strip_prefix(".draft-").is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

/// Returns `true` if the file system keeps `file` only while a reader has it open (NFS, FUSE). It
/// deletes the file itself afterwards.
pub(super) fn is_silly_renamed(file: &str) -> bool {
    file.starts_with(".nfs") || file.starts_with(".fuse_hidden")
}

/// Returns `text` with every character replaced by `-` that is not an ASCII letter, a digit or in
/// `allowed`.
fn sanitize(text: &str, allowed: &str, default: &str) -> String {
    let text = if text.is_empty() { default } else { text };
    text.chars()
        .take(MAX_COMPONENT_LEN)
        .map(|c| if c.is_ascii_alphanumeric() || allowed.contains(c) { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(name: &str) -> IncidentName {
        let opened: Timestamp = "2026-11-23T02:57:33.123Z".parse().unwrap();
        IncidentName { opened, name: name.to_owned(), id: IncidentId::new(opened) }
    }

    #[test]
    fn incident_name_has_time_rule_and_id() {
        let incident = incident("memory");
        let text = incident.format();
        assert_eq!(text, format!("20261123T025733.123Z-memory-{}", incident.id));
        assert_eq!(IncidentName::parse(&text), Some(incident));
    }

    #[test]
    fn incident_names_are_sanitized_and_bounded() {
        for (name, written) in [
            ("../../etc", "------etc"),
            ("Mémoire/Haute", "m-moire-haute"),
            ("a_b-c", "a_b-c"),
            ("", "incident"),
            ("a\0\nb", "a--b"),
        ] {
            let text = incident(name).format();
            assert_eq!(IncidentName::parse(&text).map(|parsed| parsed.name), Some(written.into()));
        }
        assert_eq!(incident(&"x".repeat(300)).format().len(), TIME_LEN + 1 + 48 + 1 + ULID_LEN);
    }

    #[test]
    fn foreign_names_are_not_parsed_as_incidents() {
        let ours = incident("memory").format();
        for text in [
            "",
            "memory",
            "20261123T025733.123Z",
            &ours.to_lowercase(),
            &ours.replace("memory", "Memory"),
            &ours.replace("-memory", ""),
            &ours.replace("20261123", "20261323"),
            &format!("{ours}x"),
            &format!(".{ours}"),
            "20261123T025733.123Z-é-01KC0000000000000000000000",
        ] {
            assert_eq!(IncidentName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn artifact_name_has_service_instance_number_and_form() {
        let stem = artifact_stem("Orders", "eu.west_1/a");
        let file = artifact_name(&stem, 7, ArtifactFormat::MemoryPprof.extension());
        assert_eq!(file, "Orders_eu-west-1-a.007.memory.pprof");
        let short = short_stem(&artifact_stem(&"s".repeat(60), &"d".repeat(60)));
        assert_eq!(short, format!("{}_{}", "s".repeat(12), "d".repeat(12)));
        assert_eq!(
            artifact_form(&artifact_name(&short, 7, "cpu.pprof")),
            Some(ArtifactFormat::CpuPprof)
        );
        for form in ArtifactFormat::ALL {
            assert_eq!(artifact_form(&artifact_name(&stem, 1000, form.extension())), Some(form));
        }
        for name in ["queries.txt", "memory.pprof", "incident.json", "custom", "a"] {
            let extension = custom_extension(&name.parse().unwrap());
            assert_eq!(
                artifact_form(&artifact_name(&stem, 3, &extension)),
                Some(ArtifactFormat::Custom),
                "{name}"
            );
        }
        for foreign in [
            "notes.txt",
            "a_b.1.cpu.pprof",
            "a.001.cpu.pprof",
            "a_b.001.pprof",
            ".a_b.001.cpu.pprof",
            "a_b.001.queries.txt",
            "a_b.001.customqueries.txt",
            "a_b.001.custom.",
            "a_b.001.custom..hidden",
            "a_b.001.custom.x.part",
        ] {
            assert_eq!(artifact_form(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn part_files_are_recognized() {
        assert!(is_part_file("incident.json.part") && is_part_file(".draft-12.part"));
        assert!(
            !is_part_file("film.part") && !is_part_file(".part") && !is_part_file("incident.json")
        );
    }
}
