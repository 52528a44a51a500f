//! A request that comes again after a crash is done once: its note is there exactly where its change is.
//!
//! ```text
//!   change 1, change 2, ...   each as a request; a crash at any moment
//!   afterwards                the one under way:  noted ----> it has happened, and must not be done again
//!                                                 not ------> it has not, and doing it must succeed
//!                             then the rest, and the names are those of a run without a crash
//! ```
//!
//! How it can fail: a note in another record than the change (a second create says "exists", or a name is missing); a
//! note in a record that only prepares the change; the note of a failed operation.

use std::sync::Arc;

use crashlab::{Budget, CrashKind, Flavour, explore};
use pagestone::inode::{DoneRequest, NewNode, RenameMode, Request, XattrMode};
use pagestone::{Error, FileType, Ino, OpenOptions, Pool};

use crate::ops::Op;
use crate::run::{Effort, Template, open};
use crate::seen;

const CLIENT: u64 = 0xC11E;

/// A change that has another result the second time; the inode that it makes.
type Change = fn(&Pool) -> Result<Option<Ino>, Error>;

fn file(pool: &Pool, path: &[u8]) -> Result<Ino, Error> {
    Ok(pool.resolve(path)?.ino())
}

fn make(pool: &Pool, name: &[u8], node: NewNode<'_>) -> Result<Option<Ino>, Error> {
    Ok(Some(pool.root().create(name, &node)?.ino))
}

const CHANGES: &[(&str, Change)] = &[
    ("create", |pool| make(pool, b"made", NewNode::new(FileType::File, 0o600))),
    ("mkdir", |pool| make(pool, b"directory", NewNode::new(FileType::Dir, 0o700))),
    ("symlink", |pool| make(pool, b"link", NewNode::new(FileType::Symlink, 0o777).target(&[b'x'; 900]))),
    ("link", |pool| pool.root().link(b"second", file(pool, b"made")?).map(|_| None)),
    ("unlink one of two names", |pool| pool.root().unlink(b"made").map(|()| None)),
    ("rename", |pool| {
        let directory = file(pool, b"directory")?;
        pool.root().rename(b"second", directory, b"moved", RenameMode::NoReplace).map(|()| None)
    }),
    ("exchange", |pool| {
        let root = pool.root();
        root.rename(b"large", root.ino(), b"small", RenameMode::Exchange).map(|()| None)
    }),
    ("whiteout", |pool| {
        let root = pool.root();
        root.rename_with_whiteout(b"link", root.ino(), b"renamed link").map(|()| None)
    }),
    ("set an attribute", |pool| {
        pool.resolve(b"small")?.set_xattr(b"user.a", &[7; 3000], XattrMode::Create).map(|()| None)
    }),
    ("remove it", |pool| pool.resolve(b"small")?.remove_xattr(b"user.a").map(|()| None)),
    // Too large to be freed in one record.
    ("unlink a large file", |pool| pool.root().unlink(b"small").map(|()| None)),
    ("replace", |pool| {
        let root = pool.root();
        root.rename(b"large", root.ino(), b"other", RenameMode::Replace).map(|()| None)
    }),
    ("unlink in the directory", |pool| pool.resolve(b"directory")?.dir()?.unlink(b"moved").map(|()| None)),
    ("rmdir", |pool| pool.root().rmdir(b"directory").map(|()| None)),
];

fn request(change: usize) -> Request {
    // Two threads take turns.
    Request { client: CLIENT, number: 1000 + change as u64, line: 17 + (change % 2) as u16 }
}

fn run_as_request(pool: &Pool, change: usize) -> Result<Option<Ino>, Error> {
    request(change).run(|| (CHANGES[change].1)(pool))
}

fn names(pool: &Pool) -> Result<Vec<String>, String> {
    let tree = seen::read(pool)?;
    let mut names: Vec<String> = tree.values().flat_map(|seen| seen.names().cloned()).collect();
    names.sort();
    Ok(names)
}

fn noted(pool: &Pool, change: usize) -> Result<Option<DoneRequest>, String> {
    let done = pool.done_requests(CLIENT).map_err(|e| e.to_string())?;
    Ok(done.into_iter().find(|done| done.request == request(change)))
}

/// What the server after this one does. Says what is wrong.
fn go_on(pool: &Pool, acknowledged: usize, wanted: &[String]) -> Result<(), String> {
    if acknowledged > 0 && noted(pool, acknowledged - 1)?.is_none() {
        return Err(format!("{}: acknowledged, and there is no note", CHANGES[acknowledged - 1].0));
    }
    for (change, (what, _)) in CHANGES.iter().enumerate().skip(acknowledged) {
        match noted(pool, change)? {
            Some(done) if change == acknowledged => {
                let made = done.made.map(|ino| pool.node(ino).and_then(|node| node.attr())).transpose();
                made.map_err(|e| format!("{what}: what it made is not there: {e}"))?;
            }
            Some(_) => return Err(format!("{what}: there is a note of it before it is done")),
            None => {
                let made = run_as_request(pool, change).map_err(|e| format!("{what}, done again: {e}"))?;
                let noted = noted(pool, change)?.ok_or_else(|| format!("{what}: no note"))?;
                if noted.made != made {
                    return Err(format!("{what}: the note says {:?}, made was {made:?}", noted.made));
                }
            }
        }
    }
    let found = names(pool)?;
    if found == wanted { Ok(()) } else { Err(format!("the names are {found:?}")) }
}

#[test]
fn a_request_that_comes_again_after_a_crash_is_done_once() {
    const BEFORE: [Op; 6] = [
        Op::Create("small"),
        Op::Create("other"),
        Op::Create("large"),
        Op::Truncate("large", 9 << 20),
        Op::WriteAtomic("large", crate::ops::Parts { from: 0, every: 1 << 20, len: 5000, count: 8 }, 3),
        Op::Sync,
    ];
    let (exhaustive_up_to, sampled) = Effort::of((32, 20), (64, 40), (128, 80));
    for flavour in [Flavour::Lines, Flavour::Pages] {
        let template = Template::new(flavour, 0x0CE, &BEFORE);
        let sim = template.media();
        let pool = open(&sim).unwrap();
        sim.start_recording();
        for (change, (what, _)) in CHANGES.iter().enumerate() {
            run_as_request(&pool, change).unwrap_or_else(|e| panic!("{what}: {e}"));
            sim.mark(*what);
        }
        let trace = sim.finish();
        let wanted = names(&pool).unwrap();
        drop(pool);
        let budget = Budget { exhaustive_up_to, sampled, ..Budget::default() };
        let explored = explore(&trace, &budget, |state, sim| {
            // On media that are durable at a sync, a power cut takes what was acknowledged; the server is killed here.
            if flavour == Flavour::Pages && state.point.kind == CrashKind::PowerCut {
                return Ok(());
            }
            go_on(&open(sim)?, state.acknowledged, &wanted)
        });
        let summary = explored.unwrap_or_else(|failure| panic!("{flavour:?}: {failure}"));
        assert!(summary.states > 100, "{flavour:?}: {} states", summary.states);
    }
}

/// A thread without a request, a failed change and another client leave no note; a damaged line has none.
#[test]
fn only_a_change_that_has_happened_is_noted() {
    let template = Template::new(Flavour::Lines, 0x0CF, &[Op::Create("small")]);
    let sim = template.media();
    let pool = open(&sim).unwrap();
    pool.root().create(b"a", &NewNode::new(FileType::File, 0o600)).unwrap();
    assert_eq!(pool.done_requests(CLIENT).unwrap(), []);
    let exists = request(0).run(|| pool.root().create(b"a", &NewNode::new(FileType::File, 0o600)));
    assert!(matches!(exists, Err(Error::Exists)));
    assert_eq!(pool.done_requests(CLIENT).unwrap(), []);
    request(0).run(|| pool.root().unlink(b"a")).unwrap();
    assert_eq!(pool.done_requests(CLIENT).unwrap(), [DoneRequest { request: request(0), made: None }]);
    assert_eq!(pool.done_requests(CLIENT + 1).unwrap(), []);
    pool.checkpoint().unwrap();
    drop(pool);
    let media: Arc<dyn pmem::Media> = sim.clone();
    let at = 5 * 4096 + u64::from(request(0).line) * 64;
    media.persist(&[pmem::Part::Bytes { at: at + 40, bytes: &[1] }]).unwrap();
    let pool = Pool::open_on(media, &OpenOptions::new()).unwrap();
    assert_eq!(pool.done_requests(CLIENT).unwrap(), []);
}
