//! The operations that the model test makes up, and how often each.
//!
//! Numbers are choices, not values: `dir: 7` means the seventh directory, modulo how many there
//! are. So an operation stays meaningful when shrinking takes away what came before it.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::reference::Mode;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        dir: Index,
        name: Name,
        kind: u8,
        target: u16,
    },
    Link {
        dir: Index,
        name: Name,
        node: Index,
    },
    /// A clone under a new name.
    Clone {
        file: Index,
        dir: Index,
        name: Name,
    },
    /// A clone in the place of an empty file.
    CloneInto {
        file: Index,
        to: Index,
    },
    Unlink {
        dir: Index,
        name: Name,
    },
    Rmdir {
        dir: Index,
        name: Name,
    },
    /// Removes a name that is there.
    RemoveSome {
        dir: Index,
        name: Index,
    },
    Rename {
        from: Index,
        name: Index,
        to: Index,
        to_name: Name,
        mode: Mode,
    },
    RenameOnto {
        from: Index,
        name: Index,
        to: Index,
        onto: Index,
        mode: Mode,
    },
    Open {
        node: Index,
    },
    Close {
        handle: Index,
    },
    Write {
        file: Index,
        at: At,
        len: u32,
        seed: u8,
    },
    /// Parts of `len` bytes, `gap` apart.
    WriteAtomic {
        file: Index,
        at: At,
        len: u16,
        gap: u32,
        count: u8,
        seed: u8,
    },
    Append {
        file: Index,
        len: u32,
        seed: u8,
    },
    Read {
        file: Index,
        at: At,
        len: u32,
    },
    Truncate {
        file: Index,
        at: At,
    },
    Allocate {
        file: Index,
        at: At,
        len: u32,
        keep: bool,
    },
    Punch {
        file: Index,
        at: At,
        len: u32,
    },
    Zero {
        file: Index,
        at: At,
        len: u32,
        keep: bool,
    },
    Seek {
        file: Index,
        at: At,
    },
    SetXattr {
        node: Index,
        name: u8,
        len: u16,
        mode: u8,
        seed: u8,
    },
    RemoveXattr {
        node: Index,
        name: u8,
    },
    SetAttr {
        node: Index,
        perm: u32,
        owner: u32,
        time: i64,
    },
    List {
        dir: Index,
        batch: u8,
        changes: Vec<(Name, bool)>,
    },
    Fill {
        file: Index,
    },
    Sync,
    Reopen {
        crash: bool,
    },
    Verify,
}

/// A name, out of few, so that names meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name(pub(crate) u16);

impl Name {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let n = self.0;
        match n {
            0 => Vec::new(),
            1 => b".".to_vec(),
            2 => b"..".to_vec(),
            3 => b"a/b".to_vec(),
            4 => b"a\0".to_vec(),
            5 => vec![b'x'; 256],
            6..=12 => vec![b'a' + n as u8; 255],
            13..=30 => vec![0xFF; n as usize * 8],
            _ => format!("name-{n}").into_bytes(),
        }
    }
}

/// An offset or a length in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At(pub(crate) u64);

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![1 => 0u16..31, 12 => 31u16..60, 4 => 31u16..2000].prop_map(Name)
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![
        4 => 0u64..70_000,
        4 => (0u64..300).prop_map(|p| p * 4096),
        3 => 0u64..6 << 20,
        2 => (0u64..4, -5000i64..5000).prop_map(|(f, d)| (f << 21).saturating_add_signed(d)),
        1 => 8u64 << 20..9 << 20,
        1 => 1u64 << 32..1 << 45,
        1 => (0u64..20_000).prop_map(|d| i64::MAX as u64 - d),
    ]
    .prop_map(At)
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..9000,
        3 => (1u32..40).prop_map(|p| p * 4096),
        3 => 0u32..300_000,
        1 => (2u32 << 20)..(3 << 20),
    ]
}

fn index() -> impl Strategy<Value = Index> {
    any::<Index>()
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Replace), 1 => Just(Mode::NoReplace), 2 => Just(Mode::Exchange)]
}

fn names() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (index(), name(), prop_oneof![6 => Just(1u8), 4 => Just(2), 2 => Just(3), 1 => 4u8..8], 0u16..4200)
            .prop_map(|(dir, name, kind, target)| Op::Create { dir, name, kind, target }),
        2 => (index(), name(), index()).prop_map(|(dir, name, node)| Op::Link { dir, name, node }),
        5 => (index(), index(), name()).prop_map(|(file, dir, name)| Op::Clone { file, dir, name }),
        3 => (index(), index()).prop_map(|(file, to)| Op::CloneInto { file, to }),
        1 => (index(), name()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        1 => (index(), name()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        5 => (index(), index()).prop_map(|(dir, name)| Op::RemoveSome { dir, name }),
        3 => (index(), index(), index(), name(), mode())
            .prop_map(|(from, name, to, to_name, mode)| Op::Rename { from, name, to, to_name, mode }),
        3 => (index(), index(), index(), index(), mode())
            .prop_map(|(from, name, to, onto, mode)| Op::RenameOnto { from, name, to, onto, mode }),
        1 => (index(), 1u8..9, prop::collection::vec((name(), any::<bool>()), 0..6))
            .prop_map(|(dir, batch, changes)| Op::List { dir, batch, changes }),
    ]
}

fn bytes() -> impl Strategy<Value = Op> {
    prop_oneof![
        9 => (index(), at(), len(), any::<u8>()).prop_map(|(file, at, len, seed)| Op::Write { file, at, len, seed }),
        3 => (index(), len(), any::<u8>()).prop_map(|(file, len, seed)| Op::Append { file, len, seed }),
        3 => (index(), at(), 1u16..20_000, 0u32..60_000, 1u8..40, any::<u8>())
            .prop_map(|(file, at, len, gap, count, seed)| Op::WriteAtomic { file, at, len, gap, count, seed }),
        4 => (index(), at(), len()).prop_map(|(file, at, len)| Op::Read { file, at, len }),
        4 => (index(), at()).prop_map(|(file, at)| Op::Truncate { file, at }),
        3 => (index(), at(), len(), any::<bool>())
            .prop_map(|(file, at, len, keep)| Op::Allocate { file, at, len, keep }),
        5 => (index(), at(), len()).prop_map(|(file, at, len)| Op::Punch { file, at, len }),
        3 => (index(), at(), len(), any::<bool>()).prop_map(|(file, at, len, keep)| Op::Zero { file, at, len, keep }),
        2 => (index(), at()).prop_map(|(file, at)| Op::Seek { file, at }),
    ]
}

fn others() -> impl Strategy<Value = Op> {
    let xattr_len = prop_oneof![6 => 0u16..200, 2 => 900u16..1100, 2 => 0u16..33_000, 1 => Just(32u16 << 10)];
    prop_oneof![
        3 => index().prop_map(|node| Op::Open { node }),
        3 => index().prop_map(|handle| Op::Close { handle }),
        5 => (index(), any::<u8>(), xattr_len, 0u8..4, any::<u8>())
            .prop_map(|(node, name, len, mode, seed)| Op::SetXattr { node, name, len, mode, seed }),
        2 => (index(), any::<u8>()).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => (index(), any::<u32>(), any::<u32>(), any::<i64>())
            .prop_map(|(node, perm, owner, time)| Op::SetAttr { node, perm, owner, time }),
        1 => index().prop_map(|file| Op::Fill { file }),
        1 => Just(Op::Sync),
        2 => any::<bool>().prop_map(|crash| Op::Reopen { crash }),
        1 => Just(Op::Verify),
    ]
}

/// One operation.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![5 => names(), 5 => bytes(), 3 => others()]
}
