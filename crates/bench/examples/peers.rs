//! One load on a pool or on a directory, a line for each operation; see the module `peers`.
//!
//! `peers clock | pool PATH | dir PATH`

use std::path::Path;

use pagestone_bench::peers;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut print = |(what, ops, each, least, most): peers::Row| println!("{what}\t{ops}\t{each}\t{least}\t{most}");
    match args[..] {
        ["clock"] => peers::clock(&mut print),
        ["pool", path] => peers::pool(Path::new(path), &mut print),
        ["dir", path] => peers::dir(Path::new(path), &mut print),
        _ => anyhow::bail!("peers clock | pool PATH | dir PATH"),
    }
}
