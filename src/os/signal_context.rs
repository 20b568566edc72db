//! What a signal handler reads of the machine.

#![allow(unsafe_code)]

use std::arch::asm;

use super::copied::Registers;

/// The registers of the interrupted code.
#[cfg(target_arch = "x86_64")]
pub(super) fn registers(context: &libc::ucontext_t) -> Registers {
    let [fp, sp, ip] = [libc::REG_RBP, libc::REG_RSP, libc::REG_RIP]
        .map(|register| context.uc_mcontext.gregs.get(register as usize).map_or(0, |&r| r as u64));
    Registers { ip, sp, fp, lr: 0 }
}

/// The registers of the interrupted code.
#[cfg(target_arch = "aarch64")]
pub(super) fn registers(context: &libc::ucontext_t) -> Registers {
    let machine = &context.uc_mcontext;
    let [fp, lr] = [29, 30].map(|register| machine.regs.get(register).copied().unwrap_or(0));
    Registers { ip: machine.pc, sp: machine.sp, fp, lr }
}

/// The running thread's pointer to what libc keeps of it.
#[inline]
pub(super) fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: reads a word that every thread has: on x86_64 by the psABI the pointer itself stands at
    // the start of what it leads to.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, fs:[0]", out(reg) pointer, options(readonly, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// The word at `address`.
///
/// # Safety
///
/// It must be mapped and aligned.
#[inline]
pub(super) unsafe fn read_word(address: u64) -> u64 {
    let word: u64;
    // SAFETY: the caller's. Read by an instruction of our own, because to the language the bytes may be
    // padding or belong to a live `&mut`.
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
    word
}
