//! Software CPU-clock events of `perf_event_open`, one per thread, each with its own ring buffer.
//!
//! The kernel interrupts a thread after each `period` of its CPU time. It writes the user registers
//! and the top of the user stack into the ring. No signal is involved, and no code runs in the
//! thread.
//!
//! An event that is inherited by new threads cannot have a ring per thread: the kernel then
//! requires one per CPU, and with it a descriptor per thread *and* CPU. So the caller of
//! [`PerfEvent::open`] has to find the threads. A sample always takes `stack_bytes` in the ring,
//! however little of the stack is in use: the kernel has no information about the end of a stack.

#![allow(unsafe_code, reason = "the system call `perf_event_open`, and its mapped ring")]

mod event_layout;
mod filled_rings;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use self::event_layout::{
    CLOCK_MONOTONIC, CONFIG_CPU_CLOCK, DATA_HEAD, DATA_TAIL, EXCLUDE_HV, EXCLUDE_KERNEL,
    EventAttributes, FLAG_FD_CLOEXEC, IOC_PERIOD, RECORD_LOST, RECORD_SAMPLE, SAMPLE_REGISTERS,
    SAMPLE_REGS_USER, SAMPLE_STACK_USER, SAMPLE_TID, SAMPLE_TIME, TYPE_SOFTWARE, USE_CLOCKID,
    WATERMARK, decode_registers,
};
use super::failed_call::{FailedCall, RING_MMAP};
use super::syscalls::{OptionalCall, permit};
use crate::os::stack_snapshot::{SnapshotHeader, StackSnapshot};

pub use self::filled_rings::FilledRings;

/// The sampling parameters of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// CPU time between two samples.
    pub period: Duration,
    /// Bytes of stack copied: a multiple of 8, at most [`MAX_STACK_BYTES`].
    pub stack_bytes: u32,
    /// Size of the ring: a power of two, at least a page.
    pub ring_bytes: usize,
    /// Exclusion of time in the kernel, which `perf_event_paranoid` may require.
    pub user_only: bool,
}

/// Divisor of the ring size: [`FilledRings`] reports a ring after this part of it has been written.
const WATERMARK_DIVISOR: usize = 4;

/// Maximum stack copy in bytes. The size of a record is a 16-bit number, and the record holds more
/// than the stack.
pub const MAX_STACK_BYTES: u32 = 60 << 10;

/// A perf event of a thread, with its ring buffer.
pub struct PerfEvent {
    fd: OwnedFd,
    ring: NonNull<u8>,
    page_size: usize,
    ring_size: usize,
    sampling: Sampling,
    /// Process that opened the event: a child of `fork` does not have the ring.
    pid: u32,
}

// SAFETY: the ring is memory shared with the kernel, accessed through `&mut self` only.
unsafe impl Send for PerfEvent {}

impl PerfEvent {
    /// Starts to sample the thread `tid` of this process.
    ///
    /// # Errors
    ///
    /// Returns the refused call and the limit that refused it, or the filter that denies the call.
    pub fn open(tid: u32, sampling: Sampling) -> Result<Self, FailedCall> {
        permit(OptionalCall::PerfEventOpen)?;
        let attributes = EventAttributes {
            kind: TYPE_SOFTWARE,
            size: size_of::<EventAttributes>() as u32,
            config: CONFIG_CPU_CLOCK,
            sample_period: nanos(sampling.period),
            sample_type: SAMPLE_TID | SAMPLE_TIME | SAMPLE_REGS_USER | SAMPLE_STACK_USER,
            flags: EXCLUDE_HV
                | WATERMARK
                | USE_CLOCKID
                | if sampling.user_only { EXCLUDE_KERNEL } else { 0 },
            // Perf's default clock has a different origin and rate; all other times use
            // CLOCK_MONOTONIC.
            clockid: CLOCK_MONOTONIC,
            wakeup_watermark: (sampling.ring_bytes / WATERMARK_DIVISOR) as u32,
            sample_regs_user: SAMPLE_REGISTERS,
            sample_stack_user: sampling.stack_bytes.min(MAX_STACK_BYTES) & !7,
            ..EventAttributes::default()
        };
        // SAFETY: the kernel reads `size` bytes of the attributes and returns a descriptor.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                tid,
                -1,
                -1,
                FLAG_FD_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(FailedCall::new(OptionalCall::PerfEventOpen, io::Error::last_os_error()));
        }
        // SAFETY: a descriptor that the kernel has just created.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let page = rustix::param::page_size();
        let size = sampling.ring_bytes.max(page).next_power_of_two();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at an address chosen by the kernel affects no existing memory.
        let ring =
            unsafe { mmap(ptr::null_mut(), page + size, protection, MapFlags::SHARED, &fd, 0) };
        let failed = |error| FailedCall::with_name(RING_MMAP, error);
        let ring = ring.map_err(|error| failed(error.into()))?;
        let ring = NonNull::new(ring.cast()).ok_or(io::ErrorKind::OutOfMemory.into());
        let ring = ring.map_err(failed)?;
        Ok(Self { fd, ring, page_size: page, ring_size: size, sampling, pid: std::process::id() })
    }

    /// Returns the sampling parameters.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Changes the sampling period, in CPU time.
    ///
    /// # Errors
    ///
    /// Returns an error if a filter denies the call; the old period stays in effect.
    pub fn set_period(&mut self, period: Duration) -> io::Result<()> {
        permit(OptionalCall::Ioctl)?;
        let nanos = nanos(period);
        // SAFETY: the kernel reads a u64.
        let failed = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_PERIOD as _, &raw const nanos) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.sampling.period = period;
        Ok(())
    }

    /// Returns the CPU time of the thread since `open`, also after the thread has exited. Costs 0.5
    /// us, and more if it runs on another core, which has to be interrupted.
    ///
    /// # Errors
    ///
    /// No error is expected.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let mut value = [0; 8];
        match rustix::io::read(&self.fd, &mut value)? {
            8 => Ok(Duration::from_nanos(u64::from_ne_bytes(value))),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Passes the samples in the ring to `take`, oldest first. Returns the number of samples lost
    /// because the ring was full.
    pub fn drain(&mut self, into: &mut StackSnapshot, mut take: impl FnMut(&StackSnapshot)) -> u64 {
        if self.pid != std::process::id() {
            return 0;
        }
        let head = self.ring_counter(DATA_HEAD).load(Acquire);
        let mut tail = self.ring_counter(DATA_TAIL).load(Relaxed);
        let mut lost = 0;
        while tail < head {
            let header = self.ring_word(tail);
            let kind = header as u32;
            let size = header >> 48;
            // Every record of the kernel has a size; the content of a corrupt ring is skipped.
            if size < 8 || tail + size > head {
                tail = head;
                break;
            }
            match kind {
                RECORD_LOST => lost += self.ring_word(tail + 16),
                RECORD_SAMPLE => {
                    self.decode_sample(tail, size, into);
                    take(into);
                }
                _ => {}
            }
            tail += size;
        }
        self.ring_counter(DATA_TAIL).store(tail, Release);
        lost
    }

    /// Decodes a sample record:
    ///
    /// ```text
    /// header | pid, tid | time | abi | registers | size | stack … | number of valid stack bytes
    /// ```
    fn decode_sample(&self, at: u64, record: u64, into: &mut StackSnapshot) {
        let word = |index: u64| self.ring_word(at + index * 8);
        let tid = (word(1) >> 32) as u32;
        let mut next = 4;
        let has_registers = word(3) != 0;
        into.header = SnapshotHeader { tid, weight: 1, time: word(2), ..SnapshotHeader::default() };
        if has_registers {
            into.header.registers = decode_registers(|index| word(next + index));
            next += u64::from(SAMPLE_REGISTERS.count_ones());
        }
        into.stack.clear();
        into.is_complete = true;
        let size = word(next);
        if size == 0 || next * 8 + size + 16 > record {
            return;
        }
        let valid_bytes = word(next + 1 + size / 8).min(size);
        into.stack.extend((0..valid_bytes / 8).map(|index| word(next + 1 + index)));
        into.is_complete = valid_bytes < size;
    }

    fn ring_counter(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both counters are aligned words of the first page, mapped until `drop` in the
        // process that opened it, which the caller has checked; the kernel reads and writes them as
        // words.
        unsafe { self.ring.add(offset).cast().as_ref() }
    }

    fn ring_word(&self, position: u64) -> u64 {
        let offset = (position as usize & (self.ring_size - 1)) & !7;
        // SAFETY: within the ring after the first page, aligned; volatile, because the kernel
        // writes it.
        unsafe { self.ring.add(self.page_size + offset).cast::<u64>().read_volatile() }
    }
}

impl Drop for PerfEvent {
    fn drop(&mut self) {
        // In a child of `fork`, other memory may be mapped there.
        if self.pid != std::process::id() {
            return;
        }
        // SAFETY: mapped by `open` with this length; `&mut self` excludes every use of it.
        let _ = unsafe { munmap(self.ring.as_ptr().cast(), self.page_size + self.ring_size) };
    }
}

fn nanos(period: Duration) -> u64 {
    u64::try_from(period.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Clock, SystemClock};
    use crate::os::proc::process::cpu_time;

    fn burn(time: Duration) {
        let end = cpu_time() + time;
        while cpu_time() < end {
            std::hint::spin_loop();
        }
    }

    fn event(ring_bytes: usize) -> Option<PerfEvent> {
        let sampling = Sampling {
            period: Duration::from_millis(1),
            stack_bytes: 4 << 10,
            ring_bytes,
            user_only: true,
        };
        // SAFETY: takes no pointer and cannot fail.
        let tid = unsafe { libc::gettid() } as u32;
        match PerfEvent::open(tid, sampling) {
            Ok(event) => Some(event),
            Err(error) => {
                // A machine without perf events must refuse them with a permission error.
                assert!(error.is_permission_error(), "{error}");
                None
            }
        }
    }

    #[test]
    fn busy_thread_is_sampled_with_its_stack() {
        let started_at = SystemClock.now().as_nanos();
        let Some(mut event) = event(256 << 10) else { return };
        burn(Duration::from_millis(40));
        let local = 0u64;
        let mut samples = 0;
        let drained = SystemClock.now().as_nanos();
        let lost = event.drain(&mut StackSnapshot::default(), |copied| {
            assert!((started_at..drained).contains(&copied.header.time), "dated by another clock");
            let sp = copied.header.registers.sp;
            assert!((&raw const local as u64).abs_diff(sp) < 64 << 10, "{sp:x}");
            assert!(!copied.stack.is_empty());
            samples += 1;
        });
        assert!(samples > 0 && lost == 0, "{samples}, {lost}");
        assert_eq!(event.drain(&mut StackSnapshot::default(), |_| {}), 0);
        let counted = event.cpu_time().unwrap();
        assert!(counted >= Duration::from_millis(samples), "{counted:?} of {samples}");
    }

    #[test]
    fn lost_samples_of_full_ring_are_counted() {
        let Some(mut event) = event(8 << 10) else { return };
        // The kernel reports lost samples with the next sample that fits again; the number of
        // samples in a given time depends on the machine.
        let mut lost = 0;
        let mut rounds = 0;
        while lost == 0 && rounds < 100 {
            burn(Duration::from_millis(20));
            let mut samples = 0;
            lost += event.drain(&mut StackSnapshot::default(), |_| samples += 1);
            assert!(samples <= 2, "{samples} in 8 KiB");
            rounds += 1;
        }
        assert!(lost > 0);
    }

    #[test]
    fn only_rings_past_watermark_are_reported() {
        let Some(mut event) = event(64 << 10) else { return };
        let (hold, wait) = std::sync::mpsc::channel::<()>();
        let (tid_sender, tid_receiver) = std::sync::mpsc::channel();
        let idle = std::thread::spawn(move || {
            tid_sender.send(crate::os::proc::threads::current_tid()).unwrap();
            wait.recv().unwrap_or_default();
        });
        let idle_event = PerfEvent::open(tid_receiver.recv().unwrap(), event.sampling()).unwrap();
        let mut filled = FilledRings::new().unwrap();
        filled.add(&event, 7).unwrap();
        filled.add(&idle_event, 8).unwrap();
        let mut read = |ids: &mut Vec<u32>| {
            ids.clear();
            filled.read(ids).unwrap();
            ids.clone()
        };
        let mut ids = Vec::new();
        // 16 samples of 4 KiB fill the ring.
        burn(Duration::from_millis(40));
        assert_eq!(read(&mut ids), [7]);
        event.drain(&mut StackSnapshot::default(), |_| {});
        assert_eq!(read(&mut ids).len(), 0);
        burn(Duration::from_millis(40));
        assert_eq!(read(&mut ids), [7], "again");
        drop(event);
        assert_eq!(read(&mut ids).len(), 0, "its event is closed");
        drop(hold);
        idle.join().unwrap();
    }
}
