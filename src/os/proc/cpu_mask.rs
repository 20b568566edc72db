//! Sets of CPUs in the scheduler's format.

#![allow(unsafe_code, reason = "`sched_getaffinity` and `sched_setaffinity`, which take pointers")]

use std::fmt;
use std::io;

/// Capacity of a mask: the kernel's maximum (`NR_CPUS` of x86-64 and arm64). The kernel rejects a
/// mask shorter than the machine's with `EINVAL`.
const MAX_CPUS: usize = 8192;

const WORDS: usize = MAX_CPUS / 64;

/// The CPUs a thread may run on.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CpuMask([u64; WORDS]);

impl CpuMask {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);

    /// Returns the mask of the thread `tid`, or of the calling thread for 0. Returns `None` if
    /// there is no such thread.
    pub(crate) fn for_thread(tid: u32) -> Option<Self> {
        let mut mask = Self::EMPTY;
        let tid = libc::pid_t::try_from(tid).ok()?;
        // SAFETY: the kernel writes at most the given length into the mask. It stores bits in
        // machine words, so each CPU is one bit of `self.0`.
        let result = unsafe {
            libc::sched_getaffinity(tid, size_of_val(&mask.0), mask.0.as_mut_ptr().cast())
        };
        (result == 0).then_some(mask)
    }

    /// Restricts the calling thread to these CPUs, as far as its cpuset allows.
    pub(crate) fn apply_to_current_thread(&self) -> io::Result<()> {
        // SAFETY: the kernel reads the given length from the mask.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), self.0.as_ptr().cast()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(word, other)| word & !other == 0)
    }

    pub(crate) fn union_with(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn contains(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    #[cfg(test)]
    pub(crate) fn first_cpu(&self) -> Self {
        let mut first = Self::EMPTY;
        if let Some(cpu) = (0..MAX_CPUS).find(|&cpu| self.contains(cpu)) {
            first.0[cpu / 64] |= 1 << (cpu % 64);
        }
        first
    }
}

/// Formats the mask like `Cpus_allowed_list` of `/proc/PID/status`: `0-3,8`.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpu = 0;
        let mut separator = "";
        while cpu < MAX_CPUS {
            if !self.contains(cpu) {
                cpu += 1;
                continue;
            }
            let first = cpu;
            while self.contains(cpu + 1) {
                cpu += 1;
            }
            match first == cpu {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{cpu}")?,
            }
            separator = ",";
            cpu += 1;
        }
        Ok(())
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMask({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(cpus: &[usize]) -> CpuMask {
        let mut mask = CpuMask::EMPTY;
        cpus.iter().for_each(|&cpu| mask.0[cpu / 64] |= 1 << (cpu % 64));
        mask
    }

    #[test]
    fn mask_display_matches_cpus_allowed_list() {
        for (cpus, text) in [
            (&[][..], ""),
            (&[0], "0"),
            (&[0, 1, 2, 3, 8], "0-3,8"),
            (&[63, 64, 100, 8191], "63-64,100,8191"),
        ] {
            assert_eq!(mask(cpus).to_string(), text);
            assert_eq!(mask(cpus).count() as usize, cpus.len());
        }
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(CpuMask::for_thread(0).unwrap().to_string(), own.trim());
    }

    #[test]
    fn union_and_subset_of_masks() {
        let mut both = mask(&[0, 70]);
        both.union_with(&mask(&[1]));
        assert_eq!(both, mask(&[0, 1, 70]));
        assert!(mask(&[1, 70]).is_subset(&both) && !both.is_subset(&mask(&[1, 70])));
    }
}
