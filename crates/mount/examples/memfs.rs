//! Mounts a filesystem in ordinary memory, to try what the transport does with somebody else's
//! test programs: `memfs DIR`, until `umount DIR`.

#[path = "../tests/memfs/mod.rs"]
mod memfs;

use std::path::PathBuf;
use std::sync::Arc;

use pagestone_mount::{FuseTransport, Options, Transport, prepare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: memfs DIR")?;
    let prepared = prepare(&dir)?;
    let options = Options { allow_other: true, ..Options::default() };
    FuseTransport.serve(Arc::new(memfs::MemFs::new()), &prepared.dir, &options, None)?.wait()?;
    Ok(())
}
