//! The record of changes is bounded: the oldest entries go.

use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::Event;

/// Entries that are dropped in one transaction, and how far the record may grow beyond its bound before that begins, so
/// that not every change costs a second transaction.
pub const PRUNED_AT_ONCE: usize = 100;

/// Drops the oldest entries beyond `kept`, a part at a time; says whether there are more to drop.
///
/// # Errors
/// None of its own.
pub fn prune_events(draft: &mut Draft<'_>, kept: usize) -> Result<bool, Refusal> {
    let beyond = draft.view().events.len().saturating_sub(kept);
    let oldest = draft.view().events_after(None, beyond.min(PRUNED_AT_ONCE));
    for ((_, id), _) in oldest {
        draft.delete::<Event>(id);
    }
    Ok(beyond > PRUNED_AT_ONCE)
}
