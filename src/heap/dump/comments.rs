//! The comments of a heap profile: its rate, its totals and their errors.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use super::{HeapDump, InUse};
use crate::base::Bytes;
use crate::heap::recorder::{CUMULATIVE, LIVE_BLOCKS, LOSSES, bytes_by_rate, effective_rate};
use crate::heap::{live, rate, thread};
use crate::model::Marker;

impl HeapDump<'_> {
    /// Passes comments for the reader, one line each, to `visit`. Valid after
    /// [`Self::visit_samples`].
    pub fn visit_comments<E>(
        &self,
        mut visit: impl FnMut(fmt::Arguments<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let by_rate = bytes_by_rate();
        match rate() {
            Bytes(0) => visit(format_args!("heap sampling is off"))?,
            Bytes(1) => visit(format_args!(
                "heap: every allocation is recorded, because the rate is 1; about {} bytes \
                 allocated at an earlier rate are estimated from samples",
                by_rate.estimated
            ))?,
            Bytes(rate) => {
                visit(format_args!("heap: one sample in {rate} bytes allocated, on average"))?;
            }
        }
        let coarser = Bytes(effective_rate());
        if coarser != rate() {
            visit(format_args!(
                "heap: the table of live blocks holds {} of {} entries; the effective rate is one \
                 sample in {} bytes",
                LIVE_BLOCKS.len(),
                live::TOTAL_KEYS,
                coarser.get()
            ))?;
        }
        let InUse { records, bytes, variance, exact, table_full } = self.in_use;
        let error = variance.sqrt();
        visit(format_args!(
            "heap: {bytes:.0} bytes in use, standard error {error:.0} ({:.1} %), \
             from {records} samples",
            percent(error, bytes)
        ))?;
        if rate() == Bytes(1) {
            visit(format_args!(
                "heap: of the bytes in use, {} in {} blocks are exact; the others are estimated \
                 from samples at a coarser rate",
                exact.bytes(),
                exact.objects()
            ))?;
        }
        if table_full.bytes() > 0 {
            visit(format_args!(
                "heap: {} of the bytes in use are attributed to {}: too many stacks with live \
                 blocks for the tables",
                table_full.bytes(),
                Marker::TablesFull.name()
            ))?;
        }
        let (samples, error) = CUMULATIVE.totals();
        let objects = self.allocated.objects();
        let bytes = self.allocated.bytes();
        let source_note =
            if rate() == Bytes(1) { ", all of it from samples at a coarser rate" } else { "" };
        visit(format_args!(
            "heap: since program start: {objects} blocks and {bytes} bytes allocated, standard \
             error {error:.0} ({:.1} %){source_note}, from {samples} samples",
            percent(error, bytes as f64)
        ))?;
        let (counted, unreported) = thread::allocated_bytes();
        visit(format_args!(
            "heap: counted, not sampled: {counted} bytes allocated since program start, plus up to \
             {unreported} that threads have not reported yet or did not report before they ended"
        ))?;
        if by_rate.unsampled > 0 {
            visit(format_args!(
                "heap: about {} of the counted bytes were allocated while sampling was off; no \
                 sample represents them",
                by_rate.unsampled
            ))?;
        }
        match (LOSSES.dropped.load(Relaxed), LOSSES.dropped_bytes.load(Relaxed)) {
            (0, _) => visit(format_args!("heap: no sample was dropped"))?,
            (samples, bytes) => visit(format_args!(
                "heap: {samples} samples were dropped and represent {bytes} bytes: up to that many \
                 more bytes may be in use"
            ))?,
        }
        Ok(())
    }
}

/// Returns `part` as a percentage of `total`.
fn percent(part: f64, total: f64) -> f64 {
    if total > 0.0 { part / total * 100.0 } else { 0.0 }
}
