//! Tests that the daily quota of on-demand captures is kept across restarts. A heap profile, which
//! fails without the allocator, uses none of it.
//!
//! The test runs itself as the service: with `MARPLE_TEST_SERVICE` set, `service_process` prints
//! its address and waits to be killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::{env, thread};

use jiff::{SignedDuration, Timestamp};
use marple::config::{BudgetSettings, HttpSettings, Listen};
use marple::{Builder, Settings};

use crate::support::host::{WAIT_TIMEOUT, settings};
use crate::support::rerun::{self, test_path};
use crate::support::web::{self, get, send_request};

const SERVICE_ENV: &str = "MARPLE_TEST_SERVICE";

#[test]
fn service_process() {
    let Some(dir) = env::var_os(SERVICE_ENV) else { return };
    let address = web::unused_address();
    let http = HttpSettings { listen: Listen::Tcp(address), ..HttpSettings::default() };
    let budget = BudgetSettings { on_demand_captures_per_day: 3, ..Default::default() };
    let settings = Settings { dir: dir.into(), http: Some(http), budget, ..settings() };
    let _agent = Builder::from_settings(settings).start().unwrap();
    println!("SAYS http://{address}");
    thread::sleep(WAIT_TIMEOUT);
}

/// The service in a child process, killed when it is dropped.
struct Service(Child, String);

impl Service {
    fn start(dir: &Path) -> Self {
        let mut child = rerun::command(test_path!(service_process))
            .env(SERVICE_ENV, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address_line = lines
            .map(Result::unwrap)
            .find_map(|line| line.split_once("SAYS ").map(|(_, url)| format!("{url}/debug/pprof")));
        Self(child, address_line.expect("the service says where it listens"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn daily_quota_survives_restarts_and_429_has_retry_time() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let first = Service::start(&dir);
    // This program's allocator is not marple's: the capture fails, which uses no quota and is not
    // an error of the agent.
    let heap = get(&format!("{}/heap", first.1));
    assert_eq!((heap.status, heap.header("x-go-pprof")), (404, Some("1")), "{}", heap.text());
    assert!(heap.text().contains("#[global_allocator]"), "{}", heap.text());
    for path in ["threadcreate", "goroutine"] {
        assert_eq!(get(&format!("{}/{path}", first.1)).status, 200, "{path}");
    }
    // These requests are not captures.
    for path in ["/", "/symbol?0x1", "/cmdline", "/block", "/mutex", "/profile?seconds=x&hz=0"] {
        assert!([200, 400].contains(&get(&format!("{}{path}", first.1)).status), "{path}");
    }
    assert_eq!(send_request("HEAD", &format!("{}/goroutine", first.1), &[], "").status, 200);
    drop(first);

    let second = Service::start(&dir);
    assert_eq!(get(&format!("{}/goroutine?debug=1", second.1)).status, 200);
    let before = Timestamp::now();
    for path in ["goroutine", "profile?seconds=1", "trace", "threadcreate", "heap"] {
        let response = get(&format!("{}/{path}", second.1));
        assert_eq!((response.status, response.header("x-go-pprof")), (429, Some("1")), "{path}");
        let text = response.text();
        let exhausted_until = text.trim().rsplit(' ').next().unwrap().parse::<Timestamp>().unwrap();
        assert!(
            text.contains("budget.on_demand_captures_per_day (3) is exhausted until"),
            "{text}"
        );
        assert!(exhausted_until > before + SignedDuration::from_hours(23), "{text}");
        let wait: i64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=24 * 3600 + 15 * 60 + 1).contains(&wait), "{wait}");
    }
    drop(second);

    let third = Service::start(&dir);
    assert_eq!(get(&format!("{}/goroutine", third.1)).status, 429, "killed and started again");
    assert_eq!(get(&format!("{}/symbol?0x1", third.1)).status, 200);
}
