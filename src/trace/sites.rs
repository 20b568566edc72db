//! What a trace calls the sites of tasks.

use crate::base::Site;
use crate::model::{StringHandle, StringTable};

/// What tasks are called that have no place in the table.
const NAMELESS: &str = "task";

/// What its tasks are called: by their name, else by where they were spawned.
fn text(site: Site) -> String {
    match site.name {
        Some(name) => name.to_owned(),
        None => format!("{}:{}", short(site.place.file()), site.place.line()),
    }
}

/// What a task of this site is, in full: its name, and where it was spawned.
pub(super) fn name(number: u16) -> String {
    match Site::of(number) {
        Some(Site { name: Some(name), place }) => {
            format!("{name}, {}:{}", short(place.file()), place.line())
        }
        Some(site) => text(site),
        None => NAMELESS.to_owned(),
    }
}

/// The names of all sites, by their numbers.
pub(super) fn names(strings: &mut StringTable) -> Vec<StringHandle> {
    let name = |number| match Site::of(number) {
        Some(site) => strings.intern(&text(site)),
        None if number == 0 => strings.intern(NAMELESS),
        None => StringHandle::EMPTY,
    };
    (0..=Site::last()).map(name).collect()
}

/// Of a file in somebody else's source, the part from the package's name on.
fn short(file: &str) -> &str {
    let in_package = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_package.map_or(file, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_called_by_its_name_or_by_its_place() {
        let numbers = [Site::here(None), Site::here(Some("reader"))].map(Site::number);
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
