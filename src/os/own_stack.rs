//! The running thread's registers and stack, as input of the unwinder.

#![allow(unsafe_code, reason = "assembly that reads registers and stack words, and `pthread_attr`")]

use std::arch::asm;
use std::cell::Cell;
use std::ops::Range;

use crate::os::stack_snapshot::Registers;

/// Returns the caller's registers. Always inlined: the frame described must still exist while it is
/// unwound.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub(crate) fn current_registers() -> Registers {
    let ip: u64;
    let sp: u64;
    let bp: u64;
    // SAFETY: reads three registers and writes nothing else.
    unsafe {
        asm!(
            "lea {ip}, [rip]",
            "mov {sp}, rsp",
            "mov {bp}, rbp",
            ip = out(reg) ip, sp = out(reg) sp, bp = out(reg) bp,
            options(nomem, nostack, preserves_flags),
        );
    }
    Registers { ip, sp, fp: bp, lr: 0 }
}

/// Returns the caller's registers. Always inlined: the frame described must still exist while it is
/// unwound.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(always)]
pub(crate) fn current_registers() -> Registers {
    let ip: u64;
    let sp: u64;
    let fp: u64;
    let lr: u64;
    // SAFETY: reads four registers and writes nothing else.
    unsafe {
        asm!(
            "adr {ip}, .",
            "mov {sp}, sp",
            "mov {fp}, x29",
            "mov {lr}, x30",
            ip = out(reg) ip, sp = out(reg) sp, fp = out(reg) fp, lr = out(reg) lr,
            options(nomem, nostack, preserves_flags),
        );
    }
    Registers { ip, sp, fp, lr }
}

/// Returns registers that lie on no stack: Miri cannot read them.
#[cfg(miri)]
pub(crate) fn current_registers() -> Registers {
    Registers { ip: 0, sp: 0, fp: 0, lr: 0 }
}

/// Returns the word at `address` if it is aligned and within `stack`.
///
/// # Safety
///
/// `stack` must be a part of the running thread's stack that is in use.
#[inline]
pub(crate) unsafe fn read_word(stack: &Range<u64>, address: u64) -> Result<u64, ()> {
    let end = address.checked_add(8).ok_or(())?;
    if address < stack.start || end > stack.end || !address.is_multiple_of(8) {
        return Err(());
    }
    let word: u64;
    // SAFETY: eight bytes of the thread's own stack, which is mapped while the thread runs. Read by
    // inline assembly, because for the compiler they may be padding or belong to a live `&mut`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "mov {word}, [{address}]", word = out(reg) word, address = in(reg) address,
            options(readonly, nostack, preserves_flags)
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "ldr {word}, [{address}]", word = out(reg) word, address = in(reg) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    Ok(word)
}

/// Returns the bounds of the running thread's stack, or `None` if libc cannot determine them.
///
/// Queried once per thread. libc allocates for the result (with C's malloc, never with the Rust
/// allocator that may be the caller) and reads `/proc/self/maps` for the main thread. Callers are
/// about to allocate or have just done so, and so may allocate. Signal handlers must not call this
/// function.
pub(crate) fn current_stack_bounds() -> Option<Range<u64>> {
    thread_local! {
        static BOUNDS: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }
    BOUNDS.with(|bounds| {
        if bounds.get() == (0, 0) {
            bounds.set(query_bounds().unwrap_or((u64::MAX, u64::MAX)));
        }
        let (start, end) = bounds.get();
        (start < end).then_some(start..end)
    })
}

#[cfg(all(target_os = "linux", not(miri)))]
fn query_bounds() -> Option<(u64, u64)> {
    use std::mem::MaybeUninit;
    use std::ptr;

    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the running thread is alive, and libc initialises the target of the pointer.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let mut start = ptr::null_mut();
    let mut size = 0;
    // SAFETY: initialised above; read once and destroyed once.
    let failed = unsafe {
        let failed = libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        failed
    };
    let start = start as u64;
    (failed == 0).then_some((start, start.checked_add(size as u64)?))
}

/// Returns `None`: without a list of loaded files no stack can be walked, nor under Miri without
/// registers.
#[cfg(any(not(target_os = "linux"), miri))]
fn query_bounds() -> Option<(u64, u64)> {
    None
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn stack_bounds_contain_locals_and_stack_pointer() {
        let local = 0x1122_3344_5566_7788u64;
        let address = &raw const local as u64;
        let bounds = current_stack_bounds().unwrap();
        assert!(bounds.contains(&address));
        assert!(bounds.contains(&current_registers().sp));
        // SAFETY: the bounds are this thread's.
        unsafe {
            assert_eq!(read_word(&bounds, address), Ok(local));
            assert_eq!(read_word(&bounds, address + 1), Err(()));
            assert_eq!(read_word(&bounds, bounds.end), Err(()));
            assert!(read_word(&bounds, bounds.end - 8).is_ok());
            assert_eq!(read_word(&(address..address + 8), address - 8), Err(()));
            assert_eq!(read_word(&bounds, u64::MAX - 7), Err(()));
        }
    }
}
