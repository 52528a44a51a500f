//! A pool from the library: make, write, list, reopen, read.
//!
//! ```text
//!   cargo run --release -p pagestone --example quickstart [POOL]
//! ```
//!
//! Without an argument the pool is made in the temporary folder and removed again.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use pagestone::{CreateOptions, OpenOptions, Pool};

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(path) => tour(Path::new(&path)),
        None => {
            let path = std::env::temp_dir().join(format!("quickstart-{}.pool", std::process::id()));
            let result = tour(&path);
            // Whether it is there at all depends on how far the tour got.
            let _ = std::fs::remove_file(&path);
            result
        }
    }
}

fn tour(path: &Path) -> Result<(), Box<dyn Error>> {
    let pool = Pool::create(path, &CreateOptions::new().size(64 << 20))?;
    let media = pool.info()?.media;
    println!("{} on {}: {}", path.display(), media.kind, media.promise);

    // Names and bytes, as with std::fs.
    pool.create_dir_all("/notes/2026")?;
    let mut file = pool.create_file("/notes/2026/hello")?;
    writeln!(file, "hello, persistent world")?;
    // Far behind the end: what lies between is a hole and takes no space.
    file.write_all_at(b"far away", 1 << 30)?;
    for extent in file.extents(..)? {
        println!("bytes {:>10} + {:>4} lie at pool byte {:#x}", extent.offset, extent.len, extent.pool);
    }
    // On an ordinary file this is when it is durable; elsewhere it is already.
    file.sync_all()?;

    // A clone shares the storage; a snapshot is that of everything.
    pool.clone_file("/notes/2026/hello", "/copy")?;
    pool.snapshots().create(b"first")?;
    drop(file);
    pool.close()?;

    let pool = Pool::open(path, &OpenOptions::new())?;
    for entry in pool.read_dir("/")? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        println!("{:?} {}, {} bytes", metadata.file_type(), entry.path().display(), metadata.len());
    }
    let mut line = String::new();
    BufReader::new(pool.open_file("/copy")?).read_line(&mut line)?;
    print!("it says: {line}");
    Ok(pool.close()?)
}
