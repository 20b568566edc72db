//! What stands in for the Linux modules elsewhere, of the same shape: what sysinfo tells, else
//! nothing.

/// The process's own numbers.
pub mod procfs {
    use std::fmt;
    use std::path::Path;
    use std::time::Duration;

    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

    use crate::base::{Bytes, Moment};

    /// How long what sysinfo told is good for, so that it is asked once for all readings of a tick:
    /// asking takes tens of microseconds.
    const GOOD_FOR: Duration = Duration::from_millis(50);

    /// The process, as sysinfo knows it.
    pub struct Procfs {
        system: System,
        own: Pid,
        told: Option<Moment>,
    }

    impl Procfs {
        /// Makes ready to ask; there is no `/proc` to take from `root`.
        pub fn open(_root: &Path) -> Self {
            let own = Pid::from_u32(std::process::id());
            Self { system: System::new(), own, told: None }
        }

        /// The resident set.
        pub fn rss(&mut self, now: Moment) -> Option<Bytes> {
            self.ask(now);
            self.system.process(self.own).map(|process| Bytes(process.memory()))
        }

        /// How many threads there are, where sysinfo lists them.
        pub fn threads(&mut self, now: Moment) -> Option<u64> {
            self.ask(now);
            Some(self.system.process(self.own)?.tasks()?.len() as u64)
        }

        /// None: nobody tells.
        pub fn fds(&mut self, _now: Moment) -> Option<u64> {
            None
        }

        fn ask(&mut self, now: Moment) {
            if self.told.is_some_and(|told| now.since(told) < GOOD_FOR) {
                return;
            }
            self.told = Some(now);
            self.system.refresh_processes_specifics(
                ProcessesToUpdate::Some(&[self.own]),
                true,
                ProcessRefreshKind::nothing().with_memory().with_tasks(),
            );
        }
    }

    impl fmt::Debug for Procfs {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Procfs").field("told", &self.told).finish_non_exhaustive()
        }
    }
}

/// Limits of cgroups, which only Linux has.
pub mod cgroup {
    use std::path::Path;

    use crate::base::{Bytes, Percent};
    use crate::model::Limit;

    /// What the kernel has counted and measured: nothing.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    #[allow(missing_docs, reason = "as on Linux")]
    pub struct Strain {
        pub periods: Option<u64>,
        pub throttled: Option<u64>,
        pub memory_high: Option<u64>,
        pub memory_max: Option<u64>,
        pub oom_kills: Option<u64>,
        pub memory_pressure: Option<Percent>,
        pub cpu_pressure: Option<Percent>,
        pub io_pressure: Option<Percent>,
    }

    /// No cgroup.
    #[derive(Debug)]
    pub struct Cgroup;

    impl Cgroup {
        /// Finds none.
        pub fn discover(_root: &Path) -> Self {
            Self
        }

        /// Does nothing.
        pub fn refresh(&mut self) {}

        /// None.
        pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
            None
        }

        /// None.
        pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
            None
        }

        /// Nothing.
        pub fn strain(&self) -> Strain {
            Strain::default()
        }

        /// Nothing.
        pub fn strain_counters(&self) -> Strain {
            Strain::default()
        }

        /// None.
        pub fn working_set(&self) -> Option<Bytes> {
            None
        }
    }
}

/// Sleeps by tokio's timers.
pub mod alarm {
    use tokio::time::Instant;

    /// A timer of tokio's.
    #[derive(Debug)]
    pub struct Alarm;

    impl Alarm {
        /// One that is not set.
        pub fn here() -> Self {
            Self
        }

        /// Sleeps until `due`.
        pub async fn sleep_until(&self, due: Instant) {
            tokio::time::sleep_until(due).await;
        }
    }
}

/// Wakes nobody.
pub mod wake {
    use std::io;

    /// A counter that cannot be had.
    #[derive(Debug, Default)]
    pub struct Wake;

    impl Wake {
        /// None.
        pub const fn new() -> Self {
            Self
        }

        /// An error: nobody can be woken.
        pub fn open(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Does nothing.
        pub fn wake(&self) {}

        /// An error: nobody can have woken.
        pub fn hear(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Waits for ever.
    #[derive(Debug)]
    pub struct Listener;

    impl Listener {
        /// An error: there is no counter to wait for.
        pub fn new(_wake: &'static Wake) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Never comes.
        pub async fn next(&self) {
            std::future::pending().await
        }
    }
}

/// Asks no thread.
pub mod catch {
    use crate::base::Clock;
    use crate::os::copied::Copied;
    use crate::os::images::Error;
    use crate::os::unwind::{End, Walker};

    /// The signal there would be.
    pub const SIGNAL: i32 = libc::SIGURG;

    /// Threads signalled at once.
    pub const BATCH: usize = 64;

    /// What a thread that was asked would show.
    pub struct Caught<'a> {
        /// Its registers and stack.
        pub copied: &'a Copied,
        /// Where it is.
        pub frames: &'a [u64],
        /// The stack pointers.
        pub pointers: &'a [u64],
        /// How the walk ended.
        pub end: End,
    }

    /// The right to ask, which nobody has.
    pub struct Net;

    impl Drop for Net {
        /// As on Linux there is something to give back.
        fn drop(&mut self) {}
    }

    impl Net {
        /// Why there are no stacks.
        pub fn cast() -> Result<Self, String> {
            Err("no stacks: threads are asked on Linux only".to_owned())
        }

        /// Nobody answers.
        pub fn catch(
            &self,
            _clock: &dyn Clock,
            _tids: impl IntoIterator<Item = u32>,
            _walker: &mut Walker,
            _ended: impl FnMut(u32),
            _take: impl FnMut(u32, &[u64], End),
        ) -> Result<(), Error> {
            Ok(())
        }

        /// Nobody answers.
        pub fn catch_whole(
            &self,
            _clock: &dyn Clock,
            _tids: impl IntoIterator<Item = u32>,
            _walker: &mut Walker,
            _ended: impl FnMut(u32),
            _take: impl FnMut(Caught<'_>),
        ) -> Result<(), Error> {
            Ok(())
        }
    }
}

/// Sees no thread.
pub mod glance {
    use std::time::Duration;

    use super::threads::Thread;

    /// How much the kernel let a thread run.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Runs {
        /// CPU time.
        pub cpu: Duration,
        /// Time it waited for a core.
        pub waited: Duration,
        /// How often it was given one.
        pub turns: u64,
    }

    /// What cannot be opened.
    pub struct Eyes;

    impl Eyes {
        /// Why threads cannot be seen.
        pub fn open() -> Result<Self, String> {
            Err("threads can be seen on Linux only".to_owned())
        }

        /// None.
        pub fn look(&self, _tid: u32) -> Option<(Thread, Runs)> {
            None
        }

        /// None.
        pub fn runs(&self, _tid: u32) -> Option<Runs> {
            None
        }
    }
}

/// Lists no thread.
pub mod tasks {
    use std::io;

    /// What cannot be opened.
    #[derive(Debug)]
    pub struct Tasks;

    impl Tasks {
        /// An error: there is no list.
        pub fn open() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// An error: there is no list.
        pub fn list(&mut self, _tids: &mut Vec<u32>) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// None.
        pub fn name(&self, _tid: u32) -> Option<String> {
            None
        }
    }
}

/// The threads of the process, which only Linux lists.
pub mod threads {
    use std::time::Duration;

    use crate::base::{Clock, Moment, SystemClock};

    /// What the kernel tells about a thread.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Thread {
        /// Its id.
        pub tid: u32,
        /// Its name.
        pub name: String,
        /// What it does.
        pub state: char,
        /// The function of the kernel it waits in.
        pub wait_channel: String,
        /// CPU time.
        pub cpu_time: Duration,
        /// The signals it blocks.
        pub blocked: u64,
    }

    /// Why the threads are unknown.
    #[derive(Debug, thiserror::Error)]
    #[error("threads can be listed on Linux only")]
    pub struct Error;

    /// Threads that cannot be looked at.
    #[derive(Debug)]
    pub struct Threads {
        /// Their ids.
        pub tids: Vec<u32>,
    }

    impl Threads {
        /// None.
        pub fn all() -> Result<Self, Error> {
            Err(Error)
        }

        /// None.
        pub fn of(_tids: Vec<u32>) -> Result<Self, Error> {
            Err(Error)
        }

        /// None.
        pub fn look(&self, _tid: u32) -> Option<Thread> {
            None
        }
    }

    /// None.
    pub fn list() -> Result<Vec<Thread>, Error> {
        Err(Error)
    }

    /// A number for the calling thread that is not 0.
    pub fn current() -> u32 {
        use std::sync::atomic::{AtomicU32, Ordering};

        static NEXT: AtomicU32 = AtomicU32::new(1);
        thread_local! {
            static OWN: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        OWN.try_with(|own| *own).unwrap_or(u32::MAX)
    }

    /// The name the calling thread was given when it was made; empty where it has none.
    pub fn current_name() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }

    /// Nobody tells.
    pub fn cpu_time() -> Duration {
        Duration::ZERO
    }

    /// The present.
    pub fn recently() -> Moment {
        SystemClock.now()
    }
}
