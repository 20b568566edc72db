//! The settings as values. A TOML file and code fill the same structs; `Settings::default()` is what an
//! empty file means.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::base::{Bytes, Hertz, Percent};
use crate::model::{CaptureSet, CpuEngine, CpuMode, Rule, TraceMode};

/// Everything that can be set. Write `Settings { dir: "…".into(), ..Settings::default() }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The service's name, part of every artifact's name. Default: the executable's file name.
    pub service: String,
    /// The part of the world it runs in (region, cluster, pod), likewise. Default: the host's name.
    pub domain: String,
    /// Where incidents are written. Default: `captures` in the working directory.
    pub dir: PathBuf,
    /// How often the vitals are read and the rules asked. Default: 250 ms.
    pub interval: Duration,
    /// What is kept.
    pub store: StoreSettings,
    /// How many incidents and captures rules may make.
    pub budget: BudgetSettings,
    /// Manual start and stop.
    pub toggle: ToggleSettings,
    /// The HTTP listener; none without a `[http]` section.
    pub http: Option<HttpSettings>,
    /// CPU profiles.
    pub cpu: CpuSettings,
    /// Heap profiles.
    pub heap: HeapSettings,
    /// Runtime traces.
    pub trace: TraceSettings,
    /// Dumps of threads and tasks.
    pub stacks: StacksSettings,
    /// The rules, in the order they are asked. Default: [`default_rules`](super::default_rules).
    pub rules: Vec<Rule>,
}

/// Which rules a file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleChoice {
    /// The default ones besides its own, which replace those of the same name.
    Default,
    /// Its own only.
    Own,
}

/// What bounds the incidents that rules open and the captures they make. What is asked for by hand or
/// from code is not bounded by it; what is handed over without an incident has a number of its own. It outlives the process: a service that is restarted in a loop stays
/// within it.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSettings {
    /// Incidents opened in any 24 hours, two of them (less with many rules) reserved for each rule. What is
    /// worse than all that its rule captured in these hours, or critical, is opened all the same: at most 16
    /// times for a rule. Default: 24.
    pub incidents_per_day: usize,
    /// Times that one rule may fire in one incident. Default: 16.
    pub captures_per_incident: usize,
    /// From the opening of one incident to that of the next, but for what is critical. Default: 1 minute.
    pub min_between_incidents: Duration,
    /// A rule that fires within this of an incident's opening joins it. Default: 30 seconds.
    pub join: Duration,
    /// Captures handed over without an incident (`/debug/pprof/`) in any 24 hours; beyond it clients are
    /// told when there is another. One that pulls three profiles every 15 seconds takes 17,280. Default:
    /// 100,000.
    pub streams_per_day: usize,
    /// While more than this share of the CPU limit is used, what is dear is not captured. Default: none.
    pub cpu_ceiling: Option<Percent>,
}

/// What the store keeps. Whatever bound is reached first makes a closed incident go: what is past its age,
/// else the oldest of the rule that holds most, the first and the last of each rule last.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// All incidents together. Default: 1 GiB.
    pub max_bytes: Bytes,
    /// How many incidents. Default: 100.
    pub max_incidents: usize,
    /// How old one may get. Default: 14 days.
    pub max_age: Duration,
    /// How much of the file system is left to others. Default: 5 %.
    pub keep_free: Room,
    /// The files of one incident together. When it has more, those between the first and the last of
    /// their form go, the largest excepted, and then nothing more is written. Default: 512 MiB.
    pub max_incident_bytes: Bytes,
    /// Whether members of the directory's group may read incidents (modes 0750 and 0640 instead of 0700 and 0600),
    /// for a sidecar that ships them. Holds for what is made from then on. Default: false.
    pub group_read: bool,
    /// What holds for the incidents of one rule besides, by its name; `toggle` and `call` are those asked
    /// for by hand and from code. Default: none.
    pub rules: BTreeMap<String, RuleStoreSettings>,
}

/// What is kept of one rule's incidents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleStoreSettings {
    /// All of them together. Default: no bound of its own.
    pub max_bytes: Option<Bytes>,
    /// How many. Default: no bound of its own.
    pub max_incidents: Option<usize>,
    /// How old one may get, in place of [`StoreSettings::max_age`]. Default: that.
    pub max_age: Option<Duration>,
}

/// Space on a file system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Room {
    /// So many bytes.
    Bytes(Bytes),
    /// A share of the whole.
    Percent(Percent),
}

/// Manual start and stop of captures.
#[derive(Clone, Debug, PartialEq)]
pub struct ToggleSettings {
    /// The signal that toggles. Default: none, since a service may use either itself.
    pub signal: Option<ToggleSignal>,
    /// The file that toggles when it is touched. Default: none.
    pub trigger_file: Option<PathBuf>,
    /// What runs while the toggle is on. Default: everything.
    pub capture: CaptureSet,
    /// When a forgotten toggle goes off by itself. Default: 5 minutes.
    pub max_duration: Duration,
}

/// A signal that may be given to the toggle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToggleSignal {
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
}

impl ToggleSignal {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        }
    }
}

/// The HTTP listener.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// Where it listens. Default: `127.0.0.1:6060`.
    pub listen: Listen,
    /// What a request must bring as `Authorization: Bearer` to do everything. One token, this or one of
    /// the other two, is required for any address that is not loopback. Default: none.
    pub token: Option<Secret>,
    /// What it must bring to capture and to read, but not to use the toggle. Default: none.
    pub capture_token: Option<Secret>,
    /// What it must bring to read: status, metrics, finished incidents. Default: none.
    pub read_token: Option<Secret>,
    /// The names, without ports, by which requests may call this host. Default: none, which without a
    /// token means `localhost`, loopback addresses and the address in `listen`, and with one any name.
    pub hosts: Vec<String>,
    /// The longest a capture over HTTP may last. Default: 5 minutes.
    pub max_duration: Duration,
    /// The mean number of requests and of new connections a second that the own listener serves: 1 to
    /// 1000000. What comes faster waits. Default: 100, which costs a few per cent of a core at most.
    pub max_requests_per_second: u32,
    /// Whether every GET of `/monitor/notify` toggles, as it did in the founding program. Otherwise a GET
    /// needs a token, the own Unix socket, or a browser that states `Sec-Fetch-Site: same-origin` or `none`.
    /// A POST always does it. Default: no.
    pub compat_get_toggle: bool,
}

/// A place to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket, made with mode 0600; written `unix:/path`.
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

/// CPU profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuSettings {
    /// What is sampled: CPU time, or all threads by time. Default: CPU time.
    pub mode: CpuMode,
    /// Looks a second at each thread, when all are sampled by time. Default: 19 Hz.
    pub wall_frequency: Hertz,
    /// Samples a second of CPU time. Default: 99 Hz.
    pub frequency: Hertz,
    /// By what means. Default: the best that the machine allows.
    pub engine: CpuEngine,
    /// Samples a second of CPU time while nothing is captured; 0 is off. Default: 19 Hz.
    pub lookback_frequency: Hertz,
    /// How far back these are kept: a capture has a profile of the time before it. Default: 30 s.
    pub lookback: Duration,
}

/// Heap profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct HeapSettings {
    /// The mean number of bytes between two samples; 0 is off, 1 is every allocation from the moment that the agent
    /// has started. Default: 512 KiB.
    pub rate: Bytes,
    /// The same while an incident captures the heap, to see more of what happens then; the mean number
    /// of bytes again, so a lower one samples more. Default: 64 KiB, or `rate` if that is less.
    pub rate_during_incident: Option<Bytes>,
}

/// Runtime traces.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// When polls and parks are recorded. Default: always.
    pub mode: TraceMode,
    /// The memory all of it may take at any time; a quarter is held all the time where polls are recorded
    /// always. Default: 16 MiB.
    pub max_bytes: Bytes,
    /// How long before its trigger a trace begins, as far as the memory reaches. Default: 30 s.
    pub window: Duration,
    /// A poll that lasts this long is a stall: it is told in the log and in `status`, with the stack of its
    /// thread; none: nobody looks. Default: 100 ms.
    ///
    /// Recorded polls are timed exactly. Of other tasks on an observed multi-thread runtime a stall is
    /// suspected by what the runtime counts, and told once two stacks show the same poll
    /// ([`ThreadsMode::Full`]): of a poll that sleeps within twice the threshold, of one that computes
    /// after 310 ms at the least.
    pub stall: Option<Duration>,
}

/// Dumps of threads and tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct StacksSettings {
    /// How threads are dumped. Default: in full.
    pub threads: ThreadsMode,
    /// How tasks are dumped. Default: in full.
    pub tasks: TasksMode,
    /// How long asking the tasks may take in all. Default: 2 seconds.
    pub tasks_deadline: Duration,
}

/// How threads are dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadsMode {
    /// With their stacks: each gets a signal, which some system calls do not stand (`stacks::threads` lists
    /// them).
    Full,
    /// As `/proc` shows them, without stacks and without a signal.
    ProcOnly,
    /// Not at all.
    Off,
}

impl ThreadsMode {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Full, Self::ProcOnly, Self::Off];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ProcOnly => "proc-only",
            Self::Off => "off",
        }
    }
}

/// How tasks are dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TasksMode {
    /// With their stacks: each is woken once.
    Full,
    /// Listed, without being woken.
    ListOnly,
    /// Not at all.
    Off,
}

impl TasksMode {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Full, Self::ListOnly, Self::Off];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ListOnly => "list-only",
            Self::Off => "off",
        }
    }
}
