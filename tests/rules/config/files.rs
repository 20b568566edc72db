//! The files in `config/` contain the values that the documentation states.

use std::path::{Path, PathBuf};
use std::time::Duration;

use marple::config::{Error, HttpSettings, Settings, default_rules, load, parse};
use marple::internals::model::{CaptureKind, CaptureSet, HoldDurations, Metric};

fn shipped_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn every_shipped_file_is_valid() {
    let mut files = 0;
    for entry in std::fs::read_dir(shipped_path("")).unwrap() {
        let path = entry.unwrap().path();
        load(&path).unwrap();
        files += 1;
    }
    assert!(files >= 3);
}

#[test]
fn marple_toml_shows_the_defaults() {
    let mut settings = load(&shipped_path("marple.toml")).unwrap();
    let rules = std::mem::take(&mut settings.rules);
    assert_eq!(settings, Settings { rules: Vec::new(), ..Settings::default() });
    let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names[..2], ["memory", "runtime-lag"]);
    let others = default_rules().into_iter().filter(|rule| !names[..2].contains(&&*rule.name));
    assert!(others.eq(rules.iter().skip(2).cloned()), "{names:?}");
    let text = std::fs::read_to_string(shipped_path("marple.toml")).unwrap();
    for rule in default_rules() {
        let line = format!("# name = \"{}\", metric = \"{}\"", rule.name, rule.metric);
        assert!(text.contains(&line), "the list at the end lacks {line}");
    }
    assert_eq!(HttpSettings::default().listen.to_string(), "127.0.0.1:6060");
}

#[test]
fn minimal_toml_has_the_default_rules() {
    assert_eq!(load(&shipped_path("minimal.toml")).unwrap().rules, default_rules());
}

#[test]
fn file_rules_extend_or_replace_default_rules() {
    let rules = |text: &str| parse(text, Path::new("test.toml")).unwrap().rules;
    let rule = "[[rule]]\nmetric = \"gauge.queue\"\nabs = 10\n";
    let all = rules(rule);
    assert_eq!((&*all[0].name, &all[1..]), ("gauge-queue", &default_rules()[..]));
    assert_eq!(rules(&format!("include_default_rules = true\n{rule}")), all);
    assert_eq!(rules(&format!("include_default_rules = false\n{rule}")), all[..1]);
    assert_eq!(rules("include_default_rules = false"), []);
    let replaced = rules("[[rule]]\nmetric = \"cpu\"\nabs = 50");
    let cpu: Vec<_> = replaced.iter().filter(|rule| rule.name == "cpu").collect();
    assert_eq!((replaced.len(), cpu.len()), (default_rules().len(), 1));
    assert_eq!((&cpu[0].metric, cpu[0].abs), (&Metric::Cpu, Some(50.0)));
}

#[test]
fn every_default_rule_captures_threads_and_tasks() {
    for rule in default_rules() {
        let captures = |kind| rule.capture.contains(kind);
        assert!(captures(CaptureKind::Threads) && captures(CaptureKind::Tasks), "{}", rule.name);
    }
}

#[test]
fn omitted_rule_keys_have_defaults() {
    let text = "[[rule]]\nmetric = \"memory\"\nabs = 80";
    let settings = parse(text, Path::new("test.toml")).unwrap();
    let rule = &settings.rules[0];
    assert_eq!((&rule.metric, rule.abs), (&Metric::Memory, Some(80.0)));
    assert_eq!((rule.capture, rule.duration), (CaptureSet::all(), Duration::from_secs(10)));
    assert_eq!(
        (rule.cooldown, rule.hold),
        (Duration::from_secs(60 * 60), HoldDurations::default())
    );
    assert_eq!((rule.min, rule.diff, rule.max, rule.clear), (0.0, None, None, None));
}

#[test]
fn holmes_toml_has_the_defaults_of_holmes() {
    let settings = load(&shipped_path("holmes.toml")).unwrap();
    assert_eq!(settings.interval, Duration::from_secs(5));
    let rules: Vec<_> = settings
        .rules
        .iter()
        .map(|rule| (rule.name.as_str(), rule.min, rule.diff, rule.abs, rule.cooldown.as_secs()))
        .collect();
    assert_eq!(
        rules,
        [
            ("cpu", 10.0, Some(25.0), Some(70.0), 60),
            ("memory", 10.0, Some(25.0), Some(80.0), 60),
            ("tasks", 3000.0, Some(20.0), Some(200_000.0), 600),
            ("threads", 10.0, Some(25.0), Some(70.0), 3600),
        ]
    );
    assert_eq!(settings.rules[0].capture, [CaptureKind::Cpu].into());
}

#[test]
fn empty_file_has_default_settings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.toml");
    std::fs::write(&path, "").unwrap();
    assert_eq!(load(&path).unwrap(), Settings::default());
}

#[test]
fn unreadable_file_error_names_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.toml");
    let huge = dir.path().join("huge.toml");
    let latin = dir.path().join("latin.toml");
    std::fs::write(&huge, "#".repeat((1 << 20) + 1)).unwrap();
    std::fs::write(&latin, b"# one\n#  caf\xe9\n").unwrap();
    for (path, why) in [
        (missing.as_path(), "No such file"),
        (dir.path(), "not a regular file"),
        (&huge, "larger than 1 MiB"),
    ] {
        let error = load(path).unwrap_err();
        assert!(matches!(error, Error::Unreadable { .. }));
        let message = error.to_string();
        assert!(
            message.contains(&path.display().to_string()) && message.contains(why),
            "{message}"
        );
    }
    std::fs::write(&huge, "#".repeat(1 << 20)).unwrap();
    load(&huge).unwrap();
    let message = load(&latin).unwrap_err().to_string();
    assert!(message.contains("latin.toml:2:7: invalid UTF-8"), "{message}");
}

/// Every field of a settings struct must be a key of `marple.toml`. The unit test of the parser
/// covers only keys that the parser reads, so it misses a field that no file can set.
#[test]
fn marple_toml_has_every_setting() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/settings.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let shipped_text = std::fs::read_to_string(shipped_path("marple.toml")).unwrap();
    let (mut section, mut keys) = (String::new(), std::collections::BTreeSet::new());
    for line in shipped_text.lines().map(|line| line.trim_start_matches('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
            keys.insert(section.clone());
            // `[store.rule.memory]` also sets the key `store.rule`.
            keys.extend(section.rsplit_once('.').map(|(table, _)| table.to_owned()));
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.insert([section.as_str(), key].join(".").trim_start_matches('.').to_owned());
        }
    }
    let (mut section, mut fields) = (None, 0);
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split_once("Settings").filter(|(_, rest)| rest.starts_with(" {"));
            section = name.map(|(name, _)| match name {
                // The keys of `[store.rule.NAME]`, of which the file has one.
                "RuleStore" => "store.rule.memory".to_owned(),
                name => name.to_lowercase(),
            });
        } else if let Some(rest) = line.strip_prefix("    pub ")
            && let (Some(section), Some((field, _))) = (&section, rest.split_once(": "))
        {
            // The field `rules` is written as one table for each rule.
            let field = if field == "rules" { "rule" } else { field };
            let key = [section.as_str(), field].join(".").trim_start_matches('.').to_owned();
            assert!(keys.contains(&key), "{key} of settings.rs is not in {keys:?}");
            fields += 1;
        } else if line == "}" {
            section = None;
        }
    }
    assert!(fields > 40, "{fields}");
}

/// Collects the topics of warnings in the source: constants called `TOPIC`, and strings passed to
/// `warnings::set`.
fn collect_topics(dir: &Path, found: &mut std::collections::BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_topics(&path, found);
        } else if !path.ends_with("base/warnings.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            for start in ["TOPIC: &str = ", "TOPIC: &'static str = ", "warnings::set("] {
                let rest = source.split(start).skip(1);
                let texts = rest.filter_map(|rest| rest.trim_start().strip_prefix('"'));
                found.extend(texts.filter_map(|text| Some(text.split_once('"')?.0.to_owned())));
            }
        }
    }
}

#[test]
fn requirements_md_lists_every_warning_topic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/requirements.md")).unwrap();
    let mut found = std::collections::BTreeSet::new();
    collect_topics(&root.join("src"), &mut found);
    assert!(found.len() > 25, "{found:?}");
    let is_listed = |topic: &str| {
        let family = topic.split_once('.').map_or(topic, |(family, _)| family);
        text.contains(&format!("`{topic}`")) || text.contains(&format!("`{family}.*`"))
    };
    let missing: Vec<_> = found.iter().filter(|topic| !is_listed(topic)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
