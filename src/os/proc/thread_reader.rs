//! State and stack of another thread, read through `/proc` without its cooperation.
//!
//! ```text
//! stat, wchan     name, state, kernel function it waits in
//! schedstat       number of timeslices: if unchanged, the thread has not run since
//! syscall         of a sleeping thread: stack pointer and instruction pointer
//! /proc/self/mem  its stack, which is ordinary memory while the thread sleeps
//! ```
//!
//! A thread that sleeps in the kernel needs no signal to read its stack. The copy is consistent if
//! the thread got no core between the reads of schedstat before and after it:
//! [`ProcThreadReader::read_sleeping_stack`] checks this. Only these two registers are available.
//! Unwinding needs others only if a frame is addressed by a frame pointer that no inner frame has
//! saved. The walk then stops, and a signal is needed.

use crate::base::spare;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};

pub use super::thread::SchedStat;
use super::thread::Thread;
use super::thread_list::{TASKS, read_thread_file};
use super::threads;
use crate::os::own_memory;
use crate::os::stack_snapshot::Registers;

/// Invalid frame pointer, so that a walk that needs the real one stops.
const INVALID_FRAME_POINTER: u64 = 1;

/// A reader of the state and stack of threads.
pub struct ProcThreadReader {
    tasks: OwnedFd,
    bytes: Vec<u8>,
}

impl ProcThreadReader {
    /// Opens the directory of the threads.
    ///
    /// # Errors
    ///
    /// Returns a text if threads cannot be inspected.
    pub fn open() -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tasks = spare::open_with_retry(|| open(TASKS, flags, Mode::empty()))
            .map_err(|error| format!("cannot open {TASKS}: {error}"))?;
        let reader = Self { tasks, bytes: Vec::new() };
        match reader.sched_stat(threads::current_tid()) {
            Some(sched_stat) if sched_stat.timeslices > 0 => Ok(reader),
            None => Err(format!(
                "cannot read {TASKS}/*/schedstat: too many files are open, or /proc does not have \
                 the file"
            )),
            _ => Err(format!(
                "{TASKS}/*/schedstat does not count timeslices (CONFIG_SCHED_INFO), so each sample \
                 would wake sleeping threads"
            )),
        }
    }

    /// Returns the state of a thread and its scheduler statistics just before, or `None` if the
    /// thread has exited.
    pub fn thread_state(&self, tid: u32) -> Option<(Thread, SchedStat)> {
        let stat = self.sched_stat(tid)?;
        Some((threads::read_thread(&self.tasks, tid)?, stat))
    }

    /// Returns the scheduler statistics of a thread.
    pub fn sched_stat(&self, tid: u32) -> Option<SchedStat> {
        let mut buffer = [0; 128];
        let text = read_thread_file(&self.tasks, tid, "schedstat", &mut buffer)?;
        let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<u64>().ok();
        Some(SchedStat {
            cpu_time: Duration::from_nanos(next()?),
            run_delay: Duration::from_nanos(next()?),
            timeslices: next()?,
        })
    }

    /// Copies the stack of a sleeping thread, up to `bytes` from the stack pointer up, to `stack`.
    ///
    /// Returns registers whose frame pointer is invalid. Returns `None` if the thread has run since
    /// `runs` or runs before the copy is complete. Always `None` on aarch64: a leaf's return
    /// address is in a register that the kernel does not report.
    pub fn read_sleeping_stack(
        &mut self,
        tid: u32,
        before: SchedStat,
        bytes: usize,
        stack: &mut Vec<u64>,
    ) -> Option<Registers> {
        if cfg!(not(target_arch = "x86_64")) {
            return None;
        }
        let mut buffer = [0; 512];
        let text = read_thread_file(&self.tasks, tid, "syscall", &mut buffer)?;
        let registers = parse(std::str::from_utf8(text).ok()?)?;
        self.bytes.resize(bytes, 0);
        // The read ends at the end of the mapping.
        let copied_bytes = own_memory::read(registers.sp, &mut self.bytes);
        if copied_bytes == 0 {
            return None;
        }
        if self.sched_stat(tid)?.timeslices != before.timeslices {
            return None;
        }
        stack.clear();
        let words = self.bytes.get(..copied_bytes)?.chunks_exact(8);
        stack.extend(words.filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?))));
        Some(registers)
    }
}

/// Parses `45 0x3 … 0xSP 0xPC`, `-1 0xSP 0xPC` (outside of a system call) or `running`.
fn parse(syscall: &str) -> Option<Registers> {
    let mut last = syscall.split_ascii_whitespace().rev();
    let mut address = || u64::from_str_radix(last.next()?.strip_prefix("0x")?, 16).ok();
    let ip = address()?;
    let sp = address()?;
    (ip != 0 && sp != 0).then_some(Registers { ip, sp, fp: INVALID_FRAME_POINTER, lr: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syscall_file_is_parsed_into_registers() {
        let registers =
            parse("45 0x3 0x7f 0x1 0x0 0x0 0x0 0x7f1019ae4a10 0x7f101a128974\n").unwrap();
        assert_eq!((registers.sp, registers.ip), (0x7f10_19ae_4a10, 0x7f10_1a12_8974));
        assert_eq!(parse("-1 0x10 0x20").unwrap().ip, 0x20);
        for none in ["running\n", "", "45", "-1 0x0 0x0"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn calling_thread_is_running_and_has_timeslices() {
        let reader = ProcThreadReader::open().unwrap();
        let own = threads::current_tid();
        let (thread, stat) = reader.thread_state(own).unwrap();
        assert_eq!(thread.state, 'R');
        assert!(stat.timeslices > 0);
        assert!(reader.thread_state(u32::MAX).is_none());
    }
}
