//! Panics of host code that marple calls: caught, and returned as a message.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`, which is host code. A panic is returned as an error.
///
/// # Errors
///
/// Returns the panic's message.
pub(crate) fn catch_host_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic_message(&*panic).unwrap_or("(no message)").to_owned();
        // The payload can be of any type, so dropping it may panic too.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        message
    })
}

/// Returns the message of a panic, or `None` if its payload is not a string.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str))
}
