//! The numbers and layouts of `linux/perf_event.h`, which are only ever extended.

use crate::os::stack_snapshot::Registers;

pub(super) const TYPE_SOFTWARE: u32 = 1;
pub(super) const CONFIG_CPU_CLOCK: u64 = 0;
pub(super) const SAMPLE_TID: u64 = 1 << 1;
pub(super) const SAMPLE_TIME: u64 = 1 << 2;
pub(super) const SAMPLE_REGS_USER: u64 = 1 << 12;
pub(super) const SAMPLE_STACK_USER: u64 = 1 << 13;
pub(super) const EXCLUDE_KERNEL: u64 = 1 << 5;
pub(super) const EXCLUDE_HV: u64 = 1 << 6;
pub(super) const WATERMARK: u64 = 1 << 14;
pub(super) const USE_CLOCKID: u64 = 1 << 25;
pub(super) const CLOCK_MONOTONIC: i32 = 1;
pub(super) const FLAG_FD_CLOEXEC: u64 = 8;
pub(super) const RECORD_LOST: u32 = 2;
pub(super) const RECORD_SAMPLE: u32 = 9;
/// `_IOW('$', 4, __u64)`
pub(super) const IOC_PERIOD: u64 = 0x4008_2404;

/// Offsets in the first page of a ring.
pub(super) const DATA_HEAD: usize = 1024;
pub(super) const DATA_TAIL: usize = 1032;

/// Bits of `sample_regs_user`, in the order of the registers in a sample.
#[cfg(target_arch = "x86_64")]
pub(super) const SAMPLE_REGISTERS: u64 = 1 << 6 | 1 << 7 | 1 << 8;
#[cfg(target_arch = "aarch64")]
pub(super) const SAMPLE_REGISTERS: u64 = 1 << 29 | 1 << 30 | 1 << 31 | 1 << 32;

pub(super) fn decode_registers(word: impl Fn(u64) -> u64) -> Registers {
    #[cfg(target_arch = "x86_64")]
    return Registers { fp: word(0), sp: word(1), ip: word(2), lr: 0 };
    #[cfg(target_arch = "aarch64")]
    return Registers { fp: word(0), lr: word(1), sp: word(2), ip: word(3) };
}

/// `struct perf_event_attr`, version 5.
#[repr(C)]
#[derive(Default)]
pub(super) struct EventAttributes {
    pub(super) kind: u32,
    pub(super) size: u32,
    pub(super) config: u64,
    pub(super) sample_period: u64,
    pub(super) sample_type: u64,
    pub(super) read_format: u64,
    pub(super) flags: u64,
    pub(super) wakeup_watermark: u32,
    pub(super) bp_type: u32,
    pub(super) config1: u64,
    pub(super) config2: u64,
    pub(super) branch_sample_type: u64,
    pub(super) sample_regs_user: u64,
    pub(super) sample_stack_user: u32,
    pub(super) clockid: i32,
    pub(super) sample_regs_intr: u64,
    pub(super) aux_watermark: u32,
    pub(super) sample_max_stack: u16,
    pub(super) reserved: u16,
}
