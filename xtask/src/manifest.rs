//! Steps that hold what `Cargo.toml` declares: the oldest compiler, the lowest versions of
//! dependencies, and the files of the published package.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::context::{Context, StepError, StepResult};
use crate::tools;

pub(crate) fn read(context: &Context) -> StepResult<String> {
    fs::read_to_string(context.root().join("Cargo.toml"))
        .map_err(|error| StepError::Failed(format!("cannot read Cargo.toml: {error}")))
}

/// Returns the names of the features, without `default`.
pub(crate) fn features(manifest: &str) -> Vec<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[features]").skip(1);
    let entries = section.take_while(|line| !line.starts_with('['));
    let names = entries.filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, _) = line.split_once('=')?;
        Some(name.trim())
    });
    names.filter(|name| *name != "default").collect()
}

/// Checks the list of the published files, and compiles the package from those files, so that a
/// file which `include` leaves out shows here.
///
/// The verification of `cargo package` itself generates code for all dependencies. `cargo check`
/// reuses their metadata from the step `docs`.
pub(crate) fn package(context: &mut Context) -> StepResult {
    let list =
        context.output(&mut context.cargo("package --quiet --list --allow-dirty --locked"))?;
    let strays: Vec<&str> = list.lines().filter(|file| !is_published(file)).collect();
    if !strays.is_empty() {
        let strays = strays.join(", ");
        return Err(StepError::Failed(format!("the package has unexpected files: {strays}")));
    }
    context.print(format_args!("{} files", list.lines().count()));

    let directory = context.target().join("package");
    let io_error = |error| StepError::Failed(format!("{}: {error}", directory.display()));
    remove_directory(&directory).map_err(io_error)?;
    // Quiet, because cargo warns about every test and benchmark that `include` leaves out.
    let mut package = context.cargo("package --quiet --no-verify --allow-dirty --locked");
    context.run(package.arg("--target-dir").arg(context.target()))?;
    let archive = first_file_with_ending(&directory, "crate").map_err(io_error)?;
    let mut tar = context.command("tar", &["-xzf"]);
    context.run(tar.arg(&archive).arg("-C").arg(&directory))?;
    let mut check = context.cargo("check --all-features --locked --manifest-path");
    check.arg(archive.with_extension("").join("Cargo.toml"));
    context.run(check.arg("--target-dir").arg(context.target()))
}

fn first_file_with_ending(directory: &Path, ending: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            return Ok(path);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no .{ending} file")))
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns true for files that belong into the published package: sources, documents and settings,
/// but no tests and no data of tests.
pub(crate) fn is_published(file: &str) -> bool {
    let in_package = [
        ".cargo_vcs_info.json",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "Cargo.toml.orig",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "benches/RESULTS.md",
    ];
    let has_type =
        |directory: &str, ending: &str| file.starts_with(directory) && file.ends_with(ending);
    in_package.contains(&file)
        || has_type("src/", ".rs")
        // Expected texts of unit tests.
        || has_type("src/", ".md")
        || has_type("examples/", ".rs")
        || has_type("examples/", ".toml")
        || has_type("config/", ".toml")
        || has_type("docs/", ".md")
}

/// Checks that no dependency declares a newer compiler than the crate does, and compiles the crate
/// with that compiler. Without it, clippy's lint `incompatible_msrv` is what holds the version: it
/// takes it from `Cargo.toml`, and warns about newer items of the standard library.
pub(crate) fn rust_version(context: &mut Context) -> StepResult {
    let manifest = read(context)?;
    let declared = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""));
    let declared = declared.and_then(|rest| rest.strip_suffix('"'));
    let declared =
        declared.ok_or_else(|| StepError::Failed("Cargo.toml has no rust-version".into()))?;

    let metadata = context.output(&mut context.cargo("metadata --format-version 1 --locked"))?;
    let tree = context.output(&mut context.cargo(
        "tree --all-features --target all --edges normal,build --prefix none --format {p} --locked",
    ))?;
    let used: BTreeSet<String> = tree.lines().filter_map(package_of_tree_line).collect();
    let newer: Vec<String> = rust_versions(&metadata)
        .into_iter()
        .filter(|package| used.contains(&package.package))
        .filter(|package| version_numbers(&package.rust_version) > version_numbers(declared))
        .map(|package| format!("{} (Rust {})", package.package, package.rust_version))
        .collect();
    if !newer.is_empty() {
        let newer = newer.join(", ");
        return Err(StepError::Failed(format!("needs more than Rust {declared}: {newer}")));
    }
    context.print(format_args!("no dependency declares a newer compiler than Rust {declared}"));

    match tools::need_toolchain(context, declared) {
        Ok(()) => context.run(
            context
                .cargo(&format!("+{declared} check --all-features --locked --target-dir"))
                .arg(context.target().join("msrv")),
        ),
        Err(error) => {
            context.skip_part(&format!("a build with Rust {declared}"), error.reason());
            context.print("clippy's lint incompatible_msrv checks the standard library's items");
            Ok(())
        }
    }
}

/// Returns `NAME VERSION` of a line `NAME vVERSION (...)`.
fn package_of_tree_line(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    Some(format!("{name} {version}"))
}

#[derive(Debug, PartialEq)]
struct PackageRustVersion {
    /// `NAME VERSION`
    package: String,
    rust_version: String,
}

/// Returns the packages in the output of `cargo metadata` that declare a `rust-version`.
///
/// A package starts with its name, version and ID. A dependency starts with a name, too, but has no
/// version there and no `rust_version` at all.
fn rust_versions(metadata: &str) -> Vec<PackageRustVersion> {
    let mut found = Vec::new();
    let mut package = None;
    for object in metadata.split("{\"name\":\"") {
        let name = object.split('"').next().unwrap_or_default();
        let version = object
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix("\",\"version\":\""))
            .and_then(|rest| rest.split_once("\",\"id\":"));
        if let Some((version, _)) = version {
            package = Some(format!("{name} {version}"));
        }
        if let Some((_, rest)) = object.split_once("\"rust_version\":\"")
            && let Some((rust_version, _)) = rest.split_once('"')
            && let Some(package) = package.take()
        {
            found.push(PackageRustVersion { package, rust_version: rust_version.to_owned() });
        }
    }
    found
}

fn version_numbers(version: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> =
        version.split('.').map(|number| number.parse().unwrap_or(0)).collect();
    numbers.resize(3, 0);
    numbers
}

/// Compiles a copy of the package whose direct dependencies have the lowest version that
/// `Cargo.toml` allows. A user whose lock file has that version must be able to build the crate.
pub(crate) fn minimal_versions(context: &mut Context) -> StepResult {
    tools::need_nightly(context)?;
    let directory = context.target().join("minimal-versions");
    let package = directory.join("package");
    copy_package(context.root(), &package).map_err(|error| {
        StepError::Failed(format!("cannot copy the package to {}: {error}", package.display()))
    })?;
    let manifest = package.join("Cargo.toml");
    let mut update = context.cargo("+nightly update -Z direct-minimal-versions --manifest-path");
    context.run(update.arg(&manifest))?;
    let mut check = context.cargo("check --all-features --locked --manifest-path");
    context.run(check.arg(&manifest).arg("--target-dir").arg(directory.join("target")))
}

/// Makes a directory with a copy of the manifest, and with links to the sources that it names.
fn copy_package(root: &Path, package: &Path) -> io::Result<()> {
    remove_directory(package)?;
    fs::create_dir_all(package)?;
    fs::copy(root.join("Cargo.toml"), package.join("Cargo.toml"))?;
    for name in ["README.md", "benches", "config", "docs", "examples", "src", "tests"] {
        symlink(root.join(name), package.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_without_default_and_comments() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = [\"a\"]\n## About a = 1.\n\
                        a = []\n\n# About b.\nb = [\"dep:c\"]\n\n[dependencies]\nd = \"1\"\n";
        assert_eq!(features(manifest), ["a", "b"]);
    }

    #[test]
    fn rust_version_belongs_to_the_package_before_it() {
        let metadata = concat!(
            r#"{"packages":[{"name":"a","version":"1.2.3","id":"i","#,
            r#""dependencies":[{"name":"b","source":null}],"rust_version":null},"#,
            r#"{"name":"b","version":"0.1.0","id":"j","#,
            r#""dependencies":[{"name":"a","source":null}],"rust_version":"1.70"}]}"#,
        );
        let expected =
            PackageRustVersion { package: "b 0.1.0".into(), rust_version: "1.70".into() };
        assert_eq!(rust_versions(metadata), [expected]);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(version_numbers("1.100") > version_numbers("1.88.0"));
        assert_eq!(version_numbers("1.88"), version_numbers("1.88.0"));
    }

    #[test]
    fn tests_and_their_data_are_not_published() {
        assert!(is_published("src/os/fork.rs"));
        for file in ["tests/http/main.rs", "src/data.bin", "xtask/src/main.rs", "benches/cpu.rs"] {
            assert!(!is_published(file), "{file}");
        }
    }
}
