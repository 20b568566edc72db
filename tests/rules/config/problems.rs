//! Error messages for an invalid configuration: all problems are reported at once, each with its
//! position.

use std::path::Path;
use std::time::Duration;

use marple::config::{HttpSettings, Listen, Secret, Settings, parse};
use marple::internals::base::{Bytes, Hertz};
use marple::internals::model::{CaptureSet, Metric, Rule};

fn error_message(text: &str) -> String {
    parse(text, Path::new("orders.toml")).expect_err("this is not valid").to_string()
}

/// Returns the error message of `text`, which must contain exactly one problem.
fn single_error(text: &str) -> String {
    let refusal = error_message(text);
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    refusal
}

#[test]
fn store_limits_are_set_per_rule_name() {
    let text = "[store.rule.toggle]\nmax_incidents = 3\n[store.rule.\"my rule\"]\nmax_bytes = \"8MiB\"\n\
                max_age = \"1d\"\n[[rule]]\nname = \"my_rule\"\nmetric = \"tasks\"\nabs = 5\n";
    let error = parse(text, Path::new("orders.toml")).unwrap_err().to_string();
    assert!(error.contains("store.rule.my rule: no rule has the name `my rule`"), "{error}");
    assert_eq!(error.matches("orders.toml:").count(), 1, "{error}");
    let settings =
        parse(&text.replace("\"my rule\"", "my_rule"), Path::new("orders.toml")).unwrap();
    assert_eq!(settings.store.rules["toggle"].max_incidents, Some(3));
    let own = &settings.store.rules["my_rule"];
    assert_eq!((own.max_bytes, own.max_incidents), (Some(Bytes::mib(8)), None));
    assert_eq!(own.max_age, Some(Duration::from_secs(24 * 60 * 60)));
    for (wrong, why) in [
        ("max_bytes = \"1KiB\"", "store.rule.call.max_bytes: 1.0 KiB is below the minimum"),
        ("max_incidents = 0", "store.rule.call.max_incidents: 0 keeps no incidents"),
        ("max_age = \"0s\"", "store.rule.call.max_age: the duration is 0"),
        ("max_agee = \"1s\"", "did you mean `max_age`?"),
    ] {
        let text = format!("[store.rule.call]\n{wrong}\n");
        let error = parse(&text, Path::new("orders.toml")).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("orders.toml:2:"), "{error}");
    }
    let error = parse("[store]\nrule = 1\n", Path::new("orders.toml")).unwrap_err().to_string();
    assert!(error.contains("write [store.rule.NAME]"), "{error}");
}

#[test]
fn all_problems_of_file_are_reported_together() {
    let text = r#"
service = "a/b"
intervall = "1s"
interval = "5ms"
colour = true

[store]
max_bytes = "12 parsecs"
max_incidents = 0
min_free_space = "120%"

[toggle]
signal = "SIGKILL"
capture = ["cpu", "gpu"]

[http]
listen = "0.0.0.0:6060"

[cpu]
frequency_hz = 0

[[rule]]
metric = "memory"
abs = 80
clear = 90

[[rule]]
metric = "memroy"
abs = "lots"

[[rule]]
abs = 1

[[rule]]
metric = "memory"
max = 50
"#;
    let refusal = error_message(text);
    let expected = [
        "orders.toml:2:11: service: `a/b` cannot be part of a file name",
        "orders.toml:3:1: intervall: unknown key `intervall`: did you mean `interval`?",
        "orders.toml:5:1: colour: unknown key `colour`: valid keys: service, instance, dir, interval",
        "orders.toml:8:13: store.max_bytes: `12 parsecs` is not a size",
        "orders.toml:9:17: store.max_incidents: 0 keeps no incidents: write 1 or more",
        "orders.toml:10:18: store.min_free_space: 120 % is not a valid share",
        "orders.toml:13:10: toggle.signal: invalid value: string \"SIGKILL\", expected \"SIGUSR1\"",
        "orders.toml:14:11: toggle.capture: `gpu` is not a capture kind",
        "orders.toml:17:10: http.listen: 0.0.0.0:6060 can be reached from other machines",
        "orders.toml:20:16: cpu.frequency_hz: 0 is out of bounds: write 1 to 1000",
        "orders.toml:25:9: rule[0].clear: 90.0 % is not below abs (80.0 %)",
        "orders.toml:28:10: rule[1].metric: `memroy` is not a metric",
        "orders.toml:31:1: rule[2].metric: missing key: write `metric = \"memory\"`",
        "orders.toml:34:1: rule[3].abs: the rule can never fire",
        "orders.toml:34:1: rule[3].name: `memory` is also the name of another rule",
    ];
    let lines: Vec<&str> = refusal.lines().map(str::trim).collect();
    for line in expected {
        assert!(lines.iter().any(|actual| actual.starts_with(line)), "missing: {line}\n{refusal}");
    }
    // The misspelled key `intervall` is one problem only: the intended key is unknown.
    assert_eq!(lines.len(), expected.len() + 1, "{refusal}");
    assert_eq!(lines[0], "15 problems in the configuration:");
}

#[test]
fn all_syntax_errors_and_invalid_values_are_reported() {
    let refusal = error_message(
        "dir = = \"x\"\n[store\nmax_age = \"3 moons\"\n[cpu]\nfrequency_hz = 1.2.3\n[heap]\nrate = \"x\"\n",
    );
    for place in
        ["orders.toml:1:7: ", "orders.toml:2:", "orders.toml:5:", "orders.toml:7:8: heap.rate:"]
    {
        assert!(refusal.contains(place), "{place} is not in\n{refusal}");
    }
    assert!(!refusal.contains("unknown key"), "{refusal}");
}

#[test]
fn each_problem_is_one_line() {
    for (text, expected) in [
        (
            "interval = 250",
            "orders.toml:1:12: interval: invalid value: integer `250`, expected a duration such as \"250ms\", \"1m 30s\" or \"14d\"",
        ),
        (
            "interval = \"2h\"",
            "orders.toml:1:12: interval: 7200s is out of bounds: write a duration from 10ms to 1h",
        ),
        (
            "dir = true",
            "orders.toml:1:7: dir: invalid type: boolean `true`, expected a path in quotes",
        ),
        ("dir = \"\"", "orders.toml:1:7: dir: the path is empty"),
        (
            "store = 1",
            "orders.toml:1:9: store: expected a section, found a value of type integer: write [store]",
        ),
        (
            "[rule]\nabs = 1",
            "rule: expected a section, found a value of type table: write [[rule]] above each",
        ),
        (
            "[toggle]\ncapture = [\"gpu\", \"cpu\", \"disk\"]",
            "`gpu` is not a capture kind: write one of \"cpu\", \"heap\", \"trace\", \"threads\", \"tasks\", \"descriptors\", \"panics\"; `disk` is not",
        ),
        (
            "[toggle]\ncapture = \"cpu\"",
            "invalid type: string \"cpu\", expected a list such as [\"cpu\"",
        ),
        ("[toggle]\ncapture = []", "toggle.capture: nothing to capture"),
        (
            "[trace]\nmode = \"often\"",
            "invalid value: string \"often\", expected \"always\", \"on-demand\" or \"off\"",
        ),
        (
            "[trace]\nwindow = \"999ms\"",
            "trace.window: 999ms is out of bounds: write a duration from",
        ),
        (
            "[trace]\nstall_threshold = \"9ms\"",
            "trace.stall_threshold: 9ms is out of bounds: write a duration from 10ms to 1m, or \"off\"",
        ),
        (
            "[trace]\nwindow = \"11m\"",
            "trace.window: 660s is out of bounds: write a duration from 1s",
        ),
        (
            "[trace]\nmax_bytes = 1",
            "trace.max_bytes: 1 B is below the minimum: write 64.0 KiB or more",
        ),
        (
            "[http]\nlisten = \"localhost\"",
            "http.listen: invalid value: string \"localhost\", expected an IP address and a port",
        ),
        ("[http]\ntoken = \"a b\"", "orders.toml:2:9: http.token: expected \"sha256:\" and 64"),
        (
            "[[rule]]\nmetric = \"runtime.lag\"\nabs = 3",
            "rule[0].abs: invalid value: integer `3`, expected a duration",
        ),
        (
            "[[rule]]\nmetric = \"memory\"\nabs = 8000",
            "rule[0].abs: memory can never reach 8000: write 0 to 100",
        ),
        ("[[rule]]\nmetric = \"tasks\"\nabs = nan", "expected a number"),
        ("[[rule]]\nmetric = \"tasks\"\ndiff = 0", "rule[0].diff: 0 would fire on a steady value"),
        ("[[rule]]\nmetric = \"tasks\"\nabs = 9\nmax = 9", "rule[0].max: 9 is not above abs (9)"),
        (
            "[[rule]]\nmetric = \"tasks\"\nmin = 9\ndiff = 5\nmax = 9",
            "rule[0].max: 9 is not above min (9)",
        ),
        (
            "[[rule]]\nname = \"Mem\"\nmetric = \"memory\"\nabs = 9",
            "rule[0].name: `Mem` is not a valid rule name",
        ),
        (
            "[[rule]]\nmetric = \"memory\"\nabs = 9\nduration = \"0s\"",
            "rule[0].duration: the duration is 0",
        ),
    ] {
        let message = single_error(text);
        assert!(message.contains(expected), "{text}\n{message}\n{expected}");
    }
}

#[test]
fn implausible_value_is_rejected_with_suggestion() {
    let rule = |text: &str| format!("[[rule]]\n{text}");
    for (text, expected) in [
        (
            "metric = \"memory\"\nabs = 0.8",
            ":3:7: rule[0].abs: 0.8 would be 0.8 %; did you mean 80 %?",
        ),
        ("metric = \"cpu\"\nabs = 80\nclear = 0.5", "rule[0].clear: 0.5 would be 0.5 %"),
        (
            "metric = \"tasks\"\ndiff = 0.25",
            "rule[0].diff: 0.25 would be 0.25 %; did you mean 25 %?",
        ),
        (
            "metric = \"memory.rss\"\nabs = 80",
            ":3:7: rule[0].abs: memory.rss always exceeds 80 bytes: write \"80MiB\"",
        ),
        (
            "metric = \"memory.heap\"\nabs = \"2KiB\"",
            "rule[0].abs: memory.heap always exceeds 2048 bytes",
        ),
        ("metric = \"memory\"\nabs = 80\nmin = 90", "rule[0].min: 90.0 % is above abs (80.0 %)"),
        (
            "metric = \"memory\"\nabs = 80\ncritical = 70",
            "rule[0].critical: 70.0 % is below abs (80.0 %), so every incident",
        ),
        (
            "metric = \"memory\"\nforecast = \"10s\"\nmin = 75\ncritical = 70",
            "rule[0].critical: 70.0 % is below min (75.0 %)",
        ),
        (
            "metric = \"memory\"\nabs = 80\nmax = 95\ncritical = 97",
            "rule[0].critical: 97.0 % is not below max (95.0 %)",
        ),
        (
            "metric = \"memory\"\nforecast = \"10s\"\nmax = 95\nclear = 96",
            "rule[0].clear: 96.0 % is not below max (95.0 %)",
        ),
        (
            "metric = \"gauge.free\"\nbelow = 5\ncritical = 7",
            "rule[0].critical: 7 is above below (5), so every incident",
        ),
        (
            "metric = \"gauge.free\"\nbelow = 5\nmin = 2\ncritical = 1",
            "rule[0].critical: 1 is not above min (2)",
        ),
        ("metric = \"tasks\"\nabs = 5\nfor = \"25h\"", "rule[0].for: 90000s is longer than a day"),
        ("metric = \"tasks\"\nabs = 5\nclear_for = \"2d\"", "rule[0].clear_for: 172800s is longer"),
        (
            "metric = \"memory\"\nabs = 80\nforecast = \"10s\"\nfor = \"30s\"",
            "rule[0].for: 30s is not shorter than forecast (10s)",
        ),
        ("metric = \"memory\"\nforecast = \"0s\"", "rule[0].forecast: the duration is 0"),
    ] {
        let message = single_error(&rule(text));
        assert!(message.contains(expected), "{text}\n{message}\n{expected}");
    }
    for (text, expected) in [
        (
            "[budget]\nskip_cpu_profile_above = 0.9",
            "budget.skip_cpu_profile_above: 0.9 would be 0.9 %; did you mean 90 %?",
        ),
        (
            "[store]\nmin_free_space = 5",
            "store.min_free_space: 5 would be 5 bytes; did you mean 5 %?",
        ),
    ] {
        let message = single_error(text);
        assert!(message.contains(expected), "{text}\n{message}\n{expected}");
    }
    for text in [
        "metric = \"memory.pressure\"\nabs = \"0.5%\"",
        "metric = \"memory.rss\"\nabs = \"80MiB\"",
        "metric = \"memory.rss\"\nabs = 0",
        "metric = \"memory\"\nabs = 80\nmin = 80\ncritical = 80",
        "metric = \"memory\"\nabs = 80\nforecast = \"10s\"\nfor = { abs = \"30s\", forecast = \"1s\" }",
        "metric = \"gauge.free\"\nbelow = 5\ncritical = 5\nclear = 6",
    ] {
        parse(&rule(text), Path::new("x")).unwrap();
    }
}

#[test]
fn values_are_accepted_up_to_their_bounds() {
    let with = |text: &str| parse(text, Path::new("x")).is_ok();
    for (good, bad) in [
        ("interval = \"10ms\"", "interval = \"9ms\""),
        ("interval = \"1h\"", "interval = \"1h 1ms\""),
        ("[cpu]\nfrequency_hz = 1000", "[cpu]\nfrequency_hz = 1001"),
        ("[cpu]\nfrequency_hz = 1", "[cpu]\nfrequency_hz = 1.5"),
        ("[heap]\nrate = 0", "[heap]\nrate = -1"),
        (
            "[heap]\nrate = 65536\nrate_during_incident = 65536",
            "[heap]\nrate = 65536\nrate_during_incident = 65537",
        ),
        ("[heap]\nrate = 0\nrate_during_incident = 1", "[heap]\nrate_during_incident = 0"),
        ("[store]\nmax_bytes = 1048576", "[store]\nmax_bytes = 1048575"),
        ("[store]\nmin_free_space = \"99%\"", "[store]\nmin_free_space = \"100%\""),
        ("[http]\nlisten = \"127.9.9.9:1\"", "[http]\nlisten = \"128.0.0.1:1\""),
        ("[http]\nlisten = \"[::1]:1\"", "[http]\nlisten = \"[::]:1\""),
        ("[http]\nlisten = \"[::ffff:127.0.0.1]:1\"", "[http]\nlisten = \"[::ffff:10.0.0.1]:1\""),
        (
            "[http]\nlisten = \"0.0.0.0:1\"\ntoken = \"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"",
            "[http]\nlisten = \"0.0.0.0:1\"",
        ),
        ("[http]\nlisten = \"unix:/run/a\"", "[http]\nlisten = \"unix:\""),
    ] {
        assert!(with(good), "{good}");
        assert!(!with(bad), "{bad}");
    }
    let name = |length| format!("service = \"{}\"", "s".repeat(length));
    assert!(with(&name(1)) && with(&name(64)));
    assert!(!with(&name(0)) && !with(&name(65)));
}

#[test]
fn values_are_parsed_in_usual_notations() {
    let text = r#"
include_default_rules = false
[store]
max_bytes = "2GB"
max_age = "1d 12h"
min_free_space = "1GiB"
[toggle]
signal = "off"
[[rule]]
metric = "runtime.lag"
abs = "1m 30s"
[[rule]]
metric = "memory.rss"
abs = "1.5GiB"
[[rule]]
metric = "gauge.queue.depth"
min = -5
abs = 0.5
[[rule]]
metric = "cpu"
abs = "80%"
diff = "25 %"
"#;
    let settings = parse(text, Path::new("x")).unwrap();
    assert_eq!(settings.store.max_bytes, Bytes(2_000_000_000));
    assert_eq!(settings.store.max_age, Duration::from_secs(36 * 60 * 60));
    assert_eq!(settings.toggle.signal, None);
    let read: Vec<_> =
        settings.rules.iter().map(|rule| (rule.name.as_str(), rule.abs, rule.min)).collect();
    assert_eq!(
        read,
        [
            ("runtime-lag", Some(90.0), 0.0),
            ("memory-rss", Some(1_610_612_736.0), 0.0),
            ("gauge-queue-depth", Some(0.5), -5.0),
            ("cpu", Some(80.0), 0.0),
        ]
    );
    assert_eq!(settings.rules[3].diff, Some(25.0));
}

#[test]
fn token_is_never_shown() {
    for text in [
        "[http]\ntoken = 314159265",
        "[http]\ntoken = \"314159265 \"",
        "[http]\ntoken = [\"314159265\"]",
        "[http]\ntoken = \"314159265",
        "[http]\ntoken = \"314159265\"\ntoken_file = \"/nowhere\"",
    ] {
        let message = error_message(text);
        assert!(!message.contains("314159265"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn token_file_is_trimmed_and_must_be_private() {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "s3cret\n").unwrap();
    let text = format!("[http]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"{}\"", path.display());
    for (mode, well) in [(0o600, true), (0o440, true), (0o604, false), (0o642, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match parse(&text, Path::new("x")) {
            Ok(settings) => {
                assert!(well, "{mode:o}");
                let token = settings.http.unwrap().token.unwrap();
                assert_eq!(token, Secret::new("s3cret"));
            }
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !well && message.contains("is accessible to all users"),
                    "{mode:o} {message}"
                );
                assert_eq!(message.lines().count(), 1, "{message}");
            }
        }
    }
    fs::remove_file(&path).unwrap();
    assert!(single_error(&text).contains("http.token_file: `"), "{}", single_error(&text));
}

#[test]
fn settings_from_code_are_validated_like_files() {
    let rule = Rule {
        diff: Some(f64::INFINITY),
        capture: CaptureSet::EMPTY,
        duration: Duration::ZERO,
        ..Rule::new(Metric::Memory)
    };
    let mut settings = Settings {
        interval: Duration::ZERO,
        rules: vec![rule.clone(), rule],
        http: Some(HttpSettings {
            listen: Listen::Tcp(([10, 0, 0, 1], 1).into()),
            ..HttpSettings::default()
        }),
        ..Settings::default()
    };
    settings.cpu.frequency_hz = Hertz(1001);
    let problems = settings.validate().unwrap_err();
    assert!(problems.iter().all(|problem| problem.position.is_none()));
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "interval",
            "cpu.frequency_hz",
            "http.listen",
            "rule[0].diff",
            "rule[0].capture",
            "rule[0].duration",
            "rule[1].diff",
            "rule[1].capture",
            "rule[1].duration",
            "rule[1].name",
        ]
    );
    assert!(problems.to_string().contains("\n  interval: 0ns is out of bounds"), "{problems}");

    settings.http = Some(HttpSettings {
        listen: Listen::Tcp(([10, 0, 0, 1], 1).into()),
        token: Some(Secret::new("t")),
        ..HttpSettings::default()
    });
    settings.rules.clear();
    settings.interval = Duration::from_secs(1);
    settings.cpu.frequency_hz = Hertz(99);
    assert_eq!(settings.validate(), Ok(()));
    assert_eq!(Settings::default().validate(), Ok(()));
}

#[test]
fn nested_or_huge_file_is_rejected_with_bounded_errors() {
    let nested = |open: &str| format!("a = {}", open.repeat(200_000));
    let many: String = (0..20_000).map(|n| format!("key_{n} = 1\n")).collect();
    for text in [nested("["), nested("{a="), "\0".repeat(10_000), "[".repeat(10_000), many.clone()]
    {
        let message = error_message(&text);
        assert!(message.lines().count() <= 102, "{}", message.lines().count());
    }
    assert!(error_message(&many).ends_with("\n  and 19900 more"));
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_does_not_panic_parser(text in "[a-z_=\\[\\]{}\"'.,#0-9 \\n\u{e9}]{0,80}", cut in 0..2000_usize) {
        let shipped_text = include_str!("../../../config/marple.toml");
        assert!(shipped_text.is_ascii());
        let cut = cut.min(shipped_text.len());
        let _ = parse(&text, Path::new("x"));
        let _ = parse(&format!("{}{text}{}", &shipped_text[..cut], &shipped_text[cut..]), Path::new("x"));
    }
}

#[test]
fn below_must_be_separate_rule() {
    let message_for = |body: &str| error_message(&format!("[[rule]]\nmetric = {body}"));
    for (body, part) in [
        ("\"gauge.free\"\nbelow = 5\nabs = 9", "use a separate rule"),
        ("\"gauge.free\"\nbelow = 5\nclear = 5", "5 is not above below (5)"),
        ("\"gauge.free\"\nbelow = -5", "-5 is not above min (0)"),
        (
            "\"memory.time_to_limit\"\nabs = \"10m\"",
            "lower values of memory.time_to_limit are worse",
        ),
        ("\"memory.time_to_limit\"", "can never fire: set `below`"),
        ("\"gauge.Free\"\nabs = 5", "`Free` is not a valid metric name"),
        ("\"counter.free\"\nabs = 5", "\\\"counter.NAME.rate\\\""),
    ] {
        assert!(message_for(body).contains(&part.replace('\\', "")), "{}", message_for(body));
    }
    let text = "[[rule]]\nmetric = \"memory.time_to_limit\"\nbelow = \"10m\"\nclear = \"1h\"\n\
                for = { below = \"5s\" }";
    let rule = parse(text, Path::new("x")).unwrap().rules.remove(0);
    assert_eq!((rule.below, rule.clear), (Some(600.0), Some(3600.0)));
    assert_eq!(rule.hold.below, Duration::from_secs(5));
}

#[test]
fn renamed_keys_and_values_give_an_error_with_the_new_name() {
    for (text, expected) in [
        (
            "domain = \"eu-1\"",
            "orders.toml:1:1: domain: unknown key `domain`: renamed to `instance`",
        ),
        ("rules = \"own\"", "replaced: write `include_default_rules = true` or `false`"),
        (
            "[budget]\njoin = \"30s\"",
            "orders.toml:2:1: budget.join: unknown key `join`: renamed to `join_window`",
        ),
        ("[budget]\nstreams_per_day = 9", "`on_demand_captures_per_day`"),
        ("[budget]\ncpu_ceiling = \"90%\"", "`skip_cpu_profile_above`"),
        ("[store]\nkeep_free = \"5%\"", "`min_free_space`"),
        ("[store]\nmax_incident_bytes = \"8MiB\"", "`max_bytes_per_incident`"),
        ("[http]\nhosts = [\"a\"]", "`allowed_hosts`"),
        ("[cpu]\nfrequency = 99", "`frequency_hz`"),
        ("[cpu]\nwall_frequency = 19", "`wall_frequency_hz`"),
        ("[cpu]\nlookback_frequency = 19", "`lookback_frequency_hz`"),
        ("[trace]\nstall = \"50ms\"", "`stall_threshold`"),
        (
            "[[rule]]\nmetric = \"tasks\"\nabs = 5\nagain = \"worse\"",
            "orders.toml:4:1: rule[0].again",
        ),
        ("[[rule]]\nmetric = \"tasks\"\nabs = 5\nagain = \"worse\"", "`refire = \"on-worsening\"`"),
        ("[[rule]]\nmetric = \"tasks\"\nabs = 5\ncollect = \"all\"", "`collectors`"),
        ("[[rule]]\nmetric = \"fds.share\"\nabs = \"5%\"", "renamed to \"fds.utilization\""),
    ] {
        let error = single_error(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
    let settings = parse("rules = \"default\"", Path::new("orders.toml")).unwrap();
    assert_eq!(settings.rules, Settings::default().rules, "the line states the default");
}
