//! Invalid values of single keys: one line for each, with its position, the value found and the
//! value expected.

use std::path::Path;

use marple::config::parse;

/// Returns the error message of a file whose first line is `section` and whose second is `line`.
/// The message must contain exactly one problem.
fn single_error(section: &str, line: &str) -> String {
    let text = format!("{section}\n{line}\n");
    let message = parse(&text, Path::new("orders.toml")).expect_err(&text).to_string();
    assert_eq!(message.lines().count(), 1, "{text}{message}");
    message
}

#[test]
fn invalid_value_is_reported_with_position_value_and_expectation() {
    for (section, line, parts) in [
        ("[cpu]", r#"mode = "walls""#, ["2:8: cpu.mode:", "\"walls\"", "\"cpu\" or \"wall\""]),
        ("[cpu]", "mode = 1", ["2:8: cpu.mode:", "`1`", "\"cpu\" or \"wall\""]),
        ("[cpu]", "mode = true", ["2:8: cpu.mode:", "`true`", "\"cpu\" or \"wall\""]),
        ("[cpu]", "wall_frequency_hz = 0", ["2:21: cpu.wall_frequency_hz:", " 0 ", "1 to 1000"]),
        (
            "[cpu]",
            "wall_frequency_hz = 5000",
            ["2:21: cpu.wall_frequency_hz:", " 5000 ", "1 to 1000"],
        ),
        ("[cpu]", "wall_frequency_hz = -1", ["2:21: cpu.wall_frequency_hz:", "`-1`", "such as 99"]),
        (
            "[cpu]",
            "wall_frequency_hz = 1.5",
            ["2:21: cpu.wall_frequency_hz:", "`1.5`", "such as 99"],
        ),
        (
            "[cpu]",
            "wall_frequency_hz = \"9\"",
            ["2:21: cpu.wall_frequency_hz:", "\"9\"", "such as 99"],
        ),
        (
            "[trace]",
            "stall_threshold = \"9ms\"",
            ["2:19: trace.stall_threshold:", "9ms", "10ms to 1m, or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = \"61s\"",
            ["2:19: trace.stall_threshold:", "61s", "10ms to 1m, or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = \"0s\"",
            ["2:19: trace.stall_threshold:", "0ns", "10ms to 1m, or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = \"-1s\"",
            ["2:19: trace.stall_threshold:", "\"-1s\"", "\"100ms\", or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = \"on\"",
            ["2:19: trace.stall_threshold:", "\"on\"", "\"100ms\", or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = 100",
            ["2:19: trace.stall_threshold:", "`100`", "\"100ms\", or \"off\""],
        ),
        (
            "[trace]",
            "stall_threshold = false",
            ["2:19: trace.stall_threshold:", "`false`", "\"100ms\", or \"off\""],
        ),
        (
            "[budget]",
            "on_demand_captures_per_day = 0",
            ["2:30: budget.on_demand_captures_per_day:", " 0 ", "10000000"],
        ),
        (
            "[budget]",
            "on_demand_captures_per_day = 10000001",
            ["2:30: budget.on_demand_captures_per_day:", " 10000001 ", "1 to 10000000"],
        ),
        (
            "[budget]",
            "on_demand_captures_per_day = -1",
            ["2:30: budget.on_demand_captures_per_day:", "`-1`", "a whole number"],
        ),
        (
            "[budget]",
            r#"on_demand_captures_per_day = "many""#,
            ["2:30: budget.on_demand_captures_per_day:", "\"many\"", "a whole number"],
        ),
    ] {
        let message = single_error(section, line);
        assert!(message.starts_with(&format!("orders.toml:{}", parts[0])), "{line}\n{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{line}\n{message}\n{parts:?}");
    }
}

#[test]
fn values_at_bounds_are_accepted() {
    for text in [
        "[cpu]\nmode = \"wall\"\nwall_frequency_hz = 1",
        "[cpu]\nmode = \"cpu\"\nwall_frequency_hz = 1000",
        "[trace]\nstall_threshold = \"10ms\"",
        "[trace]\nstall_threshold = \"1m\"",
        "[trace]\nstall_threshold = \"off\"",
        "[budget]\non_demand_captures_per_day = 1",
        "[budget]\non_demand_captures_per_day = 10000000",
        "[[rule]]\nmetric = \"tasks\"\nabs = 1\ncollectors = [\"a.txt\", \"a.txt\"]",
        "[[rule]]\nmetric = \"tasks\"\nabs = 1\ncollectors = []",
        "[[rule]]\nmetric = \"tasks\"\nabs = 1\ncollectors = \"all\"",
    ] {
        let settings = parse(text, Path::new("orders.toml"));
        assert!(settings.is_ok(), "{text}\n{settings:?}");
    }
}

#[test]
fn invalid_collector_file_names_are_reported() {
    let list = "\"all\" or a list such as [\"running_queries.txt\"]";
    let name = "a file name in quotes, such as \"running_queries.txt\"";
    let letters = "1 to 64 letters, digits, `-`, `_` or `.`";
    for (value, shown, right) in [
        (r#"["/etc/passwd"]"#, "`/etc/passwd`", letters),
        (r#"["a.txt", "../a.txt"]"#, "`../a.txt`", letters),
        (r#"[""]"#, "``", letters),
        (r#"["a.part"]"#, "`a.part`", "without `.part` at the end"),
        (r#""a.txt""#, "\"a.txt\"", list),
        (r#""""#, "\"\"", list),
        ("3", "`3`", list),
        ("true", "`true`", list),
        (r#"["a.txt", 3]"#, "`3`", name),
        (r#"[["a.txt"]]"#, "sequence", name),
    ] {
        let message =
            single_error("[[rule]]", &format!("collectors = {value}\nmetric = \"tasks\"\nabs = 9"));
        assert!(message.starts_with("orders.toml:2:"), "{value}\n{message}");
        assert!(message.contains(": rule[0].collectors: "), "{value}\n{message}");
        assert!(message.contains(shown) && message.contains(right), "{value}\n{message}");
    }
}

#[test]
fn non_string_in_list_or_table_is_reported_with_expectation() {
    for (line, parts) in [
        ("capture = [\"cpu\", 3]", ["rule[0].capture:", "`3`", "such as \"cpu\""]),
        ("for = { abs = 3 }", ["rule[0].for:", "`3`", "such as \"2s\""]),
        ("for = { abs = \"3\" }", ["rule[0].for:", "\"3\"", "such as \"2s\""]),
        ("for = { above = \"3s\" }", ["rule[0].for", "`above`", "`abs`"]),
    ] {
        let message = single_error("[[rule]]", &format!("{line}\nmetric = \"tasks\"\nabs = 9"));
        assert!(message.starts_with("orders.toml:2:"), "{line}\n{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{line}\n{message}");
    }
}

#[test]
fn invalid_below_is_reported_once() {
    let with =
        |metric: &str, line: &str| single_error("[[rule]]", &format!("{line}\nmetric = {metric}"));
    for (metric, line, parts) in [
        (r#""gauge.free""#, r#"below = "lots""#, ["2:9: rule[0].below:", "\"lots\"", "a number"]),
        (r#""gauge.free""#, "below = true", ["2:9: rule[0].below:", "`true`", "a number"]),
        (r#""gauge.free""#, "below = inf", ["2:9: rule[0].below:", "`inf`", "a number"]),
        (r#""gauge.free""#, "below = [5]", ["2:9: rule[0].below:", "sequence", "a number"]),
        (r#""memory""#, "below = 150", ["2:9: rule[0].below:", "150", "write 0 to 100"]),
        (r#""memory""#, r#"below = "x%""#, ["2:9: rule[0].below:", "\"x%\"", "such as 80"]),
        (r#""memory.time_to_limit""#, "below = 5", ["2:9: rule[0].below:", "`5`", "a duration"]),
        // One of two mutually exclusive keys cannot be parsed: only that problem is reported.
        (
            r#""gauge.free""#,
            "below = \"lots\"\nabs = 9",
            ["2:9: rule[0].below:", "\"lots\"", "a number"],
        ),
        (
            r#""gauge.free""#,
            "abs = \"lots\"\nbelow = 9",
            ["2:7: rule[0].abs:", "\"lots\"", "a number"],
        ),
        (
            r#""gauge.free""#,
            "below = 5\ndiff = 20",
            ["2:9: rule[0].below:", "cannot be combined with", "use a separate rule"],
        ),
        (
            r#""memory""#,
            "below = 5\nforecast = \"10m\"",
            ["2:9: rule[0].below:", "cannot be combined with", "use a separate rule"],
        ),
        (
            r#""gauge.free""#,
            "below = 5\nmin = 5",
            ["2:9: rule[0].below:", "5 is not above min (5)", "write a higher value"],
        ),
    ] {
        let message = with(metric, line);
        assert!(message.starts_with(&format!("orders.toml:{}", parts[0])), "{line}\n{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{line}\n{message}\n{parts:?}");
    }
}
