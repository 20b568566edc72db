//! Identity and resources of the process and the machine.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use rustix::system::uname;
use rustix::time::{ClockId, clock_gettime};
use sysinfo::{MemoryRefreshKind, System};

use crate::base::{Bytes, Clock, Moment, SystemClock};

/// Returns the process ID in the process's own pid namespace.
pub fn pid() -> u32 {
    std::process::id()
}

/// Returns the path of the executable, or `None` if the system does not report it. Linux appends `
/// (deleted)` if the file was replaced, which is useful in a manifest.
pub fn executable_path() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// Returns the kernel and its release: `Linux 6.18.4`.
pub fn kernel_release() -> String {
    let uname = uname();
    format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy())
}

/// Returns the machine's architecture in the kernel's form: `x86_64`, `aarch64`.
pub fn arch() -> String {
    uname().machine().to_string_lossy().into_owned()
}

/// Returns the minimum interval between two reads of the CPU time for a process with `threads`
/// threads.
///
/// The kernel adds up the times of all threads, at 50 to 300 ns each: at most 0.06 % of a core. The
/// interval is shorter than a tick up to 500 threads.
pub fn min_cpu_time_interval(threads: Option<u64>) -> Duration {
    let threads = u32::try_from(threads.unwrap_or(0)).unwrap_or(u32::MAX);
    (Duration::from_micros(500) * threads).min(Duration::from_secs(10))
}

/// Returns the CPU time of all threads of the process since its start, including exited ones. Costs
/// 1 us.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let time = Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    );
    // `try_lock`, because a thread of the parent may have held the lock when this process was
    // forked.
    if let Ok(mut last) = LAST_CPU_TIME.try_lock() {
        *last = Some((SystemClock.now(), time));
    }
    time
}

/// Returns the last result of [`cpu_time`] in this process and its time. Costs 50 ns, regardless of
/// the number of threads.
pub fn last_cpu_time() -> Option<(Moment, Duration)> {
    LAST_CPU_TIME.try_lock().ok().and_then(|last| *last)
}

static LAST_CPU_TIME: Mutex<Option<(Moment, Duration)>> = Mutex::new(None);

/// Lowers the priority of the calling thread: it gets a ninth of the CPU time of an ordinary thread
/// on the same core. Permanent, since raising it again needs privileges.
#[cfg(target_os = "linux")]
pub fn lower_priority() {
    // Linux keeps the nice value per thread; POSIX specifies it per process.
    if crate::os::syscalls::permit(crate::os::syscalls::OptionalCall::SetPriority).is_ok() {
        let _ = rustix::process::nice(10);
    }
}

/// Does nothing: on other systems it would change the priority of the whole process.
#[cfg(not(target_os = "linux"))]
pub fn lower_priority() {}

/// Returns the number of CPUs the process as a whole may use. For repeated reads, keep a
/// [`super::cores::CoreCounter`].
pub fn cores() -> Option<u32> {
    super::cores::CoreCounter::default().read()
}

/// Returns the maximum number of open descriptors (`RLIMIT_NOFILE`), or `None` if there is no
/// limit.
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Returns the maximum address space of the process (`RLIMIT_AS`), or `None` if there is no limit.
pub fn address_space_limit() -> Option<Bytes> {
    rustix::process::getrlimit(rustix::process::Resource::As).current.map(Bytes)
}

/// Returns the maximum private writable memory of the process (`RLIMIT_DATA`), or `None` if there
/// is no limit.
pub fn data_limit() -> Option<Bytes> {
    rustix::process::getrlimit(rustix::process::Resource::Data).current.map(Bytes)
}

/// Returns the memory of the machine. Reads a file and allocates: about 20 us, so not for every
/// tick.
pub fn physical_memory() -> Option<Bytes> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Some(Bytes(system.total_memory())).filter(|total| total.get() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_identity_matches_uname() {
        let run = |args: &[&str]| {
            let output = std::process::Command::new("uname").args(args).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(kernel_release(), run(&["-sr"]));
        assert_eq!(arch(), run(&["-m"]));
        assert_eq!(executable_path(), std::env::current_exe().ok());
    }

    #[test]
    fn busy_loop_increases_cpu_time() {
        let before = cpu_time();
        while cpu_time() - before < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(cores().is_some_and(|cores| cores > 0));
        assert!(physical_memory().is_some_and(|memory| memory > Bytes::mib(16)));
    }
}
