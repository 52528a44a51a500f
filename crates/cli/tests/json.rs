//! What `--json` prints is an interface: each command's members and their kinds are in a file of `golden/`.
//!
//! `PAGESTONE_GOLDEN=write cargo test -p pagestone-cli --test json` writes the files anew. A member that goes or means
//! something else raises `output_version`; one that comes does not.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use common::{Place, Served, ok, ok_with_input, run};
use serde_json::{Map, Value};

/// Members and kinds of a value. Of a list, those of all its elements together.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Array(all) => {
            let mut members = Map::new();
            let mut others: Vec<Value> = Vec::new();
            for one in all.iter().map(shape) {
                match one {
                    Value::Object(object) => members.extend(object),
                    other if !others.contains(&other) => others.push(other),
                    _ => {}
                }
            }
            others.extend((!members.is_empty()).then_some(Value::Object(members)));
            Value::Array(others)
        }
        Value::Object(object) => {
            Value::Object(object.iter().map(|(name, value)| (name.clone(), shape(value))).collect())
        }
    }
}

/// Compares with the file of this name.
fn same(name: &str, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}: {text}"));
    assert_eq!(value["output_version"], 1, "{name}: {text}");
    let found = serde_json::to_string_pretty(&shape(&value)).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    if std::env::var_os("PAGESTONE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, wanted, "{name}: see PAGESTONE_GOLDEN above");
}

#[test]
fn every_command_prints_the_members_that_scripts_know() {
    let place = Place::in_shm();
    let pool = place.str("json.pool");
    let at = |path: &str| format!("{pool}:{path}");
    same("create", &ok(&["create", "--json", &pool, "--size", "64M"]));
    same("mkdir", &ok(&["mkdir", "--json", &at("/dir")]));
    fs::write(place.path("from"), vec![7; 9000]).unwrap();
    same("put", &ok(&["put", "--json", &place.str("from"), &at("/dir/file")]));
    ok_with_input(&["put", "-", &at("/gone")], b"gone");
    same("clone", &ok(&["clone", "--json", &at("/dir"), &at("/copy")]));
    same("snapshot-create", &ok(&["snapshot", "create", "--json", &pool, "one"]));
    same("rm", &ok(&["rm", "--json", &at("/gone")]));
    same("mv", &ok(&["mv", "--json", &at("/copy"), &at("/moved")]));
    same("snapshot-list", &ok(&["snapshot", "list", "--json", &pool]));
    same("snapshot-diff", &ok(&["snapshot", "diff", "--json", &pool, "one"]));
    for served in [false, true] {
        let server = served.then(|| Served::start(&pool));
        same(if served { "status-in-use" } else { "status" }, &ok(&["status", "--json", &pool]));
        same("info", &ok(&["info", "--json", &pool]));
        same("ls", &ok(&["ls", "--json", &at("/dir")]));
        same("stat", &ok(&["stat", "--json", &at("/dir"), &at("/dir/file")]));
        same("du", &ok(&["du", "--json", &at("/dir"), &at("/moved")]));
        same("df", &ok(&["df", "--json", &pool]));
        same("history", &ok(&["history", "--json", &pool]));
        same("scrub", &ok(&["scrub", "--json", &pool]));
        same("check", &ok(&["check", "--online", "--json", &pool]));
        same("import", &ok(&["import", "--json", &place.str("from"), &at("/dir/imported")]));
        same("export", &ok(&["export", "--json", &at("/dir/imported"), &place.str("exported")]));
        same("grow", &ok(&["grow", "--json", &pool, if served { "72M" } else { "68M" }]));
        server.into_iter().for_each(Served::finish);
    }
    same("shrink", &ok(&["shrink", "--json", &pool, "64M"]));
    same("get", &ok(&["get", "--json", &at("/dir/file"), &place.str("to")]));
    same("snapshot-restore", &ok(&["snapshot", "restore", "--json", &pool, "one"]));
    same("snapshot-delete", &ok(&["snapshot", "delete", "--json", &pool, "one"]));
    same("doctor", &ok(&["doctor", "--json"]));
    let failed = run(&["info", "--json", &place.str("none.pool")]);
    same("error", &String::from_utf8(failed.stderr).unwrap());
}

/// The line that a server prints when it is ready.
fn first_line(child: &mut std::process::Child) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    line
}

#[test]
fn servers_print_the_members_that_scripts_know() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let mut child = common::pagestone().args(["serve", "--json", &pool]).stdout(Stdio::piped()).spawn().unwrap();
    let line = first_line(&mut child);
    let served = Served::of(child);
    same("serve", &line);
    same("restart", &ok(&["restart", "--json", &pool]));
    same("bench", &ok(&["bench", "--json", "--quick", "--only", "overwrite"]));
    if !common::can_mount() {
        return;
    }
    let (a, b) = (place.str("a"), place.str("b"));
    same("mount-in-use", &ok(&["mount", "--json", &pool, &a]));
    fs::write(place.path("a/file"), "1").unwrap();
    same("iostat", &ok(&["iostat", "--json", &pool]));
    same("umount", &ok(&["umount", "--json", &a]));
    served.finish();
    same("mount", &ok(&["mount", "--background", "--json", &pool, &b]));
    ok(&["umount", &b]);
}

#[test]
fn history_keeps_what_was_done_whoever_did_it() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    let served = Served::start(&pool);
    ok(&["snapshot", "create", &pool, "one"]);
    ok(&["grow", &pool, "68M"]);
    served.finish();
    ok(&["snapshot", "delete", &pool, "one"]);
    let lines = ok(&["history", "-H", "-p", "-o", "user,what", &pool]);
    let user = rustix::process::geteuid().as_raw();
    let what = ["snapshot create one", "grow from 67108864 to 71303168 bytes", "snapshot delete one"];
    let wanted: String = what.iter().map(|what| format!("{user}\t{what}\n")).collect();
    assert_eq!(lines, wanted);
    // It is none of the files' attributes, and stays behind a restore.
    ok(&["snapshot", "create", &pool, "two"]);
    ok(&["snapshot", "restore", &pool, "two"]);
    assert_eq!(ok(&["history", "-H", &pool]).lines().count(), 5);
    assert!(run(&["get", "-a", &format!("{pool}:/"), &place.str("all")]).stderr.is_empty());
    common::check(&pool);
}

#[test]
fn a_check_of_a_pool_in_use_finds_what_a_check_finds() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    for dir in 0..20 {
        ok(&["mkdir", "-p", &format!("{pool}:/{dir}/below")]);
        ok_with_input(&["put", "-", &format!("{pool}:/{dir}/below/file")], &vec![1; 20_000]);
    }
    ok(&["snapshot", "create", &pool, "one"]);
    let alone = ok(&["check", &pool]);
    let served = Served::start(&pool);
    let online = ok(&["check", "--online", &pool]);
    assert!(alone.contains("clean") && online.contains("clean") && online.contains("others waited"), "{online}");
    let count = |text: &str| text.split(", ").nth(1).unwrap().to_owned();
    assert_eq!(count(&alone), count(&online));
    common::fails(1, &["in use"], &["check", &pool]);
    common::fails(2, &["--repair"], &["check", "--online", "--repair", &pool]);
    let scrubbed = ok(&["scrub", &pool]);
    assert!(scrubbed.contains("nothing is lost") && scrubbed.contains("390 KiB read"), "{scrubbed}");
    served.finish();
}

/// A damaged pool: the same finding as without a server, and the same exit code.
#[test]
fn damage_is_found_in_a_pool_in_use() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    for i in 0..200 {
        ok_with_input(&["put", "-", &format!("{pool}:/file{i}")], b"x");
    }
    // A node of the root directory's tree.
    let mut bytes = fs::read(&pool).unwrap();
    let name = bytes.windows(7).rposition(|window| window == b"file150").unwrap();
    bytes[name] ^= 1;
    fs::write(&pool, &bytes).unwrap();
    let found = |args: &[&str]| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(4), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned()
    };
    let alone = found(&["check", &pool]);
    let served = Served::start(&pool);
    assert_eq!(found(&["check", "--online", &pool]), alone);
    assert!(found(&["scrub", &pool]).contains("damaged at"));
    served.finish();
    assert!(found(&["scrub", &pool]).contains("damaged at"));
}

/// What is damaged while a server has the pool open is found as well, also where it was read before.
#[test]
fn damage_that_comes_later_is_found_in_a_pool_in_use() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    for i in 0..100 {
        ok_with_input(&["put", "-", &format!("{pool}:/file{i}")], b"x");
    }
    let served = Served::start(&pool);
    ok(&["ls", &pool]);
    ok(&["check", "--online", &pool]);
    // It is memory that both have.
    let file = fs::File::options().read(true).write(true).open(&pool).unwrap();
    let bytes = fs::read(&pool).unwrap();
    let name = bytes.windows(6).rposition(|window| window == b"file50").unwrap();
    let flip = |at: usize| std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[at] ^ 1], at as u64).unwrap();
    flip(name);
    for command in [&["check", "--online", &pool][..], &["scrub", &pool]] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(4), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[name..=name], name as u64).unwrap();
    ok(&["check", "--online", &pool]);
    // The magic of a superblock.
    flip(1);
    assert_eq!(run(&["check", "--online", &pool]).status.code(), Some(4));
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[1..2], 1).unwrap();
    served.finish();
}

#[test]
fn lists_have_columns_for_scripts() {
    let place = Place::in_shm();
    let pool = place.pool("16M");
    for (name, len) in [("small", 10), ("large", 9000)] {
        ok_with_input(&["put", "-", &format!("{pool}:/{name}")], &vec![1; len]);
    }
    let list = ok(&["ls", "-H", "-p", "-o", "name,size,links", "-s", "-size", &pool]);
    assert_eq!(list, "large\t9000\t1\nsmall\t10\t1\n");
    assert!(ok(&["ls", "-s", "name", &pool]).starts_with("MODE"));
    let du = ok(&["du", "-H", "-p", "-o", "bytes,files", &format!("{pool}:/large")]);
    assert_eq!(du, "12288\t1\n");
    ok(&["snapshot", "create", &pool, "one"]);
    ok(&["rm", &format!("{pool}:/small")]);
    assert_eq!(ok(&["snapshot", "diff", "-H", "-p", &pool, "one"]), "removed\t0\t/small\n");
    for command in ["ls", "du", "df", "history"] {
        common::fails(2, &["there is no column 'nothing'"], &[command, "-o", "nothing", &pool]);
    }
}

/// Fails if somebody who may not use the server is told something else, or waits for it to end.
#[test]
fn another_user_is_told_at_once_that_the_pool_is_served() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to be somebody else");
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("16M");
    fs::set_permissions(place.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&pool, fs::Permissions::from_mode(0o644)).unwrap();
    // Where the other user can run it.
    let program = place.path("pagestone");
    fs::copy(env!("CARGO_BIN_EXE_pagestone"), &program).unwrap();
    let served = Served::start(&pool);
    let begun = std::time::Instant::now();
    let output = std::process::Command::new(&program).args(["ls", &pool]).uid(12345).gid(12345).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("only root and the owner") && !said.contains("out of sight"), "{said}");
    assert!(begun.elapsed().as_secs() < 5);
    served.finish();
}
