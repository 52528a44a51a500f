//! Pages that mappings show, that are pinned, or that a merge is moving, while a pool shrinks.

use pagestone::mmap::MapOptions;
use pagestone::{Error, Extent};

use crate::{MIB, bytes, clean, lie_before, lie_behind, new_file, on_memory, open, pattern, shrink, write};

/// Fails if a mapping shows an old page after it was moved, or a store to it is lost.
#[test]
fn mappings_stay_true_while_their_pages_are_moved() {
    let (media, pool) = on_memory(128 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(1, 80 << 20));
    let file = new_file(&pool, "f");
    write(&file, 0, &pattern(3, 4 << 20));
    let clone = pool.root().clone_file(b"clone", file.ino()).unwrap().ino;
    let clone = pool.node(clone).unwrap().open().unwrap();
    let maps: Vec<_> =
        [(&file, MapOptions::shared()), (&file, MapOptions::private()), (&clone, MapOptions::read_only())]
            .into_iter()
            .map(|(file, options)| file.map(0..4 << 20, &options).unwrap())
            .collect();
    let mut buf = vec![0; 4 << 20];
    for map in &maps {
        map.read(0, &mut buf).unwrap();
        assert!(buf == pattern(3, 4 << 20));
    }
    maps[0].write(5000, b"shared").unwrap();
    maps[1].write(9000, b"private").unwrap();
    pool.root().unlink(b"ballast").unwrap();
    assert!([&file, &clone].iter().all(|file| lie_behind(file, 64 * MIB)), "{:?}", file.extents(..));
    shrink(&pool, 64 * MIB).unwrap();
    assert!([&file, &clone].iter().all(|file| lie_before(file, 64 * MIB)), "{:?}", file.extents(..));
    let mut expected = [pattern(3, 4 << 20), pattern(3, 4 << 20), pattern(3, 4 << 20)];
    expected[0][5000..5006].copy_from_slice(b"shared");
    // What nobody has stored to privately is the file's.
    expected[1][5000..5006].copy_from_slice(b"shared");
    expected[1][9000..9007].copy_from_slice(b"private");
    for (map, expected) in maps.iter().zip(&expected) {
        map.read(0, &mut buf).unwrap();
        assert!(&buf == expected);
    }
    maps[0].write(70_000, b"again").unwrap();
    drop(maps);
    expected[0][70_000..70_005].copy_from_slice(b"again");
    assert!(bytes(&file) == expected[0] && bytes(&clone) == expected[2]);
    drop((file, clone, pool));
    clean(&media);
}

/// Fails if what a merge has moved behind the old end of a base is taken for nothing when its pages are moved.
#[test]
fn a_shrink_keeps_what_a_merge_that_is_not_over_has_moved_behind_the_end_of_a_base() {
    const END: u64 = 64 * MIB;
    /// Extents behind the end of the base: more than one record of a merge moves.
    const MANY: u64 = 3500;
    let (media, pool) = on_memory(128 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(9, 66 << 20));
    let original = new_file(&pool, "original");
    write(&original, 0, &pattern(1, 4 << 20));
    let file = open(&pool, pool.root().clone_file(b"f", original.ino()).unwrap().ino);
    let mut expected = pattern(1, 4 << 20);
    // What hides pinned pages of the base keeps the merge from its end: there is no page to split the frame with.
    let hidden = 2 * MIB..2 * MIB + 8192;
    let map = file.map(0..4 << 20, &MapOptions::read_only()).unwrap();
    let pin = map.pin(hidden.clone()).unwrap();
    write(&file, hidden.start, &pattern(2, 8192));
    expected[hidden.start as usize..hidden.end as usize].copy_from_slice(&pattern(2, 8192));
    for i in 0..MANY {
        write(&file, 4 * MIB + i * 8192, &pattern(i, 4096));
        expected.extend([pattern(i, 4096), vec![0; 4096]].concat());
    }
    file.set_len(expected.len() as u64).unwrap();
    drop(original);
    pool.root().unlink(b"original").unwrap();
    let extents = |from| file.extents(from..).unwrap();
    let moved = extents(4 * MIB).iter().filter(|x| x.shared).count();
    assert!(moved > 100 && extents(0)[0].shared && !extents(hidden.start)[0].shared, "{moved} extents moved");
    assert!(bytes(&file) == expected);
    let behind = || extents(0).iter().filter(|x| x.shared && x.pool >= END).count();
    assert!(extents(0)[0].pool >= END && behind() > 100, "{} extents of the base lie behind the end", behind());
    pool.root().unlink(b"ballast").unwrap();
    let result = shrink(&pool, END);
    assert!(matches!(result, Err(Error::Pinned)), "{result:?}");
    let frame = |x: &Extent| (2 * MIB..4 * MIB).contains(&x.offset);
    assert!(extents(0).iter().all(|x| frame(x) || x.pool + x.len <= END), "all but the pinned frame is moved");
    assert!(bytes(&file) == expected);
    drop((pin, map));
    shrink(&pool, END).unwrap();
    assert!(lie_before(&file, END));
    assert!(bytes(&file) == expected);
    drop((file, pool));
    clean(&media);
}

/// Fails if pages that a program has pinned, and may be storing to by their address, are moved away from it.
#[test]
fn pages_that_a_program_has_pinned_stay_where_they_are() {
    let (media, pool) = on_memory(64 * MIB);
    write(&new_file(&pool, "ballast"), 0, &pattern(1, 40 << 20));
    let file = new_file(&pool, "f");
    write(&file, 0, &pattern(2, 4 << 20));
    pool.root().unlink(b"ballast").unwrap();
    let pages = 2 * MIB..2 * MIB + 8192;
    let map = file.map(0..4 << 20, &MapOptions::shared()).unwrap();
    let pin = map.pin(pages.clone()).unwrap();
    let before = file.extents(pages.clone()).unwrap();
    assert!(lie_behind(&file, 32 * MIB));
    assert!(matches!(shrink(&pool, 32 * MIB), Err(Error::Pinned)));
    assert_eq!(file.extents(pages.clone()).unwrap()[0].pool, before[0].pool);
    drop((pin, map));
    shrink(&pool, 32 * MIB).unwrap();
    assert!(lie_before(&file, 32 * MIB));
    assert!(bytes(&file) == pattern(2, 4 << 20));
    drop((file, pool));
    clean(&media);
}
