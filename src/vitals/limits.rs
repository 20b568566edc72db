//! The limits in force: of memory, cores, descriptors and address space.

use std::sync::Arc;
use std::time::Duration;

use super::cgroup::{Cgroup, LimitProblem};
use super::intervals::take_if_due;
use crate::base::{Bytes, Moment, warnings};
use crate::model::Limit;
use crate::os::proc::cores::CoreCounter;
use crate::os::proc::process;

/// Interval at which the limits of the process are read. They change only by hand, from outside.
const PROCESS_LIMITS_INTERVAL: Duration = Duration::from_secs(10);

/// Interval at which the machine's memory is read. It changes by hotplug only, and reading it
/// allocates.
const MACHINE_MEMORY_INTERVAL: Duration = Duration::from_secs(60);

/// Topic of the warning about unreadable limits.
const LIMIT_WARNING_TOPIC: &str = "memory.limit";

/// A reader of the limits of the process: of its cgroup, of the machine, and its resource limits.
pub(super) struct LimitReader {
    pub(super) memory: Option<Limit<Bytes>>,
    /// `true` if `memory` is the limit of a cgroup.
    pub(super) is_cgroup_memory: bool,
    pub(super) machine_memory: Option<Limit<Bytes>>,
    pub(super) cpu: Option<Limit<f64>>,
    pub(super) address_space: Option<Limit<Bytes>>,
    pub(super) data: Option<Limit<Bytes>>,
    pub(super) descriptors: Option<u64>,
    cpus: CoreCounter,
    cores: Option<f64>,
    affinity_source: Arc<str>,
    /// Active warning about limits.
    problem: Option<LimitProblem>,
    cores_read_at: Option<Moment>,
    machine_read_at: Option<Moment>,
    process_limits_read_at: Option<Moment>,
}

impl LimitReader {
    pub(super) fn new() -> Self {
        Self {
            memory: None,
            is_cgroup_memory: false,
            machine_memory: None,
            cpu: None,
            address_space: None,
            data: None,
            descriptors: None,
            cpus: CoreCounter::default(),
            cores: None,
            affinity_source: "cpu affinity".into(),
            problem: None,
            cores_read_at: None,
            machine_read_at: None,
            process_limits_read_at: None,
        }
    }

    /// Reads the limits in force: a cgroup's if it is lower than that of the machine. Warns about
    /// limits that cannot be read. Returns `true` if the limits of the process were due.
    pub(super) fn read(&mut self, now: Moment, cgroup: &mut Cgroup) -> bool {
        cgroup.refresh();
        if take_if_due(&mut self.machine_read_at, now, MACHINE_MEMORY_INTERVAL) {
            self.machine_memory = process::physical_memory()
                .map(|value| Limit { value, source: "physical memory".into() });
        }
        let machine = self.machine_memory.as_ref();
        let cgroup_memory = cgroup
            .memory_limit()
            .filter(|limit| machine.is_none_or(|machine| limit.value < machine.value));
        self.is_cgroup_memory = cgroup_memory.is_some();
        self.memory = cgroup_memory.or(machine).cloned();

        let problem = cgroup.problem();
        if problem != self.problem {
            match problem {
                Some(problem) => warnings::set(LIMIT_WARNING_TOPIC, cgroup.describe(problem)),
                None => warnings::clear(LIMIT_WARNING_TOPIC),
            }
            self.problem = problem;
        }

        let are_process_limits_due =
            take_if_due(&mut self.process_limits_read_at, now, PROCESS_LIMITS_INTERVAL);
        if are_process_limits_due {
            self.descriptors = process::descriptor_limit();
            let limit = |value: Option<Bytes>, source: &str| {
                value.map(|value| Limit { value, source: source.into() })
            };
            self.address_space = limit(process::address_space_limit(), "RLIMIT_AS (ulimit -v)");
            self.data = limit(process::data_limit(), "RLIMIT_DATA (ulimit -d)");
        }
        if take_if_due(&mut self.cores_read_at, now, self.cpus.validity()) {
            self.cores = self.cpus.read().map(f64::from);
        }
        let cores = self.cores;
        let quota =
            cgroup.cpu_limit().filter(|limit| cores.is_none_or(|cores| limit.value < cores));
        self.cpu = quota
            .cloned()
            .or_else(|| cores.map(|value| Limit { value, source: self.affinity_source.clone() }));
        are_process_limits_due
    }
}
