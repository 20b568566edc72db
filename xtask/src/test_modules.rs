//! Modules of the integration tests, found by words of their source.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// A test binary, or one of its modules.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestModule {
    binary: String,
    module: Option<String>,
}

impl TestModule {
    /// Returns the filter expression of cargo-nextest that selects the tests of the module.
    pub(crate) fn nextest_filter(&self) -> String {
        match &self.module {
            Some(module) => format!("binary({}) and test(/^{module}::/)", self.binary),
            None => format!("binary({})", self.binary),
        }
    }
}

impl fmt::Display for TestModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            Some(module) => write!(f, "{}::{module}", self.binary),
            None => f.write_str(&self.binary),
        }
    }
}

/// Returns the modules below `tests/` whose files contain one of the words: `tests/BINARY.rs`, or
/// `tests/BINARY/MODULE.rs` beside a `main.rs`.
pub(crate) fn that_mention(root: &Path, words: &[&str]) -> io::Result<Vec<TestModule>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("tests"))? {
        let path = entry?.path();
        let binary = stem(&path);
        if path.extension().is_some_and(|ending| ending == "rs") {
            if mentions(&path, words)? {
                found.push(TestModule { binary, module: None });
            }
        } else if path.join("main.rs").is_file() {
            for entry in fs::read_dir(&path)? {
                let path = entry?.path();
                let module = stem(&path);
                if module != "main" && mentions(&path, words)? {
                    found.push(TestModule { binary: binary.clone(), module: Some(module) });
                }
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns true if a Rust file, or one in a directory, contains one of the words.
fn mentions(path: &Path, words: &[&str]) -> io::Result<bool> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            if mentions(&entry?.path(), words)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if path.extension().is_none_or(|ending| ending != "rs") {
        return Ok(false);
    }
    let text = fs::read_to_string(path)?;
    Ok(words.iter().any(|word| text.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_by_binary_and_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask/test_modules");
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("tests/heap/sums")).unwrap();
        fs::create_dir_all(root.join("tests/support")).unwrap();
        for (file, text) in [
            ("layers.rs", "reader()"),
            ("cli.rs", "other()"),
            ("heap/main.rs", "reader()"),
            ("heap/dump.rs", "reader()"),
            ("heap/fork.rs", "other()"),
            ("heap/sums/cases.rs", "reader()"),
            ("heap/data.txt", "reader()"),
            ("support/mod.rs", "reader()"),
        ] {
            fs::write(root.join("tests").join(file), text).unwrap();
        }
        let found = that_mention(&root, &["reader("]).unwrap();
        let filters: Vec<String> = found.iter().map(TestModule::nextest_filter).collect();
        let expected = [
            "binary(heap) and test(/^dump::/)",
            "binary(heap) and test(/^sums::/)",
            "binary(layers)",
        ];
        assert_eq!(filters, expected);
    }
}
