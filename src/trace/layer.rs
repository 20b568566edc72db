//! `tracing`'s spans and events.
//!
//! A slice is one stay in a span on one thread, from enter to exit, so a future's span shows each of its
//! polls. The fields of a span are formatted once, when it is made *while a session runs*, and kept with the
//! span (`tracing-subscriber`'s extensions); a poll then costs a reference count. A span made while nothing
//! records has its name, target and level, and no fields but those set during the session: keeping the
//! fields of every span for a capture that may never come is not cheap.

use std::sync::Arc;

use tracing::field::Visit;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::budget::is_spent;
use super::fields::Fields;
use super::log::{Ended, Pages, Source};
use super::loss::Cause;
use super::recorder;

/// Puts spans and events into the runtime trace. Add it to the service's subscriber, once:
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
/// It shows what the subscriber lets through. Where filters stand on single layers, give it one as well
/// (`layer().with_filter(…)`): a layer without one turns every call site of the program on, whether or not
/// a capture runs.
pub fn layer() -> Layer {
    Layer(())
}

/// See [`layer()`].
#[derive(Debug)]
pub struct Layer(());

/// A span's fields, as its extension.
struct SpanFields(Arc<Fields>);

impl<S> tracing_subscriber::Layer<S> for Layer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_layer(&mut self, _: &mut S) {
        recorder::layer_installed();
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(session) = recorder::session() {
            keep(session, context.span(id), |visitor| attributes.record(visitor));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(session) = recorder::session() {
            keep(session, context.span(id), |visitor| values.record(visitor));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        if let Some(span) = context.span(id) {
            let source = source(&span);
            recorder::record(session, |pages| pages.begin(id.into_u64(), source));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        let ended = recorder::record(session, |pages| pages.end(id.into_u64()));
        if ended == Some(Ended::Older)
            && let Some(span) = context.span(id)
        {
            let source = source(&span);
            recorder::record(session, |pages| pages.end_older(id.into_u64(), source));
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(session) = recorder::session() else {
            return;
        };
        if is_spent(session) {
            recorder::record(session, Pages::refuse);
            return;
        }
        let mut left_out = 0;
        let fields = Fields::gather(None, &mut left_out, |visitor| event.record(visitor));
        recorder::count(Cause::Fields, left_out);
        recorder::record(session, |pages| pages.instant(event.metadata(), fields));
    }
}

/// What a span's slices show.
fn source<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Source {
    let fields = span.extensions().get().map(|SpanFields(fields)| Arc::clone(fields));
    Source { site: span.metadata(), fields }
}

/// Keeps the fields that `record` tells with their span, besides those it has.
fn keep<'a, S: LookupSpan<'a>>(
    session: u64,
    span: Option<SpanRef<'a, S>>,
    record: impl FnOnce(&mut dyn Visit),
) {
    let Some(span) = span.filter(|_| !is_spent(session)) else {
        return;
    };
    let earlier = span.extensions().get().map(|SpanFields(fields)| Arc::clone(fields));
    let mut left_out = 0;
    let fields = Fields::gather(earlier.as_deref(), &mut left_out, record);
    recorder::count(Cause::Fields, left_out);
    if let Some(fields) = fields.filter(|fields| recorder::keep(session, fields)) {
        span.extensions_mut().replace(SpanFields(fields));
    }
}
