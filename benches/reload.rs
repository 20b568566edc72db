//! Latency from a change of the settings file until a running agent applies it.
//!
//! `cargo bench --bench reload`
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. The file is changed the way editors
//! and Kubernetes change it. The clock starts before the change and stops when the status shows the
//! new settings, so it includes reading the status. The maximum is shown beside the median, because
//! each change must take effect within a second.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use marple::{AgentHandle, Builder};

const ROUNDS: usize = 9;
const GOAL_MILLIS: f64 = 1000.0;
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Installs the settings `text` in round `round`.
type Change = fn(dir: &Path, text: &str, round: usize);

fn main() {
    // `cargo test --all-targets` runs benches too; only `cargo bench` passes `--bench`.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let changes: [(&str, Change); 4] = [
        ("written in place", |dir, text, _| fs::write(dir.join("marple.toml"), text).unwrap()),
        ("replaced by rename", replace_by_rename),
        ("removed and created", remove_and_create),
        ("ConfigMap symlink swapped", swap_symlink),
    ];
    for (name, change) in changes {
        let mut millis = measure_reloads(name == "ConfigMap symlink swapped", change);
        millis.sort_by(f64::total_cmp);
        let (median, maximum) = (millis[millis.len() / 2], millis[millis.len() - 1]);
        let verdict = if maximum <= GOAL_MILLIS { "pass" } else { "short" };
        println!("{name}: applied, median, ms  {median:.0}  -  -");
        println!(
            "{name}: applied, maximum of {ROUNDS}, ms  {maximum:.0}  <= {GOAL_MILLIS}  {verdict}"
        );
    }
}

/// Returns the latency of each of [`ROUNDS`] changes, in milliseconds.
fn measure_reloads(mounted: bool, change: Change) -> Vec<f64> {
    let temp_dir = tempfile::tempdir().unwrap();
    let config = temp_dir.path().join("config");
    fs::create_dir(&config).unwrap();
    let text = |round: usize| {
        let dir = temp_dir.path().join("captures");
        format!(
            "service = \"round-{round}\"\ndir = {dir:?}\ninclude_default_rules = false\n[toggle]\nsignal = \"off\"\n"
        )
    };
    if mounted {
        create_version(&config, &text(0), 0);
        symlink("..0", config.join("..data")).unwrap();
        symlink("..data/marple.toml", config.join("marple.toml")).unwrap();
    } else {
        fs::write(config.join("marple.toml"), text(0)).unwrap();
    }
    let agent = Builder::from_file(config.join("marple.toml")).unwrap().start().unwrap();
    let handle = agent.handle();
    let applied_at =
        |handle: &AgentHandle| handle.status().wait(WAIT_TIMEOUT).unwrap().config.applied;
    let round = |round: usize| {
        let before = applied_at(&handle);
        // Varies the phase relative to anything periodic.
        thread::sleep(Duration::from_millis(700 + (round as u64 * 97) % 250));
        let changed = Instant::now();
        change(&config, &text(round), round);
        while applied_at(&handle) == before {
            assert!(changed.elapsed() < WAIT_TIMEOUT, "the settings are not applied");
            thread::sleep(Duration::from_millis(2));
        }
        changed.elapsed().as_secs_f64() * 1e3
    };
    (1..=ROUNDS).map(round).collect()
}

/// Replaces the file by renaming, like an editor.
fn replace_by_rename(dir: &Path, text: &str, _: usize) {
    let draft = dir.join(".marple.toml.swp");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, dir.join("marple.toml")).unwrap();
}

fn remove_and_create(dir: &Path, text: &str, _: usize) {
    fs::remove_file(dir.join("marple.toml")).unwrap();
    fs::write(dir.join("marple.toml"), text).unwrap();
}

/// Replaces the directory behind a symlink, like kubelet does for a mounted ConfigMap.
fn swap_symlink(dir: &Path, text: &str, round: usize) {
    create_version(dir, text, round);
    symlink(format!("..{round}"), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    fs::remove_dir_all(dir.join(format!("..{}", round - 1))).unwrap();
}

fn create_version(dir: &Path, text: &str, round: usize) {
    let dir = dir.join(format!("..{round}"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("marple.toml"), text).unwrap();
}
