//! Everything that can be wrong with what the command is given: each is one clear line and an
//! exit code, never a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};

use common::{Place, fails, ok, run};

#[test]
fn wrong_usage_is_2() {
    fails(2, &["not a size", "1G"], &["create", "x", "--size", "one"]);
    fails(2, &["too large"], &["create", "x", "--size", "99999999999T"]);
    fails(2, &["too large"], &["mount", "x", "y", "--create", "8E"]);
    fails(2, &["'..'"], &["ls", "x:/a/../b"]);
    fails(2, &["'..'"], &["put", "/dev/null", "x:/.."]);
    fails(2, &["no pool"], &["ls", ":/a"]);
    fails(2, &["one pool"], &["mv", "x:/a", "y:/a"]);
    fails(2, &["different pools"], &["rm", "x:/a", "y:/a"]);
    fails(2, &[], &["fly"]);
    fails(2, &[], &["create"]);
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn hints_lead_to_what_was_meant() {
    let said = |args: &[&str]| String::from_utf8(run(args).stderr).unwrap();
    assert!(!said(&["ls", "-a", "x:/"]).contains("-- -a"));
    let place = Place::new();
    let new = said(&["create", &place.str("new.pool")]);
    assert!(new.contains("--size") && !new.contains("pagestone create"), "{new}");
    fs::write(place.path("text"), "hello").unwrap();
    let text = said(&["info", &place.str("text")]);
    assert!(text.contains("not a pagestone pool"), "{text}");
    assert!(ok(&["--help"]).contains("  man "), "every command is listed");
}

#[test]
fn errors_are_json_where_that_was_asked_for() {
    let place = Place::new();
    let error = |args: &[&str]| -> (i32, serde_json::Value) {
        let output = run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}")))
    };
    let (code, said) = error(&["info", &place.str("none.pool"), "--json"]);
    assert_eq!((code, said["exit"].as_i64()), (1, Some(1)));
    assert!(said["error"].as_str().unwrap().contains("none.pool"));
    assert_eq!(error(&["ls", "--json", "--frobnicate", "x:/"]).1["exit"], 2);
}

#[test]
fn one_missing_file_does_not_hide_the_others() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    ok(&["mkdir", &format!("{pool}:/a"), &format!("{pool}:/c")]);
    let args = [format!("{pool}:/a"), format!("{pool}:/b"), format!("{pool}:/c")];
    let output = run(&["stat", &args[0], &args[1], &args[2]]);
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains(":/a") && shown.contains(":/c") && said.contains(":/b"), "{shown}{said}");
}

#[test]
fn help_says_what_the_exit_codes_mean() {
    let help = ok(&["--help"]);
    for code in ["  0 ", "  1 ", "  2 ", "  4 "] {
        assert!(help.contains(code), "{help}");
    }
}

#[test]
fn a_pool_that_is_not_there() {
    let place = Place::new();
    fails(1, &["none.pool", "create"], &["info", &place.str("none.pool")]);
    fails(1, &["none.pool"], &["check", &place.str("none.pool")]);
    fails(1, &["none.pool"], &["mount", &place.str("none.pool"), &place.str("mnt")]);
    assert!(!place.path("mnt").exists(), "a directory made for a mount that did not come about goes again");
    fails(1, &["directory does not exist"], &["create", &place.str("none/x.pool"), "--size", "64M"]);
    fails(1, &[], &["create", &place.str("unsized.pool")]);
}

#[test]
fn what_is_no_pool() {
    let place = Place::new();
    fs::write(place.path("text"), "hello").unwrap();
    fs::write(place.path("zeros"), vec![0; 64 << 20]).unwrap();
    fs::write(place.path("empty"), "").unwrap();
    for name in ["text", "zeros", "empty"] {
        for command in ["info", "check"] {
            let output = run(&[command, &place.str(name)]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(output.status.code(), Some(1 | 4)), "{command} {name}: {said}");
            assert!(said.starts_with("pagestone: ") && said.contains(name), "{command} {name}: {said}");
        }
    }
    fails(1, &[], &["info", place.tmp.path().to_str().unwrap()]);
    fails(1, &[], &["info", "/dev/null"]);
}

#[test]
fn too_small_and_already_there() {
    let place = Place::new();
    fails(1, &["small.pool"], &["create", &place.str("small.pool"), "--size", "4K"]);
    fails(1, &["none.pool"], &["create", &place.str("none.pool"), "--size", "0"]);
    let pool = place.pool("64M");
    fails(1, &["--force"], &["create", &pool, "--size", "64M"]);
    ok(&["create", &pool, "--size", "64M", "--force"]);
}

#[test]
fn wrong_magic_truncated_and_newer() {
    let place = Place::new();
    let pool = place.pool("64M");
    let whole = fs::read(&pool).unwrap();

    OpenOptions::new().write(true).open(&pool).unwrap().set_len(32 << 20).unwrap();
    let output = run(&["info", &pool]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 4)) && said.contains("size"), "truncated: {said}");

    // Every place where the magic could stand.
    fs::write(&pool, &whole).unwrap();
    let file = OpenOptions::new().write(true).open(&pool).unwrap();
    for (at, _) in whole.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0)) {
        file.write_all_at(b"NOTAPOOL", at as u64 * 4096).unwrap();
    }
    let output = run(&["info", &pool]);
    assert!(matches!(output.status.code(), Some(1 | 4)), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("pagestone: "));
}

#[test]
fn no_permission() {
    let place = Place::new();
    let pool = place.pool("64M");
    let mode = fs::metadata(&pool).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "a pool is nobody else's business");
}

#[test]
fn a_full_pool_says_so_and_stays_whole() {
    let place = Place::in_shm();
    let pool = place.pool("32M");
    fs::write(place.path("big"), common::pattern(64 << 20, 1)).unwrap();
    fails(1, &["no space"], &["put", &place.str("big"), &format!("{pool}:/big")]);
    common::check(&pool);
    assert_eq!(ok(&["ls", &pool]), "", "nothing of it is left");
}

#[test]
fn wrong_places_in_a_pool() {
    let place = Place::in_shm();
    let pool = place.pool("64M");
    fails(1, &[":/none", "no such file"], &["cat", &format!("{pool}:/none")]);
    fails(1, &["is a directory"], &["cat", &format!("{pool}:/")]);
    ok(&["mkdir", &format!("{pool}:/d")]);
    fails(1, &["exists"], &["mkdir", &format!("{pool}:/d")]);
    fails(1, &["-r"], &["rm", &format!("{pool}:/d")]);
    fails(2, &["root"], &["rm", "-r", &format!("{pool}:/")]);
    fails(1, &["-r"], &["get", &format!("{pool}:/d"), &place.str("d")]);
    fails(1, &["-r"], &["put", place.tmp.path().to_str().unwrap(), &format!("{pool}:/x")]);
    let long = "n".repeat(256);
    fails(1, &["too long"], &["mkdir", &format!("{pool}:/{long}")]);
    fails(1, &["no such file"], &["mkdir", &format!("{pool}:/a/b")]);
    ok(&["rm", "-f", &format!("{pool}:/none")]);
}

#[test]
fn wrong_mount_points() {
    if !common::can_mount() {
        return;
    }
    let place = Place::in_shm();
    let pool = place.pool("64M");
    fs::write(place.path("file"), "").unwrap();
    fails(1, &["not a directory"], &["mount", &pool, &place.str("file")]);
    fails(1, &["/proc", "in use"], &["mount", &pool, "/proc"]);
    fails(1, &["none/mnt"], &["mount", &pool, &place.str("none/mnt")]);
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| bit(crc)))
}

/// Lets both superblocks name another version, with the checksum of all before byte `crc_at` there.
fn with_version(file: &fs::File, version: u32, crc_at: usize) {
    for at in [0, 255 * 4096] {
        let mut sb = vec![0; crc_at + 4];
        file.read_exact_at(&mut sb, at).unwrap();
        sb[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c(&sb[..crc_at]);
        sb[crc_at..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&sb, at).unwrap();
    }
}

/// Fails if nobody says what to do with a pool that an older program made.
#[test]
fn a_pool_of_an_older_format_is_refused_with_the_way_to_move_its_data() {
    let place = Place::new();
    let pool = place.str("old.pool");
    ok(&["create", &pool, "--size", "64M"]);
    with_version(&OpenOptions::new().read(true).write(true).open(&pool).unwrap(), 2, 96);
    let before = fs::read(&pool).unwrap();
    for args in [&["info", &pool][..], &["ls", &pool], &["check", &pool], &["check", "--repair", &pool]] {
        fails(1, &["old.pool", "version 2", "copy it out", "pagestone get -r -a"], args);
    }
    fails(1, &["exists"], &["create", &pool, "--size", "64M"]);
    assert!(before == fs::read(&pool).unwrap(), "a refused pool is not written to");
}

#[test]
fn a_pool_of_a_newer_format_is_refused_by_name_and_left_alone() {
    let place = Place::new();
    let pool = place.str("new.pool");
    ok(&["create", &pool, "--size", "64M"]);
    let file = OpenOptions::new().read(true).write(true).open(&pool).unwrap();
    // Both superblocks: the version is at byte 8, the checksum of the first 124 bytes behind them.
    with_version(&file, 99, 124);
    let before = fs::read(&pool).unwrap();
    let mnt = place.str("mnt");
    for args in [&["info", &pool][..], &["ls", &pool], &["check", &pool], &["mount", &pool, &mnt]] {
        if args[0] != "mount" || common::can_mount() {
            fails(1, &["new.pool", "version 99"], args);
        }
    }
    assert!(before == fs::read(&pool).unwrap(), "a refused pool is not written to");
    assert!(!place.path("mnt").exists(), "a directory that was made for it goes again");
}
