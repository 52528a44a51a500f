//! The paths of what a check reaches, stored as a name and a link to the parent directory. A chain of directories
//! takes memory in proportion to its length. A path is formatted only for a finding.

/// One path. Copies refer to the same path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PathId(usize);

enum Link {
    /// A name in the directory of the link.
    Name(PathId, Box<[u8]>),
    /// What clones of the linked file share.
    Shares(PathId),
    /// A description in place of a path.
    Words(&'static str),
}

/// All paths of one check.
pub(super) struct Paths(Vec<Link>);

impl Paths {
    /// The root directory.
    pub(super) const ROOT: PathId = PathId(0);
    /// The index of deleted files.
    pub(super) const ORPHANS: PathId = PathId(1);
    /// A deleted file.
    pub(super) const DELETED: PathId = PathId(2);
    /// The forwarding tables of relocated inode pages.
    pub(super) const FORWARDING: PathId = PathId(3);

    pub(super) fn new() -> Paths {
        Paths(vec![
            Link::Words("/"),
            Link::Words(""),
            Link::Words("(deleted, not yet reclaimed)"),
            Link::Words("(forwarding table)"),
        ])
    }

    fn add(&mut self, link: Link) -> PathId {
        self.0.push(link);
        PathId(self.0.len() - 1)
    }

    /// The path of `name` in the directory `above`.
    pub(super) fn below(&mut self, above: PathId, name: &[u8]) -> PathId {
        self.add(Link::Name(above, name.into()))
    }

    /// The path of the base of the file (or base) at `path`.
    pub(super) fn shared_by(&mut self, path: PathId) -> PathId {
        match self.0[path.0] {
            Link::Shares(_) => path,
            _ => self.add(Link::Shares(path)),
        }
    }

    /// Formats the path.
    pub(super) fn show(&self, path: PathId) -> String {
        let mut names = Vec::new();
        let mut at = path;
        loop {
            match &self.0[at.0] {
                Link::Name(above, name) => {
                    names.push(name);
                    at = *above;
                }
                // The linked path is not of this kind.
                Link::Shares(file) => return format!("what {} shares", self.show(*file)),
                Link::Words(words) if names.is_empty() => return (*words).into(),
                Link::Words(_) => break,
            }
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + &String::from_utf8_lossy(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_as_they_are_typed() {
        let mut paths = Paths::new();
        let a = paths.below(Paths::ROOT, b"a");
        let b = paths.below(a, b"b");
        assert_eq!((paths.show(Paths::ROOT), paths.show(a), paths.show(b)), ("/".into(), "/a".into(), "/a/b".into()));
        let shared = paths.shared_by(b);
        assert_eq!(paths.shared_by(shared), shared);
        assert_eq!(paths.show(shared), "what /a/b shares");
    }
}
