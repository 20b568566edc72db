//! Who and where we are, and what the whole machine has.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use rustix::system::uname;
use rustix::time::{ClockId, clock_gettime};
use sysinfo::{MemoryRefreshKind, System};

use crate::base::{Bytes, Clock, Moment, SystemClock};

/// The process's id, as its own pid namespace counts.
pub fn pid() -> u32 {
    std::process::id()
}

/// The path of the executable; none when the system does not tell. Linux appends ` (deleted)` when
/// another file has taken its place, which is worth seeing in a manifest.
pub fn exe() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// The kernel and its release: `Linux 6.18.4`.
pub fn kernel() -> String {
    let uname = uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

/// The machine's architecture, as the kernel names it: `x86_64`, `aarch64`.
pub fn arch() -> String {
    uname().machine().to_string_lossy().into_owned()
}

/// The host's name; in a container, the container's.
pub fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// Returns how long the CPU time of a process with so many threads should not be asked for again.
///
/// The kernel adds up the times of all threads for it, at 50 to 300 ns each: 0.06 % of a core at most. It is shorter
/// than a tick up to 500 threads.
pub fn cpu_time_pause(threads: Option<u64>) -> Duration {
    let threads = u32::try_from(threads.unwrap_or(0)).unwrap_or(u32::MAX);
    (Duration::from_micros(500) * threads).min(Duration::from_secs(10))
}

/// CPU time of all the process's threads, dead ones too, since it started. Costs 1 us.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let time = Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    );
    // A thread of the parent may have held it when this process was forked.
    if let Ok(mut last) = LAST_CPU_TIME.try_lock() {
        *last = Some((SystemClock.now(), time));
    }
    time
}

/// Returns the last result of [`cpu_time`] in this process and when it was read. Costs 50 ns, whatever the number of
/// threads.
pub fn last_cpu_time() -> Option<(Moment, Duration)> {
    LAST_CPU_TIME.try_lock().ok().and_then(|last| *last)
}

static LAST_CPU_TIME: Mutex<Option<(Moment, Duration)>> = Mutex::new(None);

/// Has the calling thread come after those of ordinary priority where they want the same core: a ninth of
/// their share. For good, since nobody may raise it again without privilege.
#[cfg(target_os = "linux")]
pub fn lower_priority() {
    // Linux keeps it for each thread; POSIX would have it the process'.
    if super::syscalls::permit(super::syscalls::Optional::SetPriority).is_ok() {
        let _ = rustix::process::nice(10);
    }
}

/// Nothing: elsewhere it would be the whole process' priority.
#[cfg(not(target_os = "linux"))]
pub fn lower_priority() {}

/// How many CPUs the process as a whole may use. To ask again and again, keep a [`super::cores::Cores`].
pub fn cores() -> Option<u32> {
    super::cores::Cores::default().read()
}

/// How many file descriptors the process may have open; none without a limit.
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// How large the address space of the process may be (`RLIMIT_AS`); `None` without a limit.
pub fn address_space_limit() -> Option<Bytes> {
    rustix::process::getrlimit(rustix::process::Resource::As).current.map(Bytes)
}

/// How much private writable memory the process may have (`RLIMIT_DATA`); `None` without a limit.
pub fn data_limit() -> Option<Bytes> {
    rustix::process::getrlimit(rustix::process::Resource::Data).current.map(Bytes)
}

/// The memory of the machine. Reads and allocates: 20 us or so; not for every tick.
pub fn physical_memory() -> Option<Bytes> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Some(Bytes(system.total_memory())).filter(|total| total.get() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_told_as_the_system_tools_tell_it() {
        let run = |args: &[&str]| {
            let output = std::process::Command::new("uname").args(args).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(kernel(), run(&["-sr"]));
        assert_eq!(arch(), run(&["-m"]));
        assert_eq!(host_name(), run(&["-n"]));
        assert_eq!(exe(), std::env::current_exe().ok());
    }

    #[test]
    fn burning_shows_in_the_cpu_time() {
        let before = cpu_time();
        while cpu_time() - before < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(cores().is_some_and(|cores| cores > 0));
        assert!(physical_memory().is_some_and(|memory| memory > Bytes::mib(16)));
    }
}
