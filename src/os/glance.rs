//! What a thread does at the moment, and where it sleeps, without its taking part.
//!
//! ```text
//! stat, wchan     name, state, what it waits for
//! schedstat       how often it was given a core: unchanged, it has not run since
//! syscall         of one that sleeps: stack pointer and instruction
//! /proc/self/mem  its stack, which by then is memory as any other
//! ```
//!
//! A thread that sleeps in the kernel needs no signal to show its stack. The copy is of one moment when
//! the thread was given no core between the question before it and the one after: [`Eyes::asleep`] checks.
//! Of the registers only these two are told. Unwinding needs no others unless a frame is addressed by a
//! frame pointer that none further in has saved; the walk then breaks off, and a signal has to do.

use crate::base::spare;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};

use super::copied::Registers;
use super::own_memory;
use super::threads::{self, TASKS, Thread};

/// How much the kernel let a thread run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// CPU time, as of the kernel's last look at it.
    pub cpu: Duration,
    /// Time it waited for a core.
    pub waited: Duration,
    /// How often it was given one.
    pub turns: u64,
}

/// A frame pointer at which nothing can be, so that a walk that needs the real one breaks off.
const UNKNOWN: u64 = 1;

/// The open directory of the threads.
pub struct Eyes {
    tasks: OwnedFd,
    bytes: Vec<u8>,
}

impl Eyes {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// Why threads cannot be seen, in words.
    pub fn open() -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tasks = spare::with(|| open(TASKS, flags, Mode::empty()))
            .map_err(|error| format!("cannot open {TASKS}: {error}"))?;
        let eyes = Self { tasks, bytes: Vec::new() };
        match eyes.runs(threads::current()) {
            Some(runs) if runs.turns > 0 => Ok(eyes),
            None => Err(format!(
                "{TASKS}/*/schedstat cannot be read: too many files are open, or /proc does not have it"
            )),
            _ => Err(format!(
                "{TASKS}/*/schedstat does not tell whether a thread has run (CONFIG_SCHED_INFO), and \
                 without it those that sleep would be woken each time"
            )),
        }
    }

    /// What a thread does, and how often it had run just before; none when it has ended.
    pub fn look(&self, tid: u32) -> Option<(Thread, Runs)> {
        let runs = self.runs(tid)?;
        Some((threads::look(&self.tasks, tid)?, runs))
    }

    /// How much a thread has run.
    pub fn runs(&self, tid: u32) -> Option<Runs> {
        let mut buffer = [0; 128];
        let told = threads::read(&self.tasks, tid, "schedstat", &mut buffer)?;
        let mut numbers = std::str::from_utf8(told).ok()?.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<u64>().ok();
        Some(Runs {
            cpu: Duration::from_nanos(next()?),
            waited: Duration::from_nanos(next()?),
            turns: next()?,
        })
    }

    /// Where a thread sleeps, if it has not run since `runs` and does not run before its stack is in
    /// `stack`: registers, of which the frame pointer is a wrong one, and up to `bytes` from the stack
    /// pointer up. On aarch64 none: a leaf's return address is in a register nobody tells.
    pub fn asleep(
        &mut self,
        tid: u32,
        runs: Runs,
        bytes: usize,
        stack: &mut Vec<u64>,
    ) -> Option<Registers> {
        if cfg!(not(target_arch = "x86_64")) {
            return None;
        }
        let mut buffer = [0; 512];
        let told = threads::read(&self.tasks, tid, "syscall", &mut buffer)?;
        let registers = parse(std::str::from_utf8(told).ok()?)?;
        self.bytes.resize(bytes, 0);
        // Ends where the mapping ends.
        let got = own_memory::read(registers.sp, &mut self.bytes);
        if got == 0 {
            return None;
        }
        if self.runs(tid)?.turns != runs.turns {
            return None;
        }
        stack.clear();
        let words = self.bytes.get(..got)?.chunks_exact(8);
        stack.extend(words.filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?))));
        Some(registers)
    }
}

/// `45 0x3 … 0xSP 0xPC`, or `-1 0xSP 0xPC` outside of a system call, or `running`.
fn parse(syscall: &str) -> Option<Registers> {
    let mut last = syscall.split_ascii_whitespace().rev();
    let mut address = || u64::from_str_radix(last.next()?.strip_prefix("0x")?, 16).ok();
    let (ip, sp) = (address()?, address()?);
    (ip != 0 && sp != 0).then_some(Registers { ip, sp, fp: UNKNOWN, lr: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_thread_sleeps_reads_as_registers() {
        let asleep = parse("45 0x3 0x7f 0x1 0x0 0x0 0x0 0x7f1019ae4a10 0x7f101a128974\n").unwrap();
        assert_eq!((asleep.sp, asleep.ip), (0x7f10_19ae_4a10, 0x7f10_1a12_8974));
        assert_eq!(parse("-1 0x10 0x20").unwrap().ip, 0x20);
        for none in ["running\n", "", "45", "-1 0x0 0x0"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn the_calling_thread_runs_and_has_had_its_turns() {
        let eyes = Eyes::open().unwrap();
        let own = threads::current();
        let (thread, runs) = eyes.look(own).unwrap();
        assert_eq!(thread.state, 'R');
        assert!(runs.turns > 0);
        assert!(eyes.look(u32::MAX).is_none());
    }
}
