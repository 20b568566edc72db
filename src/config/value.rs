//! Parsers for the values of settings, in the form of serde deserializer functions. Each error
//! shows the value and the valid form, except for a token, which is never shown.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, Unexpected, Visitor};

use super::secret::Secret;
use super::settings::{DiskReserve, Listen, TasksMode, ThreadsMode, ToggleSignal};
use crate::base::{Bytes, Hertz, Percent, spare};
use crate::model::{CpuEngine, CpuMode, HoldDurations, Mode, Refire, TraceMode, Unit};

/// A visitor for a value that is written as a number or as a text.
struct NumberOrText<T, N, S> {
    expected: &'static str,
    number: N,
    text: S,
    marker: std::marker::PhantomData<T>,
}

impl<T, N, S> Visitor<'_> for NumberOrText<T, N, S>
where
    N: Fn(f64) -> Option<T>,
    S: Fn(&str) -> Option<T>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<T, E> {
        (self.number)(n as f64).ok_or_else(|| E::invalid_value(Unexpected::Signed(n), &self))
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<T, E> {
        (self.number)(n).ok_or_else(|| E::invalid_value(Unexpected::Float(n), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Parses a number or a text. A function returns `None` to reject the value.
fn number_or_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    number: impl Fn(f64) -> Option<T>,
    text: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let marker = std::marker::PhantomData;
    deserializer.deserialize_any(NumberOrText { expected, number, text, marker })
}

/// A text inside a list or a table; the string describes the valid form for errors.
pub(super) struct Text(pub(super) &'static str);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        number_or_text(deserializer, self.0, |_| None, |text| Some(text.to_owned()))
    }
}

/// Parses a duration in jiff's friendly format. A day is 24 hours; months are rejected.
fn parse_duration(text: &str) -> Option<Duration> {
    let span = SpanParser::new().parse_span(text).ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?.try_into().ok()
}

/// Parses the number before a percent sign.
fn parse_percent(text: &str) -> Option<f64> {
    text.strip_suffix('%')?.trim_end().parse().ok().filter(|n: &f64| n.is_finite())
}

fn finite(n: f64) -> Option<f64> {
    n.is_finite().then_some(n)
}

/// Returns `n` if it is a whole number that `f64` holds exactly (at most 2^53).
fn whole_number(n: f64) -> Option<u64> {
    (n.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&n)).then_some(n as u64)
}

/// Parses `"250ms"`, `"1m 30s"`, `"14d"`.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let expected = "a duration such as \"250ms\", \"1m 30s\" or \"14d\"";
    number_or_text(deserializer, expected, |_| None, parse_duration)
}

/// Parses a duration or `"off"`.
pub(super) fn duration_or_off<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = |text: &str| match text {
        "off" => Some(None),
        _ => parse_duration(text).map(Some),
    };
    number_or_text(deserializer, "a duration such as \"100ms\", or \"off\"", |_| None, text)
}

/// Parses `"2s"` for every condition, or `{ abs = "1s", diff = "5s", forecast = "2s" }`.
pub(super) fn hold_durations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<HoldDurations, D::Error> {
    struct HoldVisitor;

    impl<'de> Visitor<'de> for HoldVisitor {
        type Value = HoldDurations;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"2s\", or one for each condition: { abs = \"2s\" }")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<HoldDurations, E> {
            let all = parse_duration(text).map(HoldDurations::from);
            all.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<HoldDurations, A::Error> {
            let mut holds = HoldDurations::default();
            while let Some(key) = map.next_key::<String>()? {
                let slot = match key.as_str() {
                    "abs" => &mut holds.abs,
                    "diff" => &mut holds.diff,
                    "forecast" => &mut holds.forecast,
                    "below" => &mut holds.below,
                    _ => {
                        let known = &["abs", "diff", "forecast", "below"];
                        return Err(de::Error::unknown_field(&key, known));
                    }
                };
                let text = map.next_value_seed(Text("a duration in quotes, such as \"2s\""))?;
                *slot = parse_duration(&text)
                    .ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), &self))?;
            }
            Ok(holds)
        }
    }

    deserializer.deserialize_any(HoldVisitor)
}

/// Parses `"on-worsening"` or `"after-cooldown"`.
pub(super) fn refire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Refire, D::Error> {
    let text = |text: &str| {
        [Refire::OnWorsening, Refire::AfterCooldown].into_iter().find(|a| a.name() == text)
    };
    number_or_text(deserializer, "\"on-worsening\" or \"after-cooldown\"", |_| None, text)
}

/// Parses `"capture"` or `"dry-run"`.
pub(super) fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
    let text = |text: &str| [Mode::Capture, Mode::DryRun].into_iter().find(|m| m.name() == text);
    number_or_text(deserializer, "\"capture\" or \"dry-run\"", |_| None, text)
}

/// Parses `"90%"` or `"off"`.
pub(super) fn percent_or_off<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Percent>, D::Error> {
    let text = |text: &str| match text {
        "off" => Some(None),
        _ => parse_percent(text).map(|n| Some(WrittenPercent::WithSign(n))),
    };
    let number = |n| finite(n).map(|n| Some(WrittenPercent::Bare(n)));
    let expected = "a share of the CPU limit such as \"90%\", or \"off\"";
    let read = number_or_text(deserializer, expected, number, text)?;
    read.map(|percent| reject_bare_fraction(percent).map(Percent)).transpose()
}

/// Parses a text.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    number_or_text(deserializer, "a string in quotes", |_| None, |text| Some(text.to_owned()))
}

/// Parses a path.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    number_or_text(deserializer, "a path in quotes", |_| None, |text| Some(text.into()))
}

/// Parses a whole number.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = |n| usize::try_from(whole_number(n)?).ok();
    number_or_text(deserializer, "a whole number", number, |_| None)
}

/// Parses the form of thread dumps.
pub(super) fn threads_mode<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ThreadsMode, D::Error> {
    let mode = |text: &str| ThreadsMode::ALL.into_iter().find(|mode| mode.name() == text);
    number_or_text(deserializer, "\"full\", \"proc-only\" or \"off\"", |_| None, mode)
}

/// Parses the form of task dumps.
pub(super) fn tasks_mode<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<TasksMode, D::Error> {
    let mode = |text: &str| TasksMode::ALL.into_iter().find(|mode| mode.name() == text);
    number_or_text(deserializer, "\"full\", \"list-only\" or \"off\"", |_| None, mode)
}

/// Parses a frequency in Hz.
pub(super) fn hertz<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hertz, D::Error> {
    let number = |n| u32::try_from(whole_number(n)?).ok().map(Hertz);
    number_or_text(deserializer, "a whole number of samples per second such as 99", number, |_| {
        None
    })
}

/// Parses `"5%"` or `"1GiB"`.
pub(super) fn disk_reserve<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<DiskReserve, D::Error> {
    let expected = "a share such as \"5%\" or a size such as \"1GiB\"";
    let number = |n| whole_number(n).map(|n| (DiskReserve::Bytes(Bytes(n)), n));
    let read = number_or_text(deserializer, expected, number, |text| {
        let percent = parse_percent(text).map(|n| DiskReserve::Percent(Percent(n)));
        let reserve = percent.or_else(|| text.parse().ok().map(DiskReserve::Bytes));
        reserve.map(|room| (room, 0))
    })?;
    match read {
        (_, n @ 1..=100) => Err(de::Error::custom(format!(
            "{n} would be {n} bytes; did you mean {n} %? write \"{n}%\", or a size such as \"{n}GiB\""
        ))),
        (reserve, _) => Ok(reserve),
    }
}

/// Parses `"127.0.0.1:6060"` or `"unix:/run/service.sock"`.
pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Listen, D::Error> {
    let expected = "an IP address and a port such as \"127.0.0.1:6060\", or a Unix socket such as \
                    \"unix:/run/service.sock\"";
    number_or_text(
        deserializer,
        expected,
        |_| None,
        |text| match text.strip_prefix("unix:") {
            Some("") => None,
            Some(path) => Some(Listen::Unix(path.into())),
            None => text.parse().ok().map(Listen::Tcp),
        },
    )
}

/// Parses `"auto"`, `"perf"`, `"timer"` or `"pprof"`.
pub(super) fn engine<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CpuEngine, D::Error> {
    let expected = "\"auto\", \"perf\", \"timer\" or \"pprof\"";
    number_or_text(deserializer, expected, |_| None, |text| text.parse().ok())
}

/// Parses `"cpu"` or `"wall"`.
pub(super) fn cpu_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CpuMode, D::Error> {
    number_or_text(deserializer, "\"cpu\" or \"wall\"", |_| None, CpuMode::from_name)
}

/// Parses `"SIGUSR1"`, `"SIGUSR2"` or `"off"`.
pub(super) fn signal<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ToggleSignal>, D::Error> {
    let expected = "\"SIGUSR1\", \"SIGUSR2\" or \"off\"";
    let text = |text: &str| match text {
        "off" => Some(None),
        _ => [ToggleSignal::Usr1, ToggleSignal::Usr2]
            .into_iter()
            .find(|signal| signal.name() == text)
            .map(Some),
    };
    number_or_text(deserializer, expected, |_| None, text)
}

/// Parses `"always"`, `"on-demand"` or `"off"`.
pub(super) fn trace_mode<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<TraceMode, D::Error> {
    let expected = "\"always\", \"on-demand\" or \"off\"";
    let text = |text: &str| TraceMode::ALL.into_iter().find(|mode| mode.name() == text);
    number_or_text(deserializer, expected, |_| None, text)
}

/// Parses a threshold in the unit of its metric.
pub(super) fn threshold<'de, D: Deserializer<'de>>(
    unit: Unit,
    deserializer: D,
) -> Result<f64, D::Error> {
    match unit {
        Unit::Percent => percent(deserializer),
        Unit::Bytes => Bytes::deserialize(deserializer).map(|bytes| bytes.get() as f64),
        Unit::Count => number_or_text(deserializer, "a number", finite, |_| None),
        Unit::Seconds => duration(deserializer).map(|duration| duration.as_secs_f64()),
    }
}

/// Parses `25` or `"25%"`.
pub(super) fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let expected = "a percentage such as 80 or \"80%\"";
    number_or_text(
        deserializer,
        expected,
        |n| finite(n).map(WrittenPercent::Bare),
        |text| parse_percent(text).map(WrittenPercent::WithSign),
    )
    .and_then(reject_bare_fraction)
}

/// A percentage as it is written in a file.
enum WrittenPercent {
    /// A number.
    Bare(f64),
    /// A text that ends in a percent sign.
    WithSign(f64),
}

/// Rejects a bare number between 0 and 1: it is most likely a fraction of one, not a percentage.
fn reject_bare_fraction<E: de::Error>(percent: WrittenPercent) -> Result<f64, E> {
    match percent {
        WrittenPercent::Bare(n) if 0.0 < n && n < 1.0 => {
            let meant = n * 100.0;
            Err(E::custom(format!(
                "{n} would be {n} %; did you mean {meant} %? write \"{meant}%\", or \"{n}%\" for \
                 less than one per cent"
            )))
        }
        WrittenPercent::Bare(n) | WrittenPercent::WithSign(n) => Ok(n),
    }
}

/// Parses the SHA-256 of a token. The token itself does not belong in a file that is copied,
/// committed and widely readable. An error does not repeat the value.
pub(super) fn token_sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let invalid = || {
        de::Error::custom(
            "expected \"sha256:\" and 64 hexadecimal digits, which `printf %s TOKEN | sha256sum` \
             prints; to use the token itself, store it in a file and set the key that ends in \
             `_file`",
        )
    };
    let text = String::deserialize(deserializer).map_err(|_| invalid())?;
    text.strip_prefix("sha256:").and_then(Secret::from_sha256).ok_or_else(invalid)
}

/// Reads the token from a file that belongs to this user or root and that others cannot read. The
/// group may read it: a Kubernetes secret volume with `fsGroup` belongs to root and is
/// group-readable.
pub(super) fn token_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    /// Limit of a token file: far more than any token, and a bound on the cost of a wrong path.
    const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;

    let path = path(deserializer)?;
    let shown = path.display();
    let reject = |reason: String| Err(de::Error::custom(format!("`{shown}` {reason}")));
    // One descriptor, so the file that is checked is the one that is read. Opening a pipe does not
    // block. Symbolic links are followed: a Kubernetes secret is one.
    let mut open = File::options();
    open.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = spare::open_with_retry(|| open.open(&path))
        .and_then(|file| file.metadata().map(|meta| (file, meta)));
    let (file, meta) = match file {
        Ok(opened) => opened,
        Err(error) => return reject(format!("cannot be read: {error}")),
    };
    if !meta.is_file() {
        return reject("is not a regular file".to_owned());
    }
    let owner = meta.uid();
    let uid = rustix::process::geteuid().as_raw();
    if owner != uid && owner != 0 {
        return reject(format!(
            "belongs to user {owner}, who can read and change the token: run `chown {uid} {shown}`"
        ));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return reject(format!(
            "is accessible to all users (mode {mode:03o}): run `chmod 600 {shown}`"
        ));
    }
    let mut text = String::new();
    match file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text) {
        Ok(_) => Ok(Secret::new(text.trim_end_matches(['\n', '\r']))),
        Err(error) => reject(format!("cannot be read: {error}")),
    }
}
