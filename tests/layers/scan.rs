//! A scanner of tokens for imported paths, declared modules and unsafe code.
//!
//! A path is followed only until the module of the root that it enters is known. `super` is
//! relative to the module that contains the path, so the walk carries the current module and
//! extends it at each `mod name {`.

use super::EMITTERS;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Target of a path or an attribute.
#[derive(Debug, PartialEq)]
pub(super) enum Import {
    /// An item in this module of the root, or in the root itself.
    Module(String),
    /// The root under another name, or all of it.
    Root,
    /// The text of another file.
    File(String),
}

/// A scan for imports, with their lines.
pub(super) struct Scan {
    pub(super) imports: Vec<(usize, Import)>,
    /// True if `crate` is the library; in the programs of `src/bin` only `marple` is.
    pub(super) crate_is_library: bool,
}

impl Scan {
    /// Scans `tokens`, which are in `module`.
    pub(super) fn scan_tokens(&mut self, tokens: &[TokenTree], module: &mut Vec<String>) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Group(group) => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    let name = module_opened_by(&tokens[..at])
                        .filter(|_| group.delimiter() == Delimiter::Brace);
                    let depth = module.len();
                    module.extend(name);
                    self.scan_tokens(&inside, module);
                    if is_attribute(&tokens[..=at]) {
                        self.scan_attribute(&inside, module);
                    }
                    module.truncate(depth);
                }
                TokenTree::Ident(ident) => {
                    let goes_on = tokens[..at].ends_with_colons() && !opens_path(&tokens[..at]);
                    let word = ident.to_string();
                    match word.as_str() {
                        "crate" | "super" | "self" | "marple" if !goes_on => {
                            at = self.scan_path(tokens, at, module.clone());
                            continue;
                        }
                        "include" if is_punct(tokens.get(at + 1), '!') => {
                            if let Some(TokenTree::Group(group)) = tokens.get(at + 2) {
                                self.record_file(group.stream().into_iter().next().as_ref());
                            }
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Follows the path at `at`, relative to `module`, until its target is known. Returns the index
    /// at which to continue.
    fn scan_path(&mut self, tokens: &[TokenTree], mut at: usize, mut module: Vec<String>) -> usize {
        let mut stepped = false;
        loop {
            let Some(token) = tokens.get(at) else { return at };
            let line = token.span().start().line;
            match token {
                TokenTree::Ident(ident) => match ident.to_string().as_str() {
                    "crate" if self.crate_is_library => module.clear(),
                    // The root of a program: nothing below it is a layer of the library.
                    "crate" => return at + 1,
                    "marple" if !stepped && tokens[at + 1..].starts_with_colons() => module.clear(),
                    "super" => drop(module.pop()),
                    "self" => {}
                    name => {
                        if module.is_empty() {
                            self.imports.push((line, Import::Module(name.to_owned())));
                        }
                        return at + 1;
                    }
                },
                // `use crate::{a, b::{c, d}}`
                TokenTree::Group(group) => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    for branch in inside.split(|token| is_punct(Some(token), ',')) {
                        self.scan_path(branch, 0, module.clone());
                    }
                    return at + 1;
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    if module.is_empty() {
                        self.imports.push((line, Import::Root));
                    }
                    return at + 1;
                }
                _ => return at + 1,
            }
            stepped = true;
            at += 1;
            if tokens[at..].starts_with_colons() {
                at += 2;
            } else {
                // `pub(crate)` ends here and imports nothing; `crate as root` hides the targets of
                // later paths.
                let renamed =
                    matches!(tokens.get(at), Some(TokenTree::Ident(word)) if *word == "as");
                if renamed && module.is_empty() {
                    self.imports.push((line, Import::Root));
                }
                return at;
            }
        }
    }

    /// Scans an attribute for `#[path = "…"]`, also inside a `cfg_attr`, and for paths in strings,
    /// as serde takes them.
    fn scan_attribute(&mut self, tokens: &[TokenTree], module: &mut Vec<String>) {
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    self.scan_attribute(&group.stream().into_iter().collect::<Vec<_>>(), module);
                }
                TokenTree::Ident(word) if *word == "path" && is_punct(tokens.get(at + 1), '=') => {
                    self.record_file(tokens.get(at + 2));
                }
                TokenTree::Literal(_) => {
                    let Some((line, text)) = text_of(Some(token)) else { continue };
                    let path =
                        ["crate::", "super::", "marple::"].iter().any(|s| text.starts_with(s));
                    let Ok(inside) = text.parse::<TokenStream>() else { continue };
                    if path {
                        let known = self.imports.len();
                        self.scan_path(&inside.into_iter().collect::<Vec<_>>(), 0, module.clone());
                        self.imports[known..].iter_mut().for_each(|import| import.0 = line);
                    }
                }
                _ => {}
            }
        }
    }

    /// Records the file that this literal names.
    fn record_file(&mut self, literal: Option<&TokenTree>) {
        self.imports.extend(text_of(literal).map(|(line, path)| (line, Import::File(path))));
    }
}

trait Colons {
    fn starts_with_colons(&self) -> bool;
    fn ends_with_colons(&self) -> bool;
}

impl Colons for [TokenTree] {
    fn starts_with_colons(&self) -> bool {
        is_punct(self.first(), ':') && is_punct(self.get(1), ':')
    }

    fn ends_with_colons(&self) -> bool {
        let end = self.len();
        end >= 2 && self[end - 2..].starts_with_colons()
    }
}

/// Returns `true` if the `::` at the end of `before` opens a path (`::marple`) instead of
/// continuing one.
fn opens_path(before: &[TokenTree]) -> bool {
    match before.len().checked_sub(3).map(|at| &before[at]) {
        None => true,
        Some(TokenTree::Ident(word)) => ["use", "return", "in", "as"].iter().any(|w| word == w),
        Some(TokenTree::Punct(punct)) => punct.as_char() != '>',
        Some(_) => false,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Returns `true` if the last of `tokens` is the `[…]` of `#[…]` or `#![…]`.
fn is_attribute(tokens: &[TokenTree]) -> bool {
    let [before @ .., TokenTree::Group(group)] = tokens else { return false };
    let before = if is_punct(before.last(), '!') { &before[..before.len() - 1] } else { before };
    group.delimiter() == Delimiter::Bracket && is_punct(before.last(), '#')
}

/// Returns the line and the text of a plain literal.
fn text_of(token: Option<&TokenTree>) -> Option<(usize, String)> {
    let Some(TokenTree::Literal(literal)) = token else { return None };
    let text = literal.to_string();
    let text = text.strip_prefix('"')?.strip_suffix('"')?;
    Some((literal.span().start().line, text.to_owned()))
}

/// Returns the name in `mod name` if `before` ends with that.
pub(super) fn module_opened_by(before: &[TokenTree]) -> Option<String> {
    let [.., TokenTree::Ident(keyword), TokenTree::Ident(name)] = before else { return None };
    (*keyword == "mod").then(|| name.to_string())
}

/// Adds every `mod name` in `tokens`, with its line.
pub(super) fn modules_of(tokens: &[TokenTree], found: &mut Vec<(String, usize)>) {
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            modules_of(&group.stream().into_iter().collect::<Vec<_>>(), found);
        }
        if let Some(name) = module_opened_by(&tokens[..=at]) {
            found.push((name, token.span().start().line));
        }
    }
}

/// Returns the line of the first `wanted`, a keyword or an identifier.
pub(super) fn line_of(tokens: &[TokenTree], wanted: &str) -> Option<usize> {
    tokens.iter().find_map(|token| match token {
        TokenTree::Ident(word) => (*word == wanted).then(|| word.span().start().line),
        TokenTree::Group(group) => line_of(&group.stream().into_iter().collect::<Vec<_>>(), wanted),
        _ => None,
    })
}

/// Returns the line of the first `allow(unsafe_code)`; `expect` and `warn` count too.
pub(super) fn line_of_allow(tokens: &[TokenTree]) -> Option<usize> {
    tokens.iter().enumerate().find_map(|(at, token)| {
        let TokenTree::Group(group) = token else { return None };
        let inside: Vec<TokenTree> = group.stream().into_iter().collect();
        let lets = matches!(tokens[..at].last(), Some(TokenTree::Ident(word))
            if ["allow", "expect", "warn"].iter().any(|lets| word == lets));
        line_of(&inside, "unsafe_code").filter(|_| lets).or_else(|| line_of_allow(&inside))
    })
}

/// Returns `true` if one of the inner attributes at the top is `#![allow(unsafe_code)]`.
pub(super) fn opens_with_allow(tokens: &[TokenTree]) -> bool {
    tokens
        .chunks(3)
        .take_while(|chunk| is_punct(chunk.first(), '#') && is_punct(chunk.get(1), '!'))
        .filter_map(|chunk| chunk.get(2))
        .any(|attribute| line_of_allow(std::slice::from_ref(attribute)).is_some())
}

/// Adds every called or imported macro of `tracing` that emits events or spans, with its line.
pub(super) fn emitted_events(tokens: &[TokenTree], found: &mut Vec<(usize, String)>) {
    for (at, token) in tokens.iter().enumerate() {
        let rest = &tokens[at + 1..];
        match token {
            TokenTree::Group(group) => {
                emitted_events(&group.stream().into_iter().collect::<Vec<_>>(), found);
            }
            TokenTree::Ident(word) if *word == "tracing" && rest.starts_with_colons() => match rest
                .get(2)
            {
                Some(TokenTree::Group(group)) => {
                    let names: Vec<TokenTree> = group.stream().into_iter().collect();
                    names.iter().enumerate().for_each(|(at, _)| emitter_at(&names[at..], found));
                }
                _ => emitter_at(&rest[2..], found),
            },
            _ => {}
        }
    }
}

/// Adds the first of `tokens` if it is such a macro and not a module of that name.
fn emitter_at(tokens: &[TokenTree], found: &mut Vec<(usize, String)>) {
    let Some(first) = tokens.first() else { return };
    let name = first.to_string();
    let is_emitter = EMITTERS.contains(&name.as_str()) && !tokens[1..].starts_with_colons();
    if is_emitter || is_punct(Some(first), '*') {
        found.push((first.span().start().line, name));
    }
}
