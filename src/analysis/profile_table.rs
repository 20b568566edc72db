//! A profile reduced to the rows that findings need.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::symbol::{FrameNames, Symbol, application_frame, display_name};
use crate::model::{LabelValue, Profile, Sample, StackHandle};

/// Maximum number of rows. The values of the others are added up in [`ProfileTable::other`].
const MAX_ROWS: usize = 1000;

/// Maximum number of values of a label that are kept, the largest first.
const MAX_LABELS: usize = 20;

/// The values of one sample type of a profile by stack, the largest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProfileTable {
    /// [`Profile::duration`]. Zero for a snapshot.
    pub(crate) duration: Duration,
    /// Sum of all samples.
    pub(crate) total: i64,
    /// Square of the standard error of `total`.
    pub(crate) variance: f64,
    pub(crate) rows: Vec<ProfileRow>,
    /// Sum of the samples that have no row.
    pub(crate) other: i64,
    /// Sums by value of the labels `task`, `span` and `thread`.
    pub(crate) labels: Vec<LabelTotal>,
}

/// The samples of one stack.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProfileRow {
    /// Function names, innermost first. Empty if no function of the stack has a name.
    pub(crate) stack: Vec<Symbol>,
    pub(crate) value: i64,
    /// Square of the standard error of `value`.
    pub(crate) variance: f64,
}

/// The samples with one value of a label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LabelTotal {
    pub(crate) key: Symbol,
    pub(crate) label: Symbol,
    pub(crate) value: i64,
}

/// The rows of one function of the application.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SubjectTotal {
    /// Name of the function, as shown.
    pub(crate) subject: String,
    pub(crate) value: i64,
    /// Square of the standard error of `value`.
    pub(crate) variance: f64,
    /// The stack with the largest value.
    pub(crate) stack: Vec<Symbol>,
}

/// The way in which the samples of a profile are drawn, for the standard error.
#[derive(Clone, Copy, Debug)]
enum Sampling {
    /// One sample per `period` on average: time.
    Periodic { period: f64 },
    /// A block of `n` bytes is sampled with the probability `1 - exp(-n / rate)`.
    Blocks { rate: f64 },
    /// Every event is counted.
    Exact,
}

impl ProfileTable {
    /// Reduces the sample type called `sample_type` of a symbolized profile. Returns `None` if the
    /// profile has no such type.
    pub(crate) fn new(profile: &Profile, sample_type: &str) -> Option<Self> {
        let column = profile.sample_types.iter().position(|known| known.name == sample_type)?;
        let sampling = Sampling::of(profile, sample_type);
        let mut by_stack: HashMap<Option<StackHandle>, (i64, f64)> = HashMap::new();
        let mut table = Self { duration: profile.duration, ..Self::default() };
        let mut labels: HashMap<(Symbol, Symbol), i64> = HashMap::new();
        for sample in &profile.samples {
            let value = sample.values.get(column).copied().unwrap_or(0);
            if value == 0 {
                continue;
            }
            let variance = sampling.variance(value, block_size(profile, sample));
            let sum = by_stack.entry(sample.stack).or_default();
            sum.0 += value;
            sum.1 += variance;
            table.total += value;
            table.variance += variance;
            for (key, label) in text_labels(profile, sample) {
                *labels.entry((key.into(), label.into())).or_default() += value;
            }
        }
        let mut names = FrameNames::new(profile);
        let mut by_name: HashMap<Vec<Symbol>, (i64, f64)> = HashMap::new();
        for (stack, (value, variance)) in by_stack {
            let sum = by_name.entry(names.stack(stack)).or_default();
            sum.0 += value;
            sum.1 += variance;
        }
        table.rows = by_name
            .into_iter()
            .map(|(stack, (value, variance))| ProfileRow { stack, value, variance })
            .collect();
        // Equal values are ordered by stack, so that the same samples give the same table.
        table.rows.sort_unstable_by(|a, b| {
            b.value.abs().cmp(&a.value.abs()).then_with(|| a.stack.cmp(&b.stack))
        });
        table.other = table.rows.iter().skip(MAX_ROWS).map(|row| row.value).sum();
        table.rows.truncate(MAX_ROWS);
        table.labels = labels
            .into_iter()
            .map(|((key, label), value)| LabelTotal { key, label, value })
            .collect();
        table.labels.sort_unstable_by(|a, b| {
            b.value.cmp(&a.value).then_with(|| (&a.key, &a.label).cmp(&(&b.key, &b.label)))
        });
        table.labels.truncate(MAX_LABELS);
        Some(table)
    }

    /// Returns the values by function of the application, the largest first. Rows whose stack has
    /// no name are left out.
    pub(crate) fn by_subject(&self) -> Vec<SubjectTotal> {
        by_subject(self.rows.iter().map(|row| Term { row, value: row.value }))
    }

    /// Returns the values of this table minus those of `earlier`, by function of the application,
    /// the largest growth first. The variances are added: a block that lives in both tables counts
    /// twice, so the standard error is an upper bound.
    pub(crate) fn growth_since(&self, earlier: &Self) -> Vec<SubjectTotal> {
        let now = self.rows.iter().map(|row| Term { row, value: row.value });
        by_subject(now.chain(earlier.rows.iter().map(|row| Term { row, value: -row.value })))
    }

    /// Returns the label of `key` with the largest value, and that value.
    pub(crate) fn top_label(&self, key: &str) -> Option<(&Symbol, i64)> {
        let top = self.labels.iter().find(|total| &*total.key == key)?;
        Some((&top.label, top.value))
    }
}

/// A row in a sum.
struct Term<'a> {
    row: &'a ProfileRow,
    value: i64,
}

/// The terms of one function, and the largest of them.
struct TermSum<'a> {
    value: i64,
    variance: f64,
    largest: Term<'a>,
}

/// Adds up `terms` by function of the application. Only the stacks of the result are copied, since
/// the memory of the process may be nearly exhausted.
fn by_subject<'a>(terms: impl Iterator<Item = Term<'a>>) -> Vec<SubjectTotal> {
    let mut sums: HashMap<&str, TermSum<'a>> = HashMap::new();
    for term in terms {
        let Some(name) = application_frame(&term.row.stack) else { continue };
        let Term { row, value } = term;
        match sums.entry(display_name(name)) {
            Entry::Vacant(entry) => {
                entry.insert(TermSum { value, variance: row.variance, largest: term });
            }
            Entry::Occupied(mut entry) => {
                let sum = entry.get_mut();
                sum.value += value;
                sum.variance += row.variance;
                if value > sum.largest.value {
                    sum.largest = term;
                }
            }
        }
    }
    let totals = sums.into_iter().map(|(subject, sum)| SubjectTotal {
        subject: subject.to_owned(),
        value: sum.value,
        variance: sum.variance,
        stack: sum.largest.row.stack.clone(),
    });
    let mut totals: Vec<SubjectTotal> = totals.collect();
    totals.sort_unstable_by(|a, b| b.value.cmp(&a.value).then_with(|| a.subject.cmp(&b.subject)));
    totals
}

impl Sampling {
    fn of(profile: &Profile, sample_type: &str) -> Self {
        let period = profile.period as f64;
        match (profile.period_type.name, sample_type) {
            ("space", "inuse_space" | "alloc_space") => Self::Blocks { rate: period },
            ("cpu", "cpu") | ("wall", "wall") => Self::Periodic { period },
            _ => Self::Exact,
        }
    }

    /// Returns the square of the standard error of `value`, which is a sum of equal samples.
    fn variance(self, value: i64, block_size: Option<i64>) -> f64 {
        let value = value.unsigned_abs() as f64;
        match self {
            Self::Exact => 0.0,
            // n samples of one period each, and the variance of n is n.
            Self::Periodic { period } => value * period,
            // n samples of the weight w = size / p each. The variance of n is n * (1 - p).
            Self::Blocks { rate } => {
                let size = block_size.unwrap_or(1).max(1) as f64;
                if rate <= 1.0 {
                    return 0.0;
                }
                let probability = -f64::exp_m1(-size / rate);
                value * size / probability * (1.0 - probability)
            }
        }
    }
}

fn block_size(profile: &Profile, sample: &Sample) -> Option<i64> {
    sample.labels.iter().find_map(|label| match label.value {
        LabelValue::Number(size, _) if profile.strings.get(label.key) == "bytes" => Some(size),
        _ => None,
    })
}

/// Returns the labels that say for whom the sample was: keys and values.
fn text_labels<'a>(
    profile: &'a Profile,
    sample: &'a Sample,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    sample.labels.iter().filter_map(|label| {
        let key = profile.strings.get(label.key);
        match label.value {
            LabelValue::Text(text) if matches!(key, "task" | "span" | "thread") => {
                Some((key, profile.strings.get(text)))
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::ValueType;

    const SPACE: ValueType = ValueType { name: "inuse_space", unit: "bytes" };
    const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

    /// A profile with one sample for each `(names, value)`, innermost function first.
    fn profile(
        sample_type: ValueType,
        period_type: &'static str,
        rows: &[(&[&str], i64)],
    ) -> Profile {
        let period_type = ValueType { name: period_type, unit: sample_type.unit };
        let mut profile = Profile::new(&[sample_type], period_type, 1000, Timestamp::UNIX_EPOCH);
        for (names, value) in rows {
            let addresses: Vec<u64> = names
                .iter()
                .map(|name| name.bytes().fold(7, |hash, byte| hash * 31 + u64::from(byte)))
                .collect();
            let stack = profile.intern_stack(&addresses);
            for (&address, name) in addresses.iter().zip(*names) {
                let frame = profile.frames.intern(address);
                profile.name_frame(frame, name);
            }
            let size = profile.number_label("bytes", 100, "bytes");
            profile.samples.push(Sample { stack, values: vec![*value], labels: vec![size] });
        }
        profile
    }

    #[test]
    fn rows_are_sums_by_stack_in_descending_order() {
        let rows: &[(&[&str], i64)] =
            &[(&["a::x", "a::main"], 5), (&["a::y", "a::main"], 7), (&["a::x", "a::main"], 4)];
        let table = ProfileTable::new(&profile(CPU, "cpu", rows), "cpu").unwrap();
        let values: Vec<i64> = table.rows.iter().map(|row| row.value).collect();
        assert_eq!((table.total, values), (16, vec![9, 7]));
        assert_eq!(table.variance, 16.0 * 1000.0, "nanoseconds times the period");
        assert_eq!(ProfileTable::new(&profile(CPU, "cpu", rows), "wall"), None);
    }

    #[test]
    fn growth_is_summed_by_function_of_the_application() {
        let before: &[(&[&str], i64)] = &[(&["malloc", "a::grow"], 10), (&["a::shrink"], 50)];
        let after: &[(&[&str], i64)] =
            &[(&["malloc", "a::grow"], 30), (&["alloc::x", "a::grow"], 5), (&["a::shrink"], 20)];
        let table =
            |rows| ProfileTable::new(&profile(SPACE, "space", rows), "inuse_space").unwrap();
        let growth = table(after).growth_since(&table(before));
        let values: Vec<_> = growth.iter().map(|row| (&*row.subject, row.value)).collect();
        assert_eq!(values, [("a::grow", 25), ("a::shrink", -30)]);
        assert_eq!(*growth[0].stack[0], *"malloc", "the stack with the largest value");
    }

    #[test]
    fn variance_of_blocks_follows_from_their_probability() {
        // 100 of 1000 bytes: sampled with 9.5 %, so one sample stands for 1051 bytes.
        let sampling = Sampling::Blocks { rate: 1000.0 };
        let weight = 100.0 / (1.0 - (-0.1_f64).exp());
        let variance = sampling.variance(10 * 1051, Some(100));
        let expected = 10.0 * 1051.0 * weight * (-0.1_f64).exp();
        assert!((variance / expected - 1.0).abs() < 1e-9, "{variance} {expected}");
        assert_eq!(Sampling::Blocks { rate: 1.0 }.variance(5, Some(1)), 0.0, "all are sampled");
    }
}
