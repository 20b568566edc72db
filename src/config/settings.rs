//! The types of the settings. A TOML file and code fill the same structs; an empty file is equal to
//! `Settings::default()`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::base::{Bytes, Hertz, Percent};
use crate::model::{CaptureSet, CpuEngine, CpuMode, Rule, TraceMode};

/// All settings. Write `Settings { dir: "…".into(), ..Settings::default() }`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Settings {
    /// Name of the service, part of every artifact's name. Default: the executable's file name.
    pub service: String,
    /// Deployment location (region, cluster or pod), also part of every artifact's name. Default:
    /// the host name.
    pub instance: String,
    /// Directory of the incidents. Default: `captures` in the working directory.
    pub dir: PathBuf,
    /// Interval at which the vitals are read and the rules evaluated. Default: 250 ms.
    pub interval: Duration,
    /// Limits of the store.
    pub store: StoreSettings,
    /// Limits for incidents and captures of rules.
    pub budget: BudgetSettings,
    /// Manual start and stop.
    pub toggle: ToggleSettings,
    /// The HTTP listener. `None` without a `[http]` section.
    pub http: Option<HttpSettings>,
    /// CPU profiles.
    pub cpu: CpuSettings,
    /// Heap profiles.
    pub heap: HeapSettings,
    /// Runtime traces.
    pub trace: TraceSettings,
    /// Dumps of threads and tasks.
    pub stacks: StacksSettings,
    /// The rules, in the order of evaluation. Default: [`default_rules`](fn@super::default_rules).
    pub rules: Vec<Rule>,
}

/// Limits for the incidents that rules open and for their captures. Manual captures and those
/// started from code do not count. On-demand captures have a separate limit. Usage is persisted, so
/// a service that restarts in a loop stays within the limits.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct BudgetSettings {
    /// Maximum number of incidents opened in any 24 hours. Two of them are reserved for each rule,
    /// fewer with many rules. A critical value, or one worse than all that its rule captured in
    /// these hours, opens an incident beyond the limit. That happens at most 16 times per rule.
    /// Default: 24.
    pub incidents_per_day: usize,
    /// Maximum number of times that one rule may fire in one incident. Default: 16.
    pub captures_per_incident: usize,
    /// Minimum time from the opening of one incident to the next, unless it is critical. Default: 1
    /// minute.
    pub min_between_incidents: Duration,
    /// Time after an incident's opening in which another rule that fires joins it. Default: 30
    /// seconds.
    pub join_window: Duration,
    /// Maximum number of on-demand captures (`/debug/pprof/`) in any 24 hours. Beyond it clients
    /// get the time of the next one. A client that fetches three profiles every 15 seconds takes
    /// 17,280. Default: 100,000.
    pub on_demand_captures_per_day: usize,
    /// Share of the CPU limit above which expensive captures are skipped. `None` turns this off.
    /// Default: `None`.
    pub skip_cpu_profile_above: Option<Percent>,
}

/// Limits of the store. When a limit is exceeded, closed incidents are deleted: expired ones first,
/// then the oldest incident of the rule that uses the most space. The first and last incident of
/// each rule are deleted last.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct StoreSettings {
    /// Maximum size of all incidents together. Default: 1 GiB.
    pub max_bytes: Bytes,
    /// Maximum number of incidents. Default: 100.
    pub max_incidents: usize,
    /// Maximum age of an incident. Default: 14 days.
    pub max_age: Duration,
    /// Space of the file system that is left to others. Default: 5 %.
    pub min_free_space: DiskReserve,
    /// Maximum size of the files of one incident. Beyond it, files between the first and the last
    /// of their form are deleted, except the largest. If that is not enough, no more files are
    /// written. Default: 512 MiB.
    pub max_bytes_per_incident: Bytes,
    /// `true` lets members of the directory's group read incidents, for a sidecar that ships them:
    /// modes 0750 and 0640 instead of 0700 and 0600. Applies to files and directories created
    /// afterwards. Default: `false`.
    pub group_read: bool,
    /// Additional limits for the incidents of one rule, by its name. `toggle` and `call` are the
    /// incidents started manually and from code. Default: empty.
    pub rules: BTreeMap<String, RuleStoreSettings>,
}

/// Limits for the incidents of one rule.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct RuleStoreSettings {
    /// Maximum size of its incidents together. Default: `None`, no additional limit.
    pub max_bytes: Option<Bytes>,
    /// Maximum number of its incidents. Default: `None`, no additional limit.
    pub max_incidents: Option<usize>,
    /// Maximum age, in place of [`StoreSettings::max_age`]. Default: `None`, that age applies.
    pub max_age: Option<Duration>,
}

/// An amount of space on a file system.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum DiskReserve {
    /// Number of bytes.
    Bytes(Bytes),
    /// Share of the file system's size.
    Percent(Percent),
}

/// Settings for manual start and stop of captures.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct ToggleSettings {
    /// The signal that toggles. Default: `None`, since the service may use either.
    pub signal: Option<ToggleSignal>,
    /// The file that toggles when it is touched. Default: `None`.
    pub trigger_file: Option<PathBuf>,
    /// Captures that run while the toggle is on. Default: all.
    pub capture: CaptureSet,
    /// Time after which a forgotten toggle turns off. Default: 5 minutes.
    pub max_duration: Duration,
}

/// A signal that can toggle captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum ToggleSignal {
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
}

impl ToggleSignal {
    /// Returns the signal's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        }
    }
}

/// Settings of the HTTP listener.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct HttpSettings {
    /// Address to listen on. Default: `127.0.0.1:6060`.
    pub listen: Listen,
    /// Token for all requests, sent as `Authorization: Bearer`. Any address that is not loopback
    /// requires this token or one of the other two. Default: `None`.
    pub token: Option<Secret>,
    /// Token for captures and reading, but not for the toggle. Default: `None`.
    pub capture_token: Option<Secret>,
    /// Token for reading: status, metrics, finished incidents. Default: `None`.
    pub read_token: Option<Secret>,
    /// Accepted host names, without ports. Default: empty, which accepts any name if a token is
    /// set, and otherwise `localhost`, loopback addresses and the address in `listen`.
    pub allowed_hosts: Vec<String>,
    /// Maximum duration of a capture over HTTP. Default: 5 minutes.
    pub max_duration: Duration,
    /// Maximum mean number of requests, and of new connections, per second: 1 to 1000000. Excess
    /// ones are delayed. Default: 100, which costs at most a few per cent of a core.
    pub max_requests_per_second: u32,
    /// `true` lets every GET of `/monitor/notify` toggle, for existing clients. Otherwise a GET
    /// needs a token, the Unix socket of the listener, or a browser that sends `same-origin` or
    /// `none` as `Sec-Fetch-Site`. A POST always toggles. Default: `false`.
    pub compat_get_toggle: bool,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket, created with mode 0600; written `unix:/path`.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Settings of CPU profiles.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct CpuSettings {
    /// Kind of sampling: by CPU time, or all threads by wall-clock time. Default: CPU time.
    pub mode: CpuMode,
    /// Samples per second of each thread in wall-clock mode. Default: 19 Hz.
    pub wall_frequency_hz: Hertz,
    /// Samples per second of CPU time. Default: 99 Hz.
    pub frequency_hz: Hertz,
    /// Sampling engine. Default: the best one that the machine permits.
    pub engine: CpuEngine,
    /// Samples per second of CPU time for the look-back, while no capture runs; 0 turns it off.
    /// Default: 19 Hz.
    pub lookback_frequency_hz: Hertz,
    /// Time span of the look-back: each capture includes a profile of this time before it. Default:
    /// 30 s.
    pub lookback: Duration,
}

/// Settings of heap profiles.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct HeapSettings {
    /// Mean number of bytes between two samples. 0 turns sampling off; 1 samples every allocation
    /// after the start of the agent. Default: 512 KiB.
    pub rate: Bytes,
    /// The same while an incident captures the heap; a lower value samples more. Default: `None`,
    /// which means 64 KiB, or `rate` if that is less.
    pub rate_during_incident: Option<Bytes>,
}

/// Settings of runtime traces.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct TraceSettings {
    /// Mode of recording polls and parks. Default: always.
    pub mode: TraceMode,
    /// Maximum memory of all traces. If polls are always recorded, a quarter of it is always
    /// allocated. Default: 16 MiB.
    pub max_bytes: Bytes,
    /// Time span that a trace includes before its trigger, as far as the memory permits. Default:
    /// 30 s.
    pub window: Duration,
    /// Duration from which a poll is a stall. Stalls are reported in the log and in `status`, with
    /// the stack of their thread. `None` turns the detection off. Default: 100 ms.
    ///
    /// Recorded polls are timed exactly. For other tasks on an observed multi-thread runtime, a
    /// stall is inferred from runtime counters. It is reported once two stacks show the same poll
    /// ([`ThreadsMode::Full`]). This takes at most twice the threshold if the poll sleeps, and at
    /// least 310 ms if it computes.
    pub stall_threshold: Option<Duration>,
}

/// Settings of thread and task dumps.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct StacksSettings {
    /// Form of thread dumps. Default: full.
    pub threads: ThreadsMode,
    /// Form of task dumps. Default: full.
    pub tasks: TasksMode,
    /// Maximum time for collecting the stacks of all tasks. Default: 2 seconds.
    pub tasks_deadline: Duration,
}

/// Form of thread dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum ThreadsMode {
    /// With stacks. Each thread gets a signal, which interrupts some system calls
    /// (`stacks::threads` lists them).
    Full,
    /// From `/proc`, without stacks and without a signal.
    ProcOnly,
    /// Not dumped.
    Off,
}

impl ThreadsMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Full, Self::ProcOnly, Self::Off];

    /// Returns the mode's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ProcOnly => "proc-only",
            Self::Off => "off",
        }
    }
}

/// Form of task dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum TasksMode {
    /// With stacks: each task is woken once.
    Full,
    /// Listed, without waking any task.
    ListOnly,
    /// Not dumped.
    Off,
}

impl TasksMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Full, Self::ListOnly, Self::Off];

    /// Returns the mode's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ListOnly => "list-only",
            Self::Off => "off",
        }
    }
}
