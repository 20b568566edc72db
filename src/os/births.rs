//! Threads that tell of their own beginning.
//!
//! Whoever has to know all threads lists them now and then, and a thread may be over by then. Where a runtime's
//! hook calls [`tell`] in each new thread, he looks at once.

use crate::base::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Ear = Box<dyn Fn() + Send>;

/// Whoever listens, by the number of its [`Listening`].
static EAR: Mutex<Option<(u64, Ear)>> = Mutex::new(None);

/// Whether the next birth is to be told.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The calling thread has begun. A load while nobody wants to know it. Waits for nobody: of two that begin at once
/// one may stay untold.
pub fn tell() {
    if !WANTED.load(Ordering::Relaxed) || !WANTED.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Ok(ear) = EAR.try_lock()
        && let Some((_, hear)) = &*ear
    {
        hear();
    }
}

/// The next birth is to be told; those after it are not, until this is called again.
pub fn want() {
    WANTED.store(true, Ordering::Release);
}

/// Lets `hear` be called, on the thread that begins, at each birth that is [wanted](want), for as long as what is
/// returned lives. It should be short. There is one listener: a later one takes the place of an earlier.
pub fn listen(hear: impl Fn() + Send + 'static) -> Listening {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let ear: Ear = Box::new(hear);
    let before = EAR.lock().unwrap_or_else(PoisonError::into_inner).replace((number, ear));
    drop(before);
    Listening(number)
}

/// Dropping it ends that, unless another has taken the place.
#[derive(Debug)]
#[must_use = "nobody listens once it is dropped"]
pub struct Listening(u64);

impl Drop for Listening {
    fn drop(&mut self) {
        let own = |ear: &mut (u64, Ear)| ear.0 == self.0;
        let ear = EAR.lock().unwrap_or_else(PoisonError::into_inner).take_if(own);
        drop(ear);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_birth_is_told_once_for_each_time_it_is_wanted() {
        let heard = Arc::new(AtomicU32::new(0));
        let told = |by: &dyn Fn()| {
            let before = heard.load(Ordering::Relaxed);
            by();
            heard.load(Ordering::Relaxed) - before
        };
        let earlier = listen(|| panic!("another has taken the place"));
        let listening = listen({
            let heard = Arc::clone(&heard);
            move || _ = heard.fetch_add(1, Ordering::Relaxed)
        });
        // As a recorder that ends while the next one begins.
        drop(earlier);
        assert_eq!(told(&tell), 0, "nobody has asked");
        want();
        assert_eq!(told(&|| (0..3).for_each(|_| tell())), 1);
        want();
        assert_eq!(told(&tell), 1);
        want();
        drop(listening);
        want();
        assert_eq!(told(&tell), 0, "nobody listens");
    }
}
