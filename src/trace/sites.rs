//! Names of task sites in a trace.

use crate::base::SpawnSite;
use crate::model::{StringHandle, StringTable};

/// Name of tasks without a site in the table.
const NAMELESS: &str = "task";

/// Returns the name of a site's tasks, or their spawn location if they have none.
fn text(site: SpawnSite) -> String {
    match site.name {
        Some(name) => name.to_owned(),
        None => format!("{}:{}", short(site.place.file()), site.place.line()),
    }
}

/// Returns the full description of a site's tasks: name and spawn location.
pub(crate) fn name(number: u16) -> String {
    match SpawnSite::of(number) {
        Some(SpawnSite { name: Some(name), place }) => {
            format!("{name}, {}:{}", short(place.file()), place.line())
        }
        Some(site) => text(site),
        None => NAMELESS.to_owned(),
    }
}

/// Returns the names of all sites, indexed by site number.
pub(super) fn names(strings: &mut StringTable) -> Vec<StringHandle> {
    let name = |number| match SpawnSite::of(number) {
        Some(site) => strings.intern(&text(site)),
        None if number == 0 => strings.intern(NAMELESS),
        None => StringHandle::EMPTY,
    };
    (0..=SpawnSite::last()).map(name).collect()
}

/// Shortens the path of a file in a registry package: starts it at the package name.
fn short(file: &str) -> &str {
    let in_package = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_package.map_or(file, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_called_by_its_name_or_by_its_place() {
        let numbers =
            [SpawnSite::here(None), SpawnSite::here(Some("reader"))].map(SpawnSite::number);
        let mut strings = StringTable::default();
        let names = names(&mut strings);
        let text = |number: u16| strings.get(names[usize::from(number)]).to_owned();
        assert!(text(numbers[0]).starts_with("src/trace/sites.rs:"), "{}", text(numbers[0]));
        assert_eq!([text(numbers[1]), text(0)], ["reader", "task"]);
    }

    #[test]
    fn a_file_of_a_package_is_named_from_the_package_on() {
        assert_eq!(short("src/main.rs"), "src/main.rs");
        let file = "/home/x/.cargo/registry/src/index.crates.io-1949/axum-0.8.9/src/serve.rs";
        assert_eq!(short(file), "axum-0.8.9/src/serve.rs");
    }
}
