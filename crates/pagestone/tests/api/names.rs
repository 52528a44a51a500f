//! Names: links, loops, `..`, removal while a directory is listed, times.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime};

use pagestone::{Error, FileType};

use crate::pool;

#[test]
fn paths_lead_through_links_and_dots_as_the_system_does() {
    let pool = pool();
    pool.create_dir_all("/a/b/c").unwrap();
    pool.write("/a/file", "found").unwrap();
    pool.symlink("../file", "/a/b/up").unwrap();
    pool.symlink("/a/b", "/absolute").unwrap();
    pool.symlink("b/c/../up", "/a/chain").unwrap();
    for path in [
        "/a/file",
        "a/file",
        "//a//./file",
        "/a/b/../file",
        "/../../a/file",
        "/a/b/up",
        "/absolute/up",
        "/absolute/../file",
        "/a/chain",
        "/a/b/c/../../file",
        "./a/file",
    ] {
        assert_eq!(pool.read(path).unwrap(), b"found", "{path}");
    }
    assert!(pool.metadata("/").unwrap().is_dir());
    assert!(pool.metadata("/absolute").unwrap().is_dir());
    assert!(pool.symlink_metadata("/absolute").unwrap().is_symlink());
    assert!(pool.symlink_metadata("/absolute/").unwrap().is_dir(), "a slash means the directory behind it");
    assert_eq!(pool.read_link("/absolute").unwrap().to_str(), Some("/a/b"));
    assert!(matches!(pool.read_link("/a/file"), Err(Error::Invalid(_))));
    assert!(matches!(pool.metadata("/a/file/.."), Err(Error::NotDirectory)));
    assert!(matches!(pool.metadata("/none/../a"), Err(Error::NotFound)));
    assert!(matches!(pool.metadata("x".repeat(256)), Err(Error::NameTooLong)));
    assert!(pool.exists("/absolute/up").unwrap() && !pool.exists("/a/none").unwrap());
    assert!(!pool.exists("/a/file/x").unwrap());
}

#[test]
fn a_loop_of_links_is_an_error_and_forty_links_are_none() {
    let pool = pool();
    pool.symlink("two", "/one").unwrap();
    pool.symlink("one", "/two").unwrap();
    pool.symlink("self/x", "/self").unwrap();
    for path in ["/one", "/one/x", "/self"] {
        let error = pool.open_file(path).unwrap_err();
        assert!(matches!(error, Error::LinkLoop), "{path}: {error}");
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::ELOOP));
    }
    assert!(matches!(pool.file_options().write(true).create(true).open("/one"), Err(Error::LinkLoop)));
    assert!(matches!(pool.exists("/one"), Err(Error::LinkLoop)));
    assert!(pool.symlink_metadata("/one").unwrap().is_symlink());
    pool.write("/0", "end").unwrap();
    (1..=41).for_each(|n| pool.symlink(format!("{}", n - 1), format!("/{n}")).unwrap());
    assert_eq!(pool.read("/40").unwrap(), b"end");
    assert!(matches!(pool.read("/41"), Err(Error::LinkLoop)));
}

#[test]
fn a_link_that_leads_nowhere_is_made_through_and_not_with_create_new() {
    let pool = pool();
    pool.create_dir("/d").unwrap();
    pool.symlink("d/target", "/link").unwrap();
    assert!(matches!(pool.open_file("/link"), Err(Error::NotFound)));
    let options = pool.file_options().write(true);
    assert!(matches!(options.clone().create_new(true).open("/link"), Err(Error::Exists)));
    options.create(true).open("/link").unwrap().append(b"x").unwrap();
    assert_eq!(pool.read("/d/target").unwrap(), b"x");
    assert!(matches!(pool.create_dir("/link"), Err(Error::Exists)));
    pool.remove_file("/link").unwrap();
    assert!(pool.exists("/d/target").unwrap(), "the link goes, not what it leads to");
}

#[test]
fn names_come_move_and_go() {
    let pool = pool();
    pool.create_dir_all("/x/y/z").unwrap();
    pool.create_dir_all("/x/y/z").unwrap();
    pool.create_dir_all("/").unwrap();
    assert!(matches!(pool.create_dir("/x"), Err(Error::Exists)));
    assert!(matches!(pool.create_dir("/"), Err(Error::Exists)));
    assert!(matches!(pool.create_dir("/none/x"), Err(Error::NotFound)));
    pool.create_dir("/slash/").unwrap();
    pool.write("/f", "f").unwrap();
    assert!(matches!(pool.create_dir_all("/f/x"), Err(Error::NotDirectory)));
    assert!(matches!(pool.create_dir_all("/f"), Err(Error::Exists)));
    pool.hard_link("/f", "/x/g").unwrap();
    assert_eq!(pool.metadata("/f").unwrap().nlink(), 2);
    assert_eq!(pool.metadata("/f").unwrap().ino(), pool.metadata("/x/g").unwrap().ino());
    assert!(matches!(pool.hard_link("/x", "/dir"), Err(Error::IsDirectory)));
    assert!(matches!(pool.hard_link("/f", "/x/g"), Err(Error::Exists)));
    pool.rename("/f", "/x/y/h").unwrap();
    assert!(!pool.exists("/f").unwrap());
    assert!(matches!(pool.rename("/x", "/x/y/in"), Err(Error::Invalid(_))));
    assert!(matches!(pool.rename("/x/g", "/x/y"), Err(Error::IsDirectory)));
    assert!(matches!(pool.rename("/x/g", "/new/"), Err(Error::NotDirectory)));
    assert!(matches!(pool.rename("/none", "/new"), Err(Error::NotFound)));
    assert!(matches!(pool.remove_file("/x"), Err(Error::IsDirectory)));
    assert!(matches!(pool.remove_dir("/x"), Err(Error::NotEmpty)));
    assert!(matches!(pool.remove_dir("/x/g"), Err(Error::NotDirectory)));
    assert!(matches!(pool.remove_dir("/"), Err(Error::Invalid(_))));
    assert!(matches!(pool.remove_dir_all("/"), Err(Error::Invalid(_))));
    assert!(matches!(pool.remove_dir_all("/x/g"), Err(Error::NotDirectory)));
    assert!(matches!(pool.symlink("/x/y", "/link/"), Err(Error::NotFound)), "a slash means a directory");
    assert!(matches!(pool.symlink("/x/y", "/x/"), Err(Error::Exists)));
    assert!(!pool.exists("/link").unwrap());
    pool.symlink("/x/y", "/link").unwrap();
    assert!(matches!(pool.remove_dir("/link/"), Err(Error::NotDirectory)));
    pool.remove_dir_all("/link").unwrap();
    assert!(pool.exists("/x/y/h").unwrap(), "a link is removed, and not followed");
    pool.remove_dir_all("/x").unwrap();
    pool.remove_dir("/slash").unwrap();
    assert_eq!(pool.read_dir("/").unwrap().count(), 0);
}

#[test]
fn a_directory_can_be_emptied_while_it_is_listed() {
    const FILES: usize = 1000;
    let pool = pool();
    pool.create_dir("/d").unwrap();
    (0..FILES).for_each(|n| pool.write(format!("/d/{n}"), "x").unwrap());
    let mut seen = BTreeSet::new();
    for entry in pool.read_dir("/d").unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.file_type(), entry.metadata().unwrap().len()), (FileType::File, 1));
        assert_eq!(pool.metadata(entry.path()).unwrap().ino(), entry.ino());
        pool.remove_file(entry.path()).unwrap();
        assert!(matches!(entry.metadata(), Err(Error::NotFound)));
        assert!(seen.insert(entry.file_name().to_owned()), "listed twice");
    }
    assert_eq!(seen.len(), FILES);
    pool.remove_dir("/d").unwrap();
    assert!(matches!(pool.read_dir("/d"), Err(Error::NotFound)));
    pool.write("/f", "").unwrap();
    assert!(matches!(pool.read_dir("/f"), Err(Error::NotDirectory)));
}

#[test]
fn what_stays_is_listed_once_while_others_come_and_go() {
    let pool = pool();
    (0..300).for_each(|n| pool.write(format!("/stays-{n}"), "").unwrap());
    let (mut stays, mut round) = (0, 0);
    for entry in pool.read_dir("/").unwrap() {
        stays += u32::from(entry.unwrap().file_name().to_string_lossy().starts_with("stays"));
        pool.write(format!("/comes-{round}"), "").unwrap();
        if round % 2 == 1 {
            pool.remove_file(format!("/comes-{}", round - 1)).unwrap();
        }
        round += 1;
        assert!(round < 10_000, "a listing that its own files keep alive");
    }
    assert_eq!(stays, 300);
}

#[test]
fn a_listing_of_a_directory_that_was_removed_ends_with_an_error() {
    let pool = pool();
    pool.create_dir("/d").unwrap();
    (0..200).for_each(|n| pool.write(format!("/d/{n}"), "").unwrap());
    let mut listing = pool.read_dir("/d").unwrap();
    listing.next().unwrap().unwrap();
    pool.remove_dir_all("/d").unwrap();
    let rest: Vec<_> = listing.by_ref().collect();
    assert!(rest.last().unwrap().is_err() && rest[..rest.len() - 1].iter().all(Result::is_ok));
    assert!(listing.next().is_none());
}

#[test]
fn times_are_the_systems() {
    let pool = pool();
    let before = SystemTime::now() - Duration::from_secs(1);
    let file = pool.create_file("/f").unwrap();
    let made = file.metadata().unwrap();
    for time in [made.created(), made.modified(), made.accessed(), made.changed()] {
        assert!(time >= before && time <= SystemTime::now() + Duration::from_secs(1));
    }
    let old = SystemTime::UNIX_EPOCH - Duration::from_millis(1500);
    file.set_modified(old).unwrap();
    assert_eq!(pool.metadata("/f").unwrap().modified(), old);
}
