//! The layer for `tracing`'s spans and events.
//!
//! A slice is one enter and exit of a span on one thread, so the span of a future has a slice per
//! poll. The fields of a span are formatted once, when it is created *while a session runs*. They
//! are kept in the span's extensions (`tracing-subscriber`), so each poll costs only a reference
//! count. A span created while nothing records has its name, target and level, and only the fields
//! set during the session. Keeping the fields of every span for a capture that may never come is
//! not cheap.

use std::sync::Arc;

use tracing::field::Visit;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::budget::is_exhausted;
use super::fields::FieldList;
use super::loss::LossCause;
use super::recorder;
use super::sources;
use crate::trace::span_log::{EndOutcome, LogPages, Source};

/// Creates the layer that records spans and events in the runtime trace. Add it once to the
/// service's subscriber:
///
/// ```
/// use tracing_subscriber::prelude::*;
///
/// tracing_subscriber::registry()
///     .with(tracing_subscriber::fmt::layer())
///     .with(marple::trace::layer())
///     .with(tracing_subscriber::filter::LevelFilter::INFO)
///     .init();
/// ```
///
/// It records what the subscriber enables. If filters are set on single layers, this layer needs a
/// filter too (`layer().with_filter(…)`): a layer without a filter enables every call site of the
/// program, even while no capture runs.
pub fn layer() -> Layer {
    Layer(())
}

/// A `tracing-subscriber` layer that records spans and events; created by [`layer()`].
#[derive(Debug)]
pub struct Layer(());

/// A span's fields, stored in its extensions.
struct SpanFields(Arc<FieldList>);

impl<S> tracing_subscriber::Layer<S> for Layer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_layer(&mut self, _: &mut S) {
        sources::mark_layer_installed();
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(session) = recorder::session() {
            store_fields(session, context.span(id), |visitor| attributes.record(visitor));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(session) = recorder::session() {
            store_fields(session, context.span(id), |visitor| values.record(visitor));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        if let Some(span) = context.span(id) {
            let source = span_source(&span);
            recorder::record(session, |pages| pages.begin(id.into_u64(), source));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        let outcome = recorder::record(session, |pages| pages.end(id.into_u64()));
        if outcome == Some(EndOutcome::Preexisting)
            && let Some(span) = context.span(id)
        {
            let source = span_source(&span);
            recorder::record(session, |pages| pages.end_preexisting(id.into_u64(), source));
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        if is_exhausted(session) {
            recorder::record(session, LogPages::count_over_budget);
            return;
        }
        let mut omitted = 0;
        let fields = FieldList::collect(None, &mut omitted, |visitor| event.record(visitor));
        recorder::count_lost(LossCause::Fields, omitted);
        recorder::record(session, |pages| pages.instant(event.metadata(), fields));
    }
}

/// Returns the call site and the fields of a span's slices.
fn span_source<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Source {
    let fields = span.extensions().get().map(|SpanFields(fields)| Arc::clone(fields));
    Source { site: span.metadata(), fields }
}

/// Stores the fields that `record` reports in the span, merged with the fields it already has.
fn store_fields<'a, S: LookupSpan<'a>>(
    session: u64,
    span: Option<SpanRef<'a, S>>,
    record: impl FnOnce(&mut dyn Visit),
) {
    let Some(span) = span.filter(|_| !is_exhausted(session)) else {
        return;
    };
    let earlier = span.extensions().get().map(|SpanFields(fields)| Arc::clone(fields));
    let mut omitted = 0;
    let fields = FieldList::collect(earlier.as_deref(), &mut omitted, record);
    recorder::count_lost(LossCause::Fields, omitted);
    if let Some(fields) = fields.filter(|fields| recorder::charge_fields(session, fields)) {
        span.extensions_mut().replace(SpanFields(fields));
    }
}
