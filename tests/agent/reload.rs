//! Changes of the settings file and the trigger file under a running agent.

use std::fs;
use std::path::Path;
use std::time::Duration;

use marple::internals::agent::Status;
use marple::internals::model::Origin;
use marple::{AgentHandle, Builder};

use crate::support::host::{WAIT_TIMEOUT, incidents, wait_for};

fn write(path: &Path, captures: &Path, body: &str) {
    let text = format!(
        "dir = {:?}\ninterval = \"20ms\"\ninclude_default_rules = false\n{body}",
        captures.to_str().unwrap()
    );
    let part = path.with_extension("new");
    fs::write(&part, text).unwrap();
    fs::rename(&part, path).unwrap();
}

fn status(handle: &AgentHandle) -> Box<Status> {
    handle.status().wait(WAIT_TIMEOUT).unwrap()
}

const RULE: &str = "[[rule]]\nname = \"queue\"\nmetric = \"gauge.queue\"\nabs = 10\n\
                    capture = [\"heap\"]\nduration = \"50ms\"\ncooldown = \"1h\"\n";

#[test]
fn valid_settings_are_applied_and_invalid_ones_rejected() {
    let home = tempfile::tempdir().unwrap();
    let (path, captures) = (home.path().join("marple.toml"), home.path().join("captures"));
    let trigger = home.path().join("trigger");
    let toggle = format!(
        "[toggle]\nsignal = \"off\"\ncapture = [\"trace\"]\ntrigger_file = {:?}\n",
        trigger.to_str().unwrap()
    );
    write(&path, &captures, &format!("{toggle}{RULE}"));
    let agent = Builder::from_file(&path).unwrap().start().unwrap();
    let handle = agent.handle();

    // The rule fires, and again only if the value is worse.
    let gauge = handle.gauge("queue").unwrap();
    gauge.set(11.0);
    wait_for("an incident", || incidents(&captures).pop());
    gauge.set(1.0);
    let rule = || status(&handle).rules.into_iter().find(|rule| rule.name == "queue").unwrap();
    gauge.set(11.0);
    let is_held_back = || ["not_worse", "cooling_down"].contains(&rule().decision).then_some(());
    wait_for("it to be held back", is_held_back);

    // A second rule is added; the first keeps its state.
    let more =
        format!("{toggle}{RULE}[[rule]]\nname = \"tasks\"\nmetric = \"tasks\"\nabs = 1000\n");
    write(&path, &captures, &more);
    wait_for("the second rule", || (status(&handle).rules.len() == 2).then_some(()));
    wait_for("it to be held back still", is_held_back);

    // An invalid file is rejected with its errors; the settings in force stay.
    write(&path, &captures, &more.replace("abs = 1000", "abs = \"many\"\nduraton = \"1s\""));
    let rejected = wait_for("the refusal", || status(&handle).config.rejected.clone());
    assert!(rejected.contains("marple.toml"), "{rejected}");
    assert!(rejected.contains("many") && rejected.contains("duraton"), "{rejected}");
    assert_eq!(status(&handle).rules.len(), 2);

    // The corrected file also changes a setting that needs a restart.
    write(&path, &home.path().join("elsewhere"), &toggle);
    wait_for("the rules to go", || status(&handle).rules.is_empty().then_some(()));
    let config = status(&handle).config.clone();
    assert_eq!((config.rejected, config.needs_restart), (None, vec!["dir"]));
    assert_eq!(status(&handle).dir, captures);

    fs::write(&trigger, "").unwrap();
    wait_for("the toggle to be on", || status(&handle).toggle.on.then_some(()));
    let on = status(&handle).toggle.incident.unwrap();
    std::thread::sleep(Duration::from_millis(20)); // another modification time
    fs::write(&trigger, "").unwrap();
    wait_for("the toggle to be off", || (!status(&handle).toggle.on).then_some(()));
    drop(agent);
    let found = incidents(&captures);
    let (_, manifest) = found.iter().find(|(_, manifest)| manifest.id == on).unwrap();
    assert_eq!(manifest.reasons[0].origin, Origin::TriggerFile);
}
