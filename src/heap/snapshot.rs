//! The tables as a profile.
//!
//! Live records are read first and the cumulative counts after them, so that nothing is in use that was
//! never allocated. Two snapshots at once do not know of each other: each reads.

use std::sync::atomic::Ordering::Relaxed;

use jiff::Timestamp;

use super::recorder::{LIVE, LOST, SITES, STACKS};
use super::sites::{ANY_SIZE, Amount, Site};
use super::{Error, exclude_current_thread, installed, rate};
use crate::base::Bytes;
use crate::model::{Losses, Profile, Sample, ValueType};
use crate::os::{images, unwind};

/// Go's four, in Go's order.
const SAMPLE_TYPES: [ValueType; 4] = [
    ValueType { name: "alloc_objects", unit: "count" },
    ValueType { name: "alloc_space", unit: "bytes" },
    ValueType { name: "inuse_objects", unit: "count" },
    ValueType { name: "inuse_space", unit: "bytes" },
];

const PERIOD_TYPE: ValueType = ValueType { name: "space", unit: "bytes" };

/// The heap profile at this moment, which is `now` on the wall: Go's four sample types, `inuse_space`
/// shown first, `alloc_*` since the program began, one sample for each stack and block size (the label
/// `bytes`). Totals are unbiased estimates; the comments give the standard error of the bytes in use.
///
/// Costs about a microsecond a live sample, on the calling thread, whose own allocations meanwhile are
/// not in it; other threads are not stopped. May be called by several threads at once.
///
/// # Errors
///
/// [`Error::NotInstalled`] when the program's allocator is not [`crate::Allocator`], [`Error::Images`]
/// when `/proc` cannot be read.
pub fn snapshot(now: Timestamp) -> Result<Profile, Error> {
    let _excluded = exclude_current_thread();
    if !installed() {
        return Err(Error::NotInstalled);
    }
    // For the stacks to come; the addresses of those that were taken are what they are.
    unwind::refresh()?;
    let in_use = InUse::read();
    let mut profile = Profile::new(&SAMPLE_TYPES, PERIOD_TYPE, rate().get() as i64, now);
    profile.default_sample_type = "inuse_space";
    for (id, site) in SITES.iter() {
        let in_use = in_use.by_site.get(id as usize).copied().unwrap_or_default();
        push(&mut profile, &site, in_use);
    }
    profile.attach_mappings(images::loaded()?);
    profile.losses = losses();
    profile.comments = comments(&profile, &in_use);
    Ok(profile)
}

/// What the live records say, by the id of their site.
#[derive(Default)]
struct InUse {
    by_site: Vec<Amount>,
    records: u64,
    bytes: f64,
    variance: f64,
}

impl InUse {
    fn read() -> Self {
        let mut sums = Self::default();
        LIVE.for_each(|record| {
            let site = record.site as usize;
            if sums.by_site.len() <= site {
                sums.by_site.resize(site + 1, Amount::default());
            }
            if let Some(sum) = sums.by_site.get_mut(site) {
                sum.add(Amount::of(&record));
            }
            let size = record.size as f64;
            sums.records += 1;
            sums.bytes += size * record.weight;
            // Horvitz and Thompson's estimate of their own variance: (1 - p)/p^2 with p = 1/weight.
            sums.variance += size * size * record.weight * (record.weight - 1.0);
        });
        sums
    }
}

fn push(profile: &mut Profile, site: &Site, in_use: Amount) {
    let addresses: Vec<u64> =
        STACKS.get(site.stack).map(|stack| stack.collect()).unwrap_or_default();
    let stack = profile.intern_stack(&addresses);
    let labels = match site.size {
        ANY_SIZE => Vec::new(),
        size => vec![profile.number_label("bytes", size as i64, "bytes")],
    };
    let allocated = site.allocated;
    let values = vec![allocated.objects(), allocated.bytes(), in_use.objects(), in_use.bytes()];
    profile.samples.push(Sample { stack, values, labels });
}

fn losses() -> Losses {
    let mut losses = Losses::default();
    for (cause, count) in [
        ("heap samples dropped: the tables are full", &LOST.dropped),
        ("heap stacks unknown: loaded files not read yet", &LOST.stack_not_ready),
        ("heap stacks unknown: too many threads unwinding at once", &LOST.stack_busy),
        (
            "heap stacks unknown: not on the thread's own stack, or near its end",
            &LOST.stack_foreign,
        ),
        ("heap stacks unknown: the stack table is full", &LOST.stack_table_full),
        ("heap stacks cut at the outer end: deeper than 128 frames", &LOST.truncated),
        ("heap stacks cut at the outer end: no unwind information", &LOST.broken),
    ] {
        losses.add(cause, count.load(Relaxed));
    }
    losses
}

fn comments(profile: &Profile, in_use: &InUse) -> Vec<String> {
    let error = in_use.variance.sqrt();
    let share = if in_use.bytes > 0.0 { error / in_use.bytes * 100.0 } else { 0.0 };
    let mut comments = vec![
        match rate() {
            Bytes(0) => "heap sampling is off".to_owned(),
            Bytes(1) => "heap: every allocation is recorded".to_owned(),
            rate => format!("heap: one sample in {} bytes allocated, on average", rate.get()),
        },
        format!(
            "heap: {:.0} bytes in use, standard error {error:.0} ({share:.1} %), from {} samples",
            in_use.bytes, in_use.records
        ),
    ];
    comments.extend(profile.losses.iter().map(|loss| format!("{}: {}", loss.cause, loss.count)));
    comments
}
