//! Machine state read by a signal handler.

#![allow(unsafe_code, reason = "assembly that reads registers and copies stack words")]

use std::arch::asm;
use std::sync::atomic::AtomicU64;

use crate::os::stack_snapshot::Registers;

/// Returns the registers of the interrupted code.
#[cfg(target_arch = "x86_64")]
pub(crate) fn registers(context: &libc::ucontext_t) -> Registers {
    let [fp, sp, ip] = [libc::REG_RBP, libc::REG_RSP, libc::REG_RIP]
        .map(|register| context.uc_mcontext.gregs.get(register as usize).map_or(0, |&r| r as u64));
    Registers { ip, sp, fp, lr: 0 }
}

/// Returns the registers of the interrupted code.
#[cfg(target_arch = "aarch64")]
pub(crate) fn registers(context: &libc::ucontext_t) -> Registers {
    let machine = &context.uc_mcontext;
    let [fp, lr] = [29, 30].map(|register| machine.regs.get(register).copied().unwrap_or(0));
    Registers { ip: machine.pc, sp: machine.sp, fp, lr }
}

/// Returns the running thread's pointer to its libc thread descriptor.
#[inline]
pub(crate) fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: reads a word that every thread has: on x86_64 the psABI requires the first word at
    // the thread pointer to be the pointer itself.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, fs:[0]", out(reg) pointer, options(readonly, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// Copies `to.len()` words from `address` up.
///
/// # Safety
///
/// The words must be mapped and aligned, and nothing else may read or write `to` during the call.
#[inline]
pub(crate) unsafe fn copy_words(address: u64, to: &[AtomicU64]) {
    // SAFETY: required of the caller. Copied by inline assembly, because for the compiler the bytes
    // may be padding or belong to a live `&mut`. The kernel clears the direction flag for a
    // handler.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "rep movsq", inout("rcx") to.len() => _, inout("rsi") address => _,
            inout("rdi") to.as_ptr() => _, options(nostack, preserves_flags)
        );
    }
    #[cfg(target_arch = "aarch64")]
    for (index, place) in to.iter().enumerate() {
        let word: u64;
        // SAFETY: required of the caller; inline assembly for the same reason.
        unsafe {
            asm!(
                "ldr {word}, [{address}]", word = out(reg) word,
                address = in(reg) address + index as u64 * 8,
                options(readonly, nostack, preserves_flags)
            );
        }
        place.store(word, std::sync::atomic::Ordering::Relaxed);
    }
}
