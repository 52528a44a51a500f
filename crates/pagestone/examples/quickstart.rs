//! A pool from the library: make, write, look around, reopen.
//!
//! ```text
//!   cargo run --release -p pagestone --example quickstart [POOL]
//! ```
//!
//! Without an argument the pool is made in the temporary folder and removed again.

use std::path::{Path, PathBuf};

use pagestone::{CreateOptions, Kind, NewNode, OpenOptions, Pool, Result};

fn main() -> Result<()> {
    match std::env::args_os().nth(1) {
        Some(path) => tour(&PathBuf::from(path)),
        None => {
            let path = std::env::temp_dir().join(format!("quickstart-{}.pool", std::process::id()));
            let result = tour(&path);
            // Whether it is there at all depends on how far the tour got.
            let _ = std::fs::remove_file(&path);
            result
        }
    }
}

fn tour(path: &Path) -> Result<()> {
    let pool = Pool::create(path, &CreateOptions { size: Some(64 << 20), ..Default::default() })?;
    let media = pool.info()?.media;
    println!("{} on {}: {}", path.display(), media.kind, media.promise);

    // A name, and bytes.
    let attr = pool.root().create(b"hello", &NewNode::new(Kind::File, 0o644))?;
    let file = pool.node(attr.ino)?.open()?;
    file.write_at(0, b"hello, ")?;
    file.append(b"persistent world")?;
    // Far behind the end: what lies between is a hole and takes no space.
    file.write_at(1 << 30, b"far away")?;
    for extent in file.extents(0, u64::MAX)? {
        println!("bytes {:>10} + {:>4} lie at pool byte {:#x}", extent.offset, extent.len, extent.pool);
    }
    // On an ordinary file this is when it is durable; elsewhere it is already.
    file.sync()?;
    drop(file);
    pool.close()?;

    let pool = Pool::open(path, &OpenOptions::default())?;
    pool.root().entries(0, &mut |entry| {
        println!("found {:?}, {}", String::from_utf8_lossy(&entry.name), entry.ino);
        true
    })?;
    let file = pool.resolve(b"/hello")?.open()?;
    let mut text = [0; 23];
    let n = file.read_at(0, &mut text)?;
    println!("{} bytes: {}", n, String::from_utf8_lossy(&text[..n]));
    drop(file);
    pool.close()
}
