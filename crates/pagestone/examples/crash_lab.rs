//! Every crash of a rename: what a power cut at any moment leaves is the old state or the new one.
//!
//! ```text
//!   cargo run --release -p pagestone --example crash_lab
//!
//!   simulator --record--> rename --trace--> crash points x what survives --> open, look
//! ```

use std::error::Error;
use std::sync::Arc;

use crashlab::{Budget, Flavour, Lab, explore};
use pagestone::inode::{NewNode, RenameMode};
use pagestone::{CreateOptions, FileType, OpenOptions, Pool};
use pmem::Media;

fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(8 << 20, Flavour::Lines, 1);
    let media = lab.media()?;
    let pool = Pool::create_on(media.clone(), &CreateOptions::default())?;
    let file = NewNode::new(FileType::File, 0o644);
    pool.root().create(b"old", &file)?;
    pool.root().create(b"new", &file)?;

    media.start_recording();
    pool.root().rename(b"old", pool.root().ino(), b"new", RenameMode::Replace)?;
    media.mark("renamed");

    let summary = explore(&media.finish(), &Budget::default(), |state, sim| {
        let names = names(sim.clone()).map_err(|e| e.to_string())?;
        let before = names == ["new", "old"] && state.must_survive == 0;
        let after = names == ["new"];
        if before || after { Ok(()) } else { Err(format!("the directory has {names:?}")) }
    })?;
    println!("{summary}: each the state before or the state after");
    Ok(())
}

/// The names in the root, in order.
fn names(media: Arc<dyn Media>) -> pagestone::Result<Vec<String>> {
    let pool = Pool::open_on(media, &OpenOptions::default())?;
    let listed: pagestone::Result<Vec<_>> = pool.read_dir("/")?.collect();
    let mut names: Vec<String> = listed?.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}
