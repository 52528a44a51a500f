//! Appends: the end of a file is that of the commit, and moves with the operations of the transaction.

use crate::{Checked, failed};

#[test]
fn an_append_goes_behind_what_the_transaction_and_others_wrote_before_it() {
    let pool = Checked::new(16 << 20);
    pool.write("/a", "0").unwrap();
    let long = vec![b'l'; 9000];
    let mut change = pool.transaction();
    change.append("/a", b"1").append("/a", &long).set_len("/a", 3).append("/a", b"2").append("/a", b"");
    change.create("/new", 0o644).append("/new", b"n").write("/new", b"far", 5000).append("/new", b"end");
    change.rename("/new", "/moved").append("/moved", b"!");
    pool.open_file("/a").unwrap().append(b"other").unwrap();
    change.commit().unwrap();
    assert_eq!(pool.read("/a").unwrap(), b"0ot2", "its end is that of the commit");
    let moved = pool.read("/moved").unwrap();
    assert_eq!((moved[0], &moved[5000..]), (b'n', &b"farend!"[..]));
    assert!(moved[1..5000].iter().all(|&byte| byte == 0));
    for (path, errno) in [("/none", libc::ENOENT), ("/", libc::EISDIR)] {
        let mut change = pool.transaction();
        change.append("/a", b"lost").append(path, b"x");
        let (operation, error) = failed(change.commit());
        assert_eq!((operation, error.errno()), (1, errno), "{path}");
        assert_eq!(pool.read("/a").unwrap(), b"0ot2");
    }
    pool.finish();
}

#[test]
fn threads_that_append_in_transactions_lose_nothing() {
    const EACH: usize = 100;
    let pool = Checked::new(64 << 20);
    ["/a", "/b"].iter().for_each(|path| pool.write(path, "").unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..EACH {
                    let line = [thread, i as u8, b'.'];
                    let mut change = pool.transaction();
                    change.append("/a", &line).append("/b", &line);
                    change.commit().unwrap();
                }
            });
        }
    });
    let a = pool.read("/a").unwrap();
    assert_eq!(a.len(), 4 * EACH * 3);
    assert!(a == pool.read("/b").unwrap(), "both files have the lines in one order");
    for thread in 0..4 {
        let lines = a.chunks(3).filter(|line| line[0] == thread).map(|line| usize::from(line[1]));
        assert!(lines.eq(0..EACH), "in the order in which the thread committed");
    }
    pool.finish();
}
