//! The names of things in the directory, made and recognised. Whatever these functions do not
//! recognise is not ours and is never removed.
//!
//! ```text
//! 20261123T025733.123Z-memory-01KC…      an incident
//! .new-01KC…                             one that is being made; swept at start
//! .gone-20261123T025733.123Z-memory-…    one that is being removed; swept at start
//! orders_eu-1.001.memory.pprof           an artifact
//! orders_eu-1.002.custom.queries.txt     one of the service's own
//! incident.json.part  .draft-3.part      files being written; swept at start
//! ```

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::base::IncidentId;
use crate::model::{FileName, Form};

/// The manifest of an incident.
pub const MANIFEST: &str = "incident.json";
/// What outlives restarts besides the incidents.
pub(super) const STATE: &str = "state.json";
/// The ages of the incidents.
pub(super) const AGES: &str = "ages.json";
/// Who writes here.
pub(super) const LOCK: &str = ".lock";
/// What every file being written under a name ends in.
pub(super) const PART: &str = ".part";
/// What the directory of an incident being made begins with.
pub(super) const NEW: &str = ".new-";
/// What the directory of an incident being removed begins with.
pub(super) const GONE: &str = ".gone-";

/// `YYYYMMDDTHHMMSS.mmmZ`: sorts by time, no character a shell or a file system minds.
const TIME: &str = "%Y%m%dT%H%M%S%.3fZ";
const TIME_LEN: usize = 20;
const ULID_LEN: usize = 26;
/// Of a name longer than this the rest is cut: the longest name made here is 20 + 1 + 48 + 1 + 26
/// characters for an incident, 48 + 1 + 48 + 15 for an artifact; a file system takes 255.
const PIECE_LEN: usize = 48;
const SHORT_PIECE_LEN: usize = 12;

/// What the name of an incident's directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IncidentName {
    pub(super) opened: Timestamp,
    pub(super) name: String,
    pub(super) id: IncidentId,
}

/// `name` as it stands in the name of an incident's directory.
pub(super) fn incident_name(name: &str) -> String {
    piece(&name.to_ascii_lowercase(), "_-", "incident")
}

impl IncidentName {
    pub(super) fn format(&self) -> String {
        let name = incident_name(&self.name);
        format!("{}-{name}-{}", self.opened.strftime(TIME), self.id)
    }

    /// None for anything [`Self::format`] does not make.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, rest) = text.split_at_checked(TIME_LEN)?;
        let rest = rest.strip_prefix('-')?;
        let (name, id) = rest.split_at_checked(rest.len().checked_sub(ULID_LEN)?)?;
        let parsed = Self {
            opened: DateTime::strptime(TIME.replace(".3", ".").as_str(), time)
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

/// `{service}_{domain}`, the part of an artifact's name that says where it is from.
pub(super) fn artifact_stem(service: &str, domain: &str) -> String {
    format!("{}_{}", piece(service, "-", "service"), piece(domain, "-", "domain"))
}

/// The same, short: for file systems that take names of 143 bytes (eCryptfs) or less.
pub(super) fn short_stem(stem: &str) -> String {
    let cut = |piece: &str| piece.chars().take(SHORT_PIECE_LEN).collect::<String>();
    match stem.split_once('_') {
        Some((service, domain)) => format!("{}_{}", cut(service), cut(domain)),
        None => cut(stem),
    }
}

/// The name of an artifact.
pub(super) fn artifact(stem: &str, seq: u32, extension: &str) -> String {
    format!("{stem}.{seq:03}.{extension}")
}

/// The last part of the name of a file of the service's own. No form of ours has one that begins so.
pub(super) fn custom_extension(name: &FileName) -> String {
    format!("{}.{name}", Form::Custom.extension())
}

/// The form of the artifact called `file`; none for anything [`artifact`] does not make.
pub(super) fn artifact_form(file: &str) -> Option<Form> {
    let mut parts = file.splitn(3, '.');
    let (stem, seq, extension) = (parts.next()?, parts.next()?, parts.next()?);
    let form = form_of(extension)?;
    let (service, domain) = stem.split_once('_')?;
    (artifact_stem(service, domain) == stem && format!("{:03}", seq.parse::<u32>().ok()?) == seq)
        .then_some(form)
}

/// The last part of the artifact's name `file`, which says its form; none for anything [`artifact`] does
/// not make.
pub(super) fn artifact_extension(file: &str) -> Option<&str> {
    artifact_form(file)?;
    file.splitn(3, '.').nth(2)
}

/// The number in the artifact's name `file`.
pub(super) fn artifact_number(file: &str) -> Option<u32> {
    file.split('.').nth(1)?.parse().ok()
}

fn form_of(extension: &str) -> Option<Form> {
    let custom = extension.strip_prefix(Form::Custom.extension());
    if custom
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|it| it.parse::<FileName>().is_ok())
    {
        return Some(Form::Custom);
    }
    Form::ALL.into_iter().chain([Form::Custom]).find(|form| form.extension() == extension)
}

/// Whether a file of this name in an incident's directory was being written by us.
pub(super) fn is_part(file: &str) -> bool {
    file.strip_suffix(PART).is_some_and(|of| {
        of == MANIFEST
            || of.strip_prefix(".draft-").is_some_and(|number| number.parse::<u32>().is_ok())
    })
}

/// Whether the file system itself keeps a file of this name for as long as somebody has it open (NFS, FUSE): it goes
/// by itself, and is nobody's.
pub(super) fn is_remains(file: &str) -> bool {
    file.starts_with(".nfs") || file.starts_with(".fuse_hidden")
}

/// `text` with every character that is not an ASCII letter, a digit or in `also` made a `-`.
fn piece(text: &str, also: &str, otherwise: &str) -> String {
    let text = if text.is_empty() { otherwise } else { text };
    text.chars()
        .take(PIECE_LEN)
        .map(|c| if c.is_ascii_alphanumeric() || also.contains(c) { c } else { '-' })
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
    fn incidents_are_named_by_time_rule_and_id() {
        let incident = incident("memory");
        let text = incident.format();
        assert_eq!(text, format!("20261123T025733.123Z-memory-{}", incident.id));
        assert_eq!(IncidentName::parse(&text), Some(incident));
    }

    #[test]
    fn names_cannot_leave_the_directory_or_break_the_pattern() {
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
    fn strangers_are_not_taken_for_incidents() {
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
    fn artifacts_are_named_by_service_domain_order_and_form() {
        let stem = artifact_stem("Orders", "eu.west_1/a");
        let file = artifact(&stem, 7, Form::MemoryPprof.extension());
        assert_eq!(file, "Orders_eu-west-1-a.007.memory.pprof");
        let short = short_stem(&artifact_stem(&"s".repeat(60), &"d".repeat(60)));
        assert_eq!(short, format!("{}_{}", "s".repeat(12), "d".repeat(12)));
        assert_eq!(artifact_form(&artifact(&short, 7, "cpu.pprof")), Some(Form::CpuPprof));
        for form in Form::ALL {
            assert_eq!(artifact_form(&artifact(&stem, 1000, form.extension())), Some(form));
        }
        for name in ["queries.txt", "memory.pprof", "incident.json", "custom", "a"] {
            let extension = custom_extension(&name.parse().unwrap());
            assert_eq!(
                artifact_form(&artifact(&stem, 3, &extension)),
                Some(Form::Custom),
                "{name}"
            );
        }
        for stranger in [
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
            assert_eq!(artifact_form(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn parts_are_recognised() {
        assert!(is_part("incident.json.part") && is_part(".draft-12.part"));
        assert!(!is_part("film.part") && !is_part(".part") && !is_part("incident.json"));
    }
}
