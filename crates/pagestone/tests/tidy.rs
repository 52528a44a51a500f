//! The house rules that a machine can check; `CONTRIBUTING.md` says why they are there.
//!
//! ```text
//!   every .rs file    opens with `//!`, has at most 600 lines, leaves nothing to do later
//!   layers            use only what lies below them, in the order of `docs/architecture.md` and of `lib.rs`
//!   ranks of locks    are listed in `docs/architecture.md` and drawn in `lock/rank.rs` as they are defined
//!   unsafe            in `pmem`, in `mmap` and at the C boundary only, each with its SAFETY line
//!   holes             only the backing knows that they are zeros
//!   documents         their links lead somewhere; the format's sizes are those of the code; their commands name a package
//! ```

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const MAX_LINES: usize = 600;
/// Lines above an `unsafe` in which its reason has to stand.
const NEAR: usize = 8;
/// Where `unsafe` may stand, besides tests: the crate and the layer that know hardware, and the C boundary.
const UNSAFE_PLACES: [&str; 5] = [
    "crates/pmem/src/",
    "crates/pagestone/src/mmap/",
    "crates/mount/src/",
    "crates/bench/src/sys.rs",
    "crates/cli/src/command/background.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files below `dir` whose names end with `ending`, in order; build products and hidden folders
/// are left out.
fn files(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, ending, out);
            }
        } else if name.ends_with(ending) {
            out.push(path);
        }
    }
}

/// Path within the workspace, and text, of every file with this ending.
fn texts(ending: &str) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    files(&root, ending, &mut found);
    assert!(!found.is_empty());
    let text = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    found.into_iter().map(text).collect()
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} against the house rules:\n  {}", wrong.len(), wrong.join("\n  "));
}

/// The line without its comment and without what stands in quotes.
fn code(line: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => {
                chars.next();
            }
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            c if !quoted => out.push(c),
            _ => {}
        }
    }
    out
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

#[test]
fn every_source_file_says_what_it_is_and_fits_a_head() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".rs") {
        if !text.starts_with("//!") {
            wrong.push(format!("{name}: does not open with //!"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{name}: {lines} lines, {MAX_LINES} are the most"));
        }
    }
    report(&wrong);
}

#[test]
fn nothing_is_left_to_do_later() {
    let mut wrong = Vec::new();
    let banned = [concat!("todo", "!"), concat!("unimplemented", "!"), concat!("dbg", "!")];
    for (name, text) in texts(".rs") {
        for (i, line) in text.lines().enumerate() {
            if banned.iter().any(|b| code(line).contains(b)) {
                wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    report(&wrong);
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".rs") {
        let allowed = name.contains("/tests/") || UNSAFE_PLACES.iter().any(|place| name.starts_with(place));
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let bare = code(line);
            if !has_word(&bare, "unsafe") {
                continue;
            }
            if !allowed {
                wrong.push(format!("{name}:{}: unsafe does not belong here", i + 1));
            }
            // A function passes its promise on to its caller; blocks and impls have to keep one.
            let promises = bare.contains("unsafe fn");
            let above = &lines[i.saturating_sub(NEAR)..=i];
            if !promises && !above.iter().any(|l| l.contains("// SAFETY:")) {
                wrong.push(format!("{name}:{}: unsafe without its SAFETY line", i + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let root = root();
    let mut wrong = Vec::new();
    for (name, text) in texts(".md") {
        let folder = root.join(&name).parent().unwrap().to_path_buf();
        for link in links(&text) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            if !folder.join(path).exists() {
                wrong.push(format!("{name}: {link} leads nowhere"));
            }
        }
    }
    report(&wrong);
}

/// Targets of `[text](target)`.
fn links(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in text.split("](").skip(1) {
        if let Some(end) = part.find(')') {
            found.insert(part[..end].to_string());
        }
    }
    found
}

#[test]
fn no_document_names_a_place_on_somebodys_machine() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".md").into_iter().chain(texts(".rs")) {
        let places = [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
        for (i, line) in text.lines().enumerate().filter(|(_, l)| places.iter().any(|p| l.contains(p))) {
            wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
        }
    }
    report(&wrong);
}

#[test]
fn the_format_is_described_in_the_sizes_of_the_code() {
    let root = root();
    let document = fs::read_to_string(root.join("docs/format.md")).unwrap();
    let layout = root.join("crates/pagestone/src/layout");
    let mut code = String::new();
    let mut found = Vec::new();
    files(&layout, ".rs", &mut found);
    for path in found {
        code += &fs::read_to_string(path).unwrap();
    }
    // What the document has to say, and the line of code that makes it true.
    let sizes = [
        ("Superblock: 128 bytes", "size_of::<Superblock>() == 128"),
        ("Pool state: 64 bytes", "one_line!(PoolState);"),
        ("Checkpoint mark: 64 bytes", "one_line!(CheckpointMark);"),
        ("Sync mark: 64 bytes", "one_line!(SyncMark);"),
        ("Lane counters: 64 bytes", "one_line!(LaneCounters);"),
        ("Last request: 64 bytes", "one_line!(LastRequest);"),
        ("Record header: 32 bytes", "const SIZE: usize = 32;"),
        ("Frame descriptor: 64 bytes", "const SIZE: u64 = 64;"),
        ("Inode record: 256 bytes", "const SIZE: u64 = 256;"),
        ("Node header: 64 bytes", "const SLOTS: usize = 64;"),
    ];
    let mut wrong = Vec::new();
    let number = |text: &str, before: &str| -> Option<u32> {
        let (_, rest) = text.split_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let version = number(&code, "const VERSION: u32 = ");
    for before in ["Format version: ", "| 8 | 4 | version: ", "\nVersion "] {
        let said = number(&document, before);
        if version.is_none() || said != version {
            wrong.push(format!("docs/format.md says {before:?} {said:?}, the code {version:?}"));
        }
    }
    for (said, line) in sizes {
        if !document.contains(said) {
            wrong.push(format!("docs/format.md does not say \"{said}\""));
        }
        if !code.contains(line) {
            wrong.push(format!("the code no longer says `{line}`: change docs/format.md and this test"));
        }
    }
    report(&wrong);
}

/// The layers of the library from below; the modules before `layout` belong to none.
const LAYERS: [&str; 22] = [
    "units",
    "error",
    "lock",
    "attr",
    "address_hash",
    "layout",
    "journal",
    "alloc",
    "txn",
    "btree",
    "engine",
    "backing",
    "extent",
    "data",
    "io",
    "dir",
    "mmap",
    "transaction",
    "resize",
    "snapshot",
    "pool",
    "check",
];

/// The layers that the code of a file (without its tests) names as `crate::NAME`.
fn layers_used(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut used = BTreeSet::new();
    for line in text.lines() {
        for part in code(line).split("crate::").skip(1) {
            used.insert(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    used
}

/// Where a layer uses one that does not lie below it.
fn upward(name: &str, text: &str) -> Vec<String> {
    let rank = |layer: &str| LAYERS.iter().position(|&known| known == layer);
    let own = name.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    let used = layers_used(text);
    let wrong = used.iter().filter(|used| *used != own && rank(used).is_some_and(|used| Some(used) >= rank(own)));
    wrong.map(|used| format!("src/{name}: uses `{used}`, which does not lie below `{own}`")).collect()
}

#[test]
fn each_layer_uses_only_what_lies_below_it() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".rs") {
        let Some(name) = name.strip_prefix("crates/pagestone/src/") else { continue };
        if name == "lib.rs" {
            continue;
        }
        let own = name.split('/').next().unwrap().trim_end_matches(".rs");
        if !LAYERS.contains(&own) {
            wrong.push(format!("src/{name}: `{own}` is no layer of LAYERS"));
        }
        wrong.extend(upward(name, &text));
    }
    report(&wrong);
    // The check itself: a forbidden `use` is found, one of a test and one in a comment are not.
    assert_eq!(upward("txn/tx.rs", "use crate::data::File;").len(), 1);
    assert_eq!(
        upward("txn/tx.rs", "use crate::layout::X; // crate::data\n#[cfg(test)]\nuse crate::pool::Pool;").len(),
        0
    );
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let picture = text.split("## Layers").nth(1).unwrap().split("DAX device").next().unwrap();
    let drawn: Vec<&str> =
        picture.lines().filter_map(|line| line.trim().strip_prefix("| ")?.split(' ').next()).collect();
    let layers: Vec<&str> = LAYERS.iter().rev().copied().take_while(|&layer| layer != "address_hash").collect();
    assert_eq!(drawn, layers, "the picture in docs/architecture.md");
    let text = fs::read_to_string(root().join("crates/pagestone/src/lib.rs")).unwrap();
    let picture = text.split("//! The layers, each").nth(1).unwrap().split("```").nth(1).unwrap();
    let drawn: Vec<&str> = picture.lines().filter_map(|line| line.strip_prefix("//!   ")?.split(' ').next()).collect();
    let crates: Vec<&str> = layers.into_iter().chain(["pmem"]).collect();
    assert_eq!(drawn, crates, "the picture in crates/pagestone/src/lib.rs");
}

#[test]
fn the_ranks_of_locks_are_described_as_they_are_defined() {
    let code = fs::read_to_string(root().join("crates/pagestone/src/lock/rank.rs")).unwrap();
    let defined = code.split("ranks! {").nth(1).unwrap().split("\n}").next().unwrap();
    let defined: Vec<(&str, &str)> =
        defined.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = ")).collect();
    assert!(defined.len() > 1, "no rank found in lock/rank.rs");

    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let list = document.split("The ranks, in order").nth(1).unwrap().split("\n## ").next().unwrap();
    // `4. `Mappings`: the list of ...`
    let items = list.lines().filter_map(|line| line.split_once(". `"));
    let items = items.filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()));
    let listed: Vec<(&str, &str)> =
        items.filter_map(|(number, rest)| Some((rest.split('`').next()?, number))).collect();
    assert_eq!(listed, defined, "the list in docs/architecture.md");

    let picture = code.split("```").nth(1).unwrap();
    let names = picture.lines().filter_map(|line| line.strip_prefix("//!   ")?.split(' ').next());
    let drawn: Vec<&str> = names.filter(|name| name.starts_with(char::is_uppercase)).collect();
    let names: Vec<&str> = defined.iter().map(|&(name, _)| name).collect();
    assert_eq!(drawn, names, "the picture in lock/rank.rs");
}

/// Commands of a line that run one suite and name no package: in the root of the workspace they find no such suite.
fn suites_without_package(line: &str) -> usize {
    let commands = line.split("cargo test").skip(1).map(|rest| rest.split('`').next().unwrap_or_default());
    commands.filter(|c| c.contains(" --test ") && !c.contains(" -p ") && !c.contains(" --workspace")).count()
}

#[test]
fn commands_in_the_documents_name_the_package_of_a_suite() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".md") {
        for (i, line) in text.lines().enumerate().filter(|(_, line)| suites_without_package(line) > 0) {
            wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
        }
    }
    report(&wrong);
    // The check itself.
    assert_eq!(
        suites_without_package("| run | `X=1 cargo test --test map` | `cargo test -p pagestone --test map` |"),
        1
    );
    assert_eq!(suites_without_package("cargo test -p pagestone --test devices -- --test-threads 1"), 0);
    assert_eq!(suites_without_package("cargo test -- --test-threads 1"), 0);
}

/// Where code of the library takes it for granted that a hole is zeros, and does not ask who answers.
fn takes_absent_for_zeros(name: &str, text: &str) -> Vec<String> {
    let above = ["backing/", "extent/", "data/", "mmap/"];
    if !above.iter().any(|layer| name.starts_with(layer)) || name.starts_with("backing/") {
        return Vec::new();
    }
    // They define zeros: behind the end of a file, or because somebody asked for zeros.
    let defines = ["data/write.rs", "data/write_plan.rs", "data/preallocate.rs", "data/notify.rs"];
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let (mut wrong, mut before) = (Vec::new(), String::new());
    for (i, line) in text.lines().enumerate() {
        let line = code(line);
        // The arm of a match may be divided.
        let before = std::mem::replace(&mut before, line.clone());
        let divided = before.contains("is_zeros()") && before.trim().ends_with("=> {");
        let asked = divided
            || line.contains("is_zeros()")
            || line.contains("Shown::Hole =>")
            || line.trim().starts_with("1 =>");
        let why = match () {
            () if line.contains("Answer::Zeros") && !name.starts_with("extent/") => "names the answer",
            () if line.contains("fill(0)") => "fills with zeros",
            () if line.contains("Part::Zero") && !defines.contains(&name) => "stores zeros",
            () if ["=> Piece::Hole", "=> Shown::Hole", "self.map_zero_page("]
                .iter()
                .any(|hole| line.contains(hole))
                && !asked =>
            {
                "shows a hole without asking who answers"
            }
            () => continue,
        };
        wrong.push(format!("src/{name}:{}: {why}: {}", i + 1, line.trim()));
    }
    wrong
}

#[test]
fn only_the_backing_knows_that_holes_are_zeros() {
    let mut wrong = Vec::new();
    for (name, text) in texts(".rs") {
        let Some(name) = name.strip_prefix("crates/pagestone/src/") else { continue };
        wrong.extend(takes_absent_for_zeros(name, &text));
    }
    report(&wrong);
    // The check itself.
    let found = |name: &str, line: &str| takes_absent_for_zeros(name, line).len();
    assert_eq!(found("data/read.rs", "Place::Absent(_) => part.fill(0),"), 1);
    assert_eq!(found("backing/instant.rs", "buf.fill(0);"), 0);
    assert_eq!(found("data/read.rs", "Place::Absent(_) => Piece::Hole { len },"), 1);
    assert_eq!(found("data/read.rs", "Place::Absent(answer) if answer.is_zeros() => Piece::Hole { len },"), 0);
    assert_eq!(found("mmap/address_space/steps.rs", "Span::Absent { .. } => self.map_zero_page(state, pages)?,"), 1);
    assert_eq!(found("data/compare.rs", "Span::Absent { answer: Answer::Zeros, .. } => 0,"), 1);
    assert_eq!(found("data/relocate.rs", "parts.push(Part::Zero { at, len });"), 1);
}
