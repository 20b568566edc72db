//! Names of task sites in a trace.

use crate::base::SpawnSite;
use crate::model::{StringHandle, StringTable};

/// Name of tasks without a site in the table.
const UNNAMED_TASK: &str = "task";

/// Returns the name of a site's tasks, or their spawn location if they have none.
fn display_name(site: SpawnSite) -> String {
    match site.name {
        Some(name) => name.to_owned(),
        None => format!("{}:{}", strip_registry_prefix(site.location.file()), site.location.line()),
    }
}

/// Returns the full description of a site's tasks: name and spawn location.
pub(crate) fn describe(number: u16) -> String {
    match SpawnSite::from_number(number) {
        Some(SpawnSite { name: Some(name), location: place }) => {
            format!("{name}, {}:{}", strip_registry_prefix(place.file()), place.line())
        }
        Some(site) => display_name(site),
        None => UNNAMED_TASK.to_owned(),
    }
}

/// Returns the names of all sites, indexed by site number.
pub(super) fn names(strings: &mut StringTable) -> Vec<StringHandle> {
    let name = |number| match SpawnSite::from_number(number) {
        Some(site) => strings.intern(&display_name(site)),
        None if number == 0 => strings.intern(UNNAMED_TASK),
        None => StringHandle::EMPTY,
    };
    (0..=SpawnSite::max_number()).map(name).collect()
}

/// Shortens the path of a file in a registry package: starts it at the package name.
fn strip_registry_prefix(file: &str) -> &str {
    let in_package = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_package.map_or(file, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unnamed_site_is_shown_as_file_and_line() {
        let numbers =
            [SpawnSite::here(None), SpawnSite::here(Some("reader"))].map(SpawnSite::intern);
        let mut strings = StringTable::default();
        let names = names(&mut strings);
        let text = |number: u16| strings.get(names[usize::from(number)]).to_owned();
        assert!(text(numbers[0]).starts_with("src/trace/sites.rs:"), "{}", text(numbers[0]));
        assert_eq!([text(numbers[1]), text(0)], ["reader", "task"]);
    }

    #[test]
    fn registry_path_is_shortened_to_package_name() {
        assert_eq!(strip_registry_prefix("src/main.rs"), "src/main.rs");
        let file = "/home/x/.cargo/registry/src/index.crates.io-1949/axum-0.8.9/src/serve.rs";
        assert_eq!(strip_registry_prefix(file), "axum-0.8.9/src/serve.rs");
    }
}
