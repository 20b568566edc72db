//! The graph of files: which file imports from which, and its cycles.
//!
//! A path is resolved to the file that defines its target: the longest prefix that is a module with
//! a file, and through re-exports (`pub use`) of that module. A parent module and its child may
//! import from each other, since the parent declares the child. Unit tests do not count.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenTree};

/// Path of a module from the root of the crate.
type Module = Vec<String>;

/// The imports of all files.
#[derive(Default)]
pub(super) struct FileGraph {
    files: BTreeMap<Module, String>,
    paths: BTreeMap<Module, Vec<Module>>,
    /// Re-exports of a module, by name.
    re_exports: BTreeMap<Module, BTreeMap<String, Module>>,
}

impl FileGraph {
    /// Creates the graph of `sources`: each with its module, its path and its tokens.
    pub(super) fn new<'s>(
        sources: impl Iterator<Item = (&'s [String], &'s str, &'s [TokenTree])> + Clone,
    ) -> Self {
        let is_test = |file: &str| file.ends_with("/tests.rs") || file.ends_with("_tests.rs");
        let sources = sources.filter(|(_, file, _)| !is_test(file));
        let mut graph = Self::default();
        for (module, file, _) in sources.clone() {
            graph.files.insert(module.to_vec(), file.to_owned());
        }
        for (module, _, tokens) in sources {
            graph.collect(tokens, module, module);
        }
        graph
    }

    /// Returns the cycles: sets of files that import from each other.
    pub(super) fn cycles(&self) -> Vec<BTreeSet<&str>> {
        let edges = self.edges();
        let reached: BTreeMap<&Module, BTreeSet<&Module>> =
            self.files.keys().map(|module| (module, reachable(module, &edges))).collect();
        let mut cycles: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
        for (module, targets) in &reached {
            let cycle: BTreeSet<&str> = targets
                .iter()
                .filter(|target| reached[*target].contains(*module))
                .map(|target| self.files[*target].as_str())
                .collect();
            if cycle.len() > 1 {
                cycles.insert(cycle);
            }
        }
        cycles.into_iter().collect()
    }

    fn edges(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for (module, paths) in &self.paths {
            let Some((module, _)) = self.files.get_key_value(module) else { continue };
            for target in paths.iter().filter_map(|path| self.file_of(path, 0)) {
                if target != module && !is_parent(target, module) && !is_parent(module, target) {
                    edges.entry(module).or_default().insert(target);
                }
            }
        }
        edges
    }

    /// Returns the module of the file that defines the target of `path`.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&Module> {
        let (module, rest) = (0..=path.len()).rev().find_map(|length| {
            let (module, _) = self.files.get_key_value(&path[..length])?;
            Some((module, &path[length..]))
        })?;
        let re_export = self.re_exports.get(module).zip(rest.first());
        match re_export.and_then(|(names, name)| names.get(name)) {
            Some(target) if depth < 8 => {
                let path: Module = target.iter().chain(&rest[1..]).cloned().collect();
                self.file_of(&path, depth + 1)
            }
            _ => Some(module),
        }
    }

    /// Collects the paths in `tokens`, which are in the inline module `module` of the file `file`.
    fn collect(&mut self, tokens: &[TokenTree], file: &[String], module: &[String]) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                // `pub(in crate::cpu)` imports nothing.
                TokenTree::Group(group)
                    if group.delimiter() == Delimiter::Parenthesis
                        && tokens[..at - 1]
                            .last()
                            .is_some_and(|last| last.to_string() == "pub") => {}
                TokenTree::Group(group) => {
                    let name = super::scan::module_opened_by(&tokens[..at - 1])
                        .filter(|_| group.delimiter() == Delimiter::Brace);
                    if name.as_deref() == Some("tests") {
                        continue;
                    }
                    let inner: Module = module.iter().cloned().chain(name).collect();
                    self.collect(&group.stream().into_iter().collect::<Vec<_>>(), file, &inner);
                }
                TokenTree::Ident(word) if *word == "use" => {
                    let is_public = matches!(tokens.get(at.wrapping_sub(2)), Some(TokenTree::Ident(word)) if *word == "pub")
                        || matches!(tokens.get(at.wrapping_sub(2)), Some(TokenTree::Group(_)));
                    let end = tokens[at..].iter().position(|token| is_punct(token, ';'));
                    let tree = &tokens[at..end.map_or(tokens.len(), |end| at + end)];
                    at += tree.len();
                    let mut leaves = Vec::new();
                    expand(tree, Vec::new(), &mut leaves);
                    for (path, name) in leaves {
                        let Some(path) = self.absolute(&path, file, module) else { continue };
                        if is_public {
                            let names = self.re_exports.entry(module.to_vec()).or_default();
                            names.insert(name, path.clone());
                        }
                        self.paths.entry(file.to_vec()).or_default().push(path);
                    }
                }
                TokenTree::Ident(_) => {
                    let continues = at >= 3 && is_punct(&tokens[at - 2], ':');
                    let mut path = vec![token.to_string()];
                    while at + 2 < tokens.len()
                        && is_punct(&tokens[at], ':')
                        && is_punct(&tokens[at + 1], ':')
                        && let TokenTree::Ident(word) = &tokens[at + 2]
                    {
                        path.push(word.to_string());
                        at += 3;
                    }
                    if path.len() > 1
                        && !continues
                        && let Some(path) = self.absolute(&path, file, module)
                    {
                        self.paths.entry(file.to_vec()).or_default().push(path);
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns `path` from the root of the crate, or `None` if it leads into another crate.
    fn absolute(&self, path: &[String], file: &[String], module: &[String]) -> Option<Module> {
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" | "super" => {
                let mut base = module.to_vec();
                let up = path.iter().take_while(|word| ["self", "super"].contains(&word.as_str()));
                let up: Vec<_> = up.collect();
                up.iter().filter(|word| **word == "super").for_each(|_| drop(base.pop()));
                base.extend_from_slice(&path[up.len()..]);
                Some(base)
            }
            child => {
                let is_child = file == module
                    && self.files.contains_key(
                        &module.iter().cloned().chain([child.to_owned()]).collect::<Module>(),
                    );
                is_child.then(|| module.iter().chain(path).cloned().collect())
            }
        }
    }
}

fn is_parent(parent: &[String], child: &[String]) -> bool {
    child.len() == parent.len() + 1 && child.starts_with(parent)
}

fn reachable<'m>(
    from: &'m Module,
    edges: &BTreeMap<&'m Module, BTreeSet<&'m Module>>,
) -> BTreeSet<&'m Module> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for &target in edges.get(module).into_iter().flatten() {
            if reached.insert(target) {
                open.push(target);
            }
        }
    }
    reached
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Adds each leaf of a `use` tree: its path, and its name in the importing module.
fn expand(tokens: &[TokenTree], mut prefix: Module, leaves: &mut Vec<(Module, String)>) {
    let mut name = None;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(word) if *word == "as" => {
                name = tokens.get(at + 1).map(ToString::to_string);
                break;
            }
            TokenTree::Ident(word) if *word != "self" || prefix.is_empty() => {
                prefix.push(word.to_string());
            }
            TokenTree::Group(group) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for branch in inner.split(|token| is_punct(token, ',')) {
                    if !branch.is_empty() {
                        expand(branch, prefix.clone(), leaves);
                    }
                }
                return;
            }
            _ => {}
        }
        at += 1;
    }
    let name = name.or_else(|| prefix.last().cloned()).unwrap_or_default();
    leaves.push((prefix, name));
}
