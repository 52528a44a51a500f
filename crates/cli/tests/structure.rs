//! No crate around the engine has modules that import each other in a circle.
//!
//! ```text
//!   use crate::b::X;  in a.rs    a -> b        folder/x.rs: use super::y::Y;    folder: x -> y
//! ```
//!
//! Modules are compared with their siblings: the files and folders of `src`, and those of each folder below. An item
//! that a parent re-exports counts as an import from where it comes from. An item that the crate's root defines must
//! not be imported below the root, which itself imports all modules. `main.rs` may import anything.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 4] = ["cli", "mount", "crashlab", "bench"];

type ModulePath = Vec<String>;
/// The imports between the modules of one folder.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of one crate, with their source; the root has the empty path.
struct Sources(BTreeMap<ModulePath, String>);

impl Sources {
    fn read(src: &Path) -> Sources {
        let mut sources = Sources(BTreeMap::new());
        sources.read_folder(src, &[]);
        sources
    }

    fn read_folder(&mut self, folder: &Path, path: &[String]) {
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut module = path.to_vec();
            if entry.is_dir() {
                module.push(name);
                self.read_folder(&entry, &module);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                if !["lib", "main", "mod"].contains(&name.as_str()) {
                    module.push(name);
                }
                self.0.insert(module, code(&fs::read_to_string(&entry).unwrap()));
            }
        }
    }

    /// The longest module path that `path` begins with, and the item behind it.
    fn split<'p>(&self, path: &'p [String]) -> (&'p [String], Option<&'p String>) {
        let len = (0..=path.len()).rev().find(|len| self.0.contains_key(&path[..*len])).unwrap();
        (&path[..len], path.get(len))
    }

    /// The module that an imported path leads to. Re-exports are followed.
    fn resolve(&self, path: &[String]) -> (ModulePath, Option<String>) {
        let (module, item) = self.split(path);
        if let (Some(item), Some(source)) = (item, self.0.get(module)) {
            let exports =
                imports(source, module, "pub use ").into_iter().chain(imports(source, module, "pub(crate) use "));
            for target in exports {
                if target.last() == Some(item) && target != path {
                    return self.resolve(&target);
                }
            }
        }
        (module.to_vec(), item.cloned())
    }

    /// For each folder, which of its modules import which.
    fn graphs(&self) -> (BTreeMap<ModulePath, Graph>, Vec<String>) {
        let mut graphs: BTreeMap<ModulePath, Graph> = BTreeMap::new();
        let mut from_root = Vec::new();
        for (module, source) in &self.0 {
            for path in paths(source, module) {
                let (target, item) = self.resolve(&path);
                let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                    let graph = graphs.entry(module[..common].to_vec()).or_default();
                    graph.entry(from.clone()).or_default().insert(to.clone());
                } else if let (true, Some(from), Some(item)) = (target.is_empty(), module.first(), item) {
                    from_root.push(format!("{from} imports {item}, which the crate's root defines"));
                }
            }
        }
        (graphs, from_root)
    }
}

/// The source without comments. In its tests `super` means the module itself, so one is taken away.
fn code(text: &str) -> String {
    let bare: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let bare = bare.join("\n");
    match bare.split_once("#[cfg(test)]\nmod ") {
        Some((code, tests)) => format!("{code}{}", tests.replace("super::*", "").replace("super::", "self::")),
        None => bare,
    }
}

/// All paths in `source` that start with `crate::`, `super::` or, in a `use`, with a module's own child.
fn paths(source: &str, module: &[String]) -> BTreeSet<ModulePath> {
    let mut found = BTreeSet::new();
    for start in ["crate::", "super::"] {
        for (at, _) in source.match_indices(start) {
            let before = source[..at].chars().next_back();
            // `self::super`, `pub(in crate::...)`, and words that merely end like this.
            if before.is_none_or(|c| c.is_whitespace() || "(<&![{,".contains(c)) && !source[..at].ends_with("pub(in ") {
                found.extend(absolute(&source[at..], module));
            }
        }
    }
    found
}

/// The paths of all `use` items that begin with `keyword`.
fn imports(source: &str, module: &[String], keyword: &str) -> BTreeSet<ModulePath> {
    let lines =
        source.match_indices(keyword).filter(|(at, _)| source[..*at].chars().next_back().is_none_or(|c| c == '\n'));
    lines.flat_map(|(at, _)| absolute(&source[at + keyword.len()..], module)).collect()
}

/// A path or a tree of paths at the start of `text`, from the crate's root.
fn absolute(text: &str, module: &[String]) -> Vec<ModulePath> {
    let mut all = Vec::new();
    expand(text, Vec::new(), &mut all);
    for path in &mut all {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let mut base = module[..module.len().saturating_sub(ups)].to_vec();
        match path.first().map(String::as_str) {
            Some("crate") => drop(path.remove(0)),
            Some("self") => *path = module.iter().chain(&path[1..]).cloned().collect(),
            _ => {
                base.extend(path.drain(..).skip(ups));
                *path = base;
            }
        }
    }
    all
}

/// Reads `a::{b, c::{d, e}}`; returns what is behind it.
fn expand<'t>(text: &'t str, mut prefix: ModulePath, all: &mut Vec<ModulePath>) -> &'t str {
    let mut text = text.trim_start();
    loop {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match &text[..end] {
            "" => {}
            "self" if !prefix.is_empty() => {}
            name => prefix.push(name.to_owned()),
        }
        text = &text[end..];
        match text.strip_prefix("::") {
            None => break,
            Some(rest) if rest.starts_with('{') => {
                text = &rest[1..];
                while !text.trim_start().starts_with('}') && !text.trim_start().is_empty() {
                    text = expand(text, prefix.clone(), all).trim_start().trim_start_matches(',');
                }
                return text.trim_start().strip_prefix('}').unwrap_or(text);
            }
            Some(rest) if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') => text = rest,
            Some(rest) => {
                // A glob, or generic arguments.
                text = rest.trim_start_matches('*');
                break;
            }
        }
    }
    all.push(prefix);
    let renamed = text.trim_start().strip_prefix("as ");
    renamed.map_or(text, |rest| rest.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
}

/// One circle of imports, if there is any.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(graph: &Graph, at: &str, trail: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(first) = trail.iter().position(|module| module == at) {
            trail.drain(..first);
            trail.push(at.to_owned());
            return true;
        }
        if !done.contains(at) {
            trail.push(at.to_owned());
            if graph.get(at).is_some_and(|next| next.iter().any(|module| visit(graph, module, trail, done))) {
                return true;
            }
            trail.pop();
            done.insert(at.to_owned());
        }
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| {
        let mut trail = Vec::new();
        visit(graph, start, &mut trail, &mut done).then_some(trail)
    })
}

fn problems(sources: &Sources) -> Vec<String> {
    let (graphs, mut problems) = sources.graphs();
    for (folder, graph) in graphs {
        problems.extend(circle(&graph).map(|modules| format!("{}: {}", folder.join("/"), modules.join(" -> "))));
    }
    problems
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf();
    let mut wrong = Vec::new();
    for name in CRATES {
        let sources = Sources::read(&crates.join(name).join("src"));
        assert!(sources.0.len() > 3, "the modules of {name} are found");
        wrong.extend(problems(&sources).into_iter().map(|problem| format!("{name}/src/{problem}")));
    }
    assert!(wrong.is_empty(), "imports in a circle:\n  {}", wrong.join("\n  "));
}

/// A crate of these modules, each a path and its source.
fn sources(modules: &[(&str, &str)]) -> Sources {
    let path = |name: &str| name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    Sources(modules.iter().map(|(name, source)| (path(name), code(source))).collect())
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let root = ("", "mod a;\nmod b;\nmod c;\npub use c::{self, Thing};\npub struct Root;\n");
    let base = ("c", "pub struct Thing;\n");
    for (a, b) in [
        ("use crate::b::B;", "use crate::a::A;"),
        ("use crate::{c, b::{self, B}};", "use crate::a;"),
        ("use super::b::B;", "fn f(a: &crate::a::A) {}"),
        ("use crate::{\n    c::Thing as T,\n    b,\n};", "pub(crate) use super::a::*;"),
        ("use crate::b::x;", "#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}"),
    ] {
        let found = problems(&sources(&[root, ("a", a), ("b", b), base]));
        assert_eq!(found, [": a -> b -> a"], "{a} | {b}");
        assert!(problems(&sources(&[root, ("a", a), ("b", "use crate::c::Thing;"), base])).is_empty(), "{a}");
    }
}

#[test]
fn circles_of_three_in_folders_and_by_re_export_are_found() {
    let three =
        [("", ""), ("f", ""), ("f/x", "use super::y::Y;"), ("f/y", "use crate::f::z;"), ("f/z", "use super::x;")];
    assert_eq!(problems(&sources(&three)), ["f: x -> y -> z -> x"]);
    let exported =
        [("", "mod a;\nmod c;\npub use c::{Thing};\n"), ("a", "use crate::Thing;"), ("c", "use crate::a::A;")];
    assert_eq!(problems(&sources(&exported)), [": a -> c -> a"]);
    let root = [("", "mod a;\npub struct Root;\n"), ("a", "use crate::Root;")];
    assert_eq!(problems(&sources(&root)), ["a imports Root, which the crate's root defines"]);
    let fine =
        [("", ""), ("a", "// use crate::b;\nuse crate::b;"), ("b", "#[cfg(test)]\nmod tests {\n    use super::*;\n}")];
    assert!(problems(&sources(&fine)).is_empty());
}
