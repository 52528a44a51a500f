//! Pages of which an operation changes a part, and whose other bytes a base or a backing has.

use crate::alloc::TxResult;
use crate::extent::extent_map;
use crate::extent::resolve::page_below;
use crate::layout::InodeRec;
use crate::txn::Tx;
use crate::units::PAGE_SIZE;

/// Gives storage to the pages in which `[from, to)` begins or ends in the middle, where a base or a backing has bytes
/// of them.
pub(crate) fn copy_up(tx: &mut Tx<'_>, rec: &mut InodeRec, from: u64, to: u64) -> TxResult<()> {
    for at in [from, to] {
        if from >= to || at.is_multiple_of(PAGE_SIZE) {
            continue;
        }
        let contents = page_below(tx, rec, at / PAGE_SIZE)?;
        if contents.is_zeros() {
            continue;
        }
        let f = tx.reserve_data(rec.owner(), at / PAGE_SIZE, 1, false)?;
        let part = contents.part(f.run.page.byte(), 0..PAGE_SIZE);
        for durable in tx.fill(smallvec::smallvec![f], &[part])? {
            extent_map::insert(tx, rec, durable)?;
        }
    }
    Ok(())
}
