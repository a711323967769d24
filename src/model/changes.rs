//! Room for changes: what a classic snapshot has for what its volume was before it was changed.
//!
//! LVM counts the room in extents of the volume group and gives no more than the whole volume can come to need.

use super::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What LVM's classic snapshots keep at once, in bytes.
pub const CHANGE_CHUNK: u64 = 4096;
/// Of a volume's size, in percent, where nobody says how much room a snapshot is to have.
const DEFAULT_PERCENT: u32 = 20;
/// And at least so much.
const DEFAULT_LEAST: ByteSize = ByteSize::mib(1024);

/// How much room a snapshot is to have, in the user's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Room {
    /// In bytes, with what it takes to remember which of them have changed.
    Size(ByteSize),
    /// Of the volume's size; 100 is all that the volume can come to need, so that the snapshot is never spoilt.
    Percent(u32),
}

impl Room {
    /// Says what is wrong with it, if anything.
    pub fn fault(self) -> Option<String> {
        match self {
            Room::Size(size) if size == ByteSize::ZERO => Some("a snapshot's room must not be zero".to_owned()),
            Room::Percent(percent) if !(1..=100).contains(&percent) => Some(format!(
                "a snapshot's room of {percent}% is not between 1% and 100%, which is all that its volume can come to need"
            )),
            Room::Size(_) | Room::Percent(_) => None,
        }
    }

    /// In bytes, for a volume that takes so many.
    fn of(self, volume: ByteSize) -> ByteSize {
        match self {
            Room::Size(size) => size,
            Room::Percent(100..) => ByteSize::MAX,
            Room::Percent(percent) => share(volume, percent),
        }
    }
}

/// For people, and as it is written at the prompt.
impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Room::Size(size) => size.fmt(f),
            Room::Percent(percent) => f.pad(&format!("{percent}%")),
        }
    }
}

fn share(of: ByteSize, percent: u32) -> ByteSize {
    let share = u128::from(of.as_u64()) * u128::from(percent) / 100;
    ByteSize::bytes(u64::try_from(share).unwrap_or(u64::MAX))
}

/// The room of a snapshot of a volume that takes `volume` of its group: what LVM makes of the words, in whole extents.
/// Nothing said: a fifth of the volume, at least one gibibyte.
pub fn room_of(words: Option<Room>, volume: ByteSize, extent: ByteSize) -> ByteSize {
    let wanted = words.map_or_else(|| share(volume, DEFAULT_PERCENT).max(DEFAULT_LEAST), |words| words.of(volume));
    fitted_room(wanted, volume, extent)
}

/// So much room as LVM gives it: whole extents, one at least, and no more than the whole volume can come to need.
pub fn fitted_room(wanted: ByteSize, volume: ByteSize, extent: ByteSize) -> ByteSize {
    let extent = extent.as_u64().max(1);
    let extents = wanted.min(most_room(volume)).as_u64().div_ceil(extent).max(1);
    ByteSize::bytes(extents.saturating_mul(extent))
}

/// One chunk that says what it is, each of the volume's, and sixteen bytes for each to remember it by, with a last one
/// that ends the list: as `dm-snapshot` lays them out.
fn most_room(volume: ByteSize) -> ByteSize {
    const REMEMBERED: u64 = CHANGE_CHUNK / 16;
    let chunks = volume.as_u64().div_ceil(CHANGE_CHUNK);
    let lists = chunks / REMEMBERED + 1;
    ByteSize::bytes(chunks.saturating_add(lists).saturating_add(1).saturating_mul(CHANGE_CHUNK))
}

/// How much of a snapshot's room is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    pub room: ByteSize,
    pub used: ByteSize,
}

/// How far something has come that takes as long as a volume is large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done: ByteSize,
    pub of: ByteSize,
}

impl Progress {
    /// Whole hundredths, 100 only at the end.
    pub fn percent(self) -> u64 {
        let done = u128::from(self.done.min(self.of).as_u64()) * 100;
        u64::try_from(done / u128::from(self.of.as_u64().max(1))).unwrap_or(100)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}% ({} of {})", self.percent(), self.done, self.of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXTENT: ByteSize = ByteSize::mib(4);

    #[test]
    fn a_snapshot_has_a_share_of_its_volume_and_a_small_volume_can_change_as_a_whole() {
        let extents = |words, mib| room_of(words, ByteSize::mib(mib), EXTENT).as_u64() / EXTENT.as_u64();
        assert_eq!([4, 512, 2048, 100 << 10].map(|mib| extents(None, mib)), [2, 129, 256, 20 * 256]);
        assert_eq!(extents(Some(Room::Percent(50)), 400), 50);
        assert_eq!(extents(Some(Room::Percent(100)), 400), 101);
        assert_eq!(extents(Some(Room::Size(ByteSize::mib(9))), 400), 3);
        assert_eq!(extents(Some(Room::Size(ByteSize::MAX)), 400), 101);
        assert_eq!(extents(Some(Room::Size(ByteSize::bytes(1))), 400), 1);
    }

    #[test]
    fn room_that_makes_no_sense_is_named() {
        for (room, word) in [
            (Room::Size(ByteSize::ZERO), "zero"),
            (Room::Percent(0), "0% is not"),
            (Room::Percent(101), "101% is not"),
            (Room::Percent(u32::MAX), "is not"),
        ] {
            assert!(room.fault().is_some_and(|fault| fault.contains(word)), "{room:?}");
        }
        assert_eq!(Room::Percent(100).fault().or(Room::Size(ByteSize::bytes(1)).fault()), None);
    }

    #[test]
    fn progress_is_complete_at_its_end_and_not_before() {
        let at = |done, of| Progress { done: ByteSize::bytes(done), of: ByteSize::bytes(of) }.percent();
        assert_eq!([at(0, 7), at(6, 7), at(7, 7), at(9, 7), at(0, 0)], [0, 85, 100, 100, 0]);
        assert_eq!(at(u64::MAX - 1, u64::MAX), 99);
    }

    proptest! {
        #[test]
        fn room_is_whole_extents_never_more_than_can_be_needed_and_more_asked_is_never_less(
            volume in 1u64..1 << 50, asked in 1u64..1 << 50, more in 0u64..1 << 40, percent in 1u32..=100,
        ) {
            let volume = ByteSize::bytes(volume.next_multiple_of(EXTENT.as_u64()));
            let room = |asked| room_of(Some(Room::Size(ByteSize::bytes(asked))), volume, EXTENT);
            prop_assert!(room(asked).as_u64() % EXTENT.as_u64() == 0 && room(asked) >= EXTENT);
            prop_assert!(room(asked) <= room(asked + more));
            let whole = room_of(Some(Room::Percent(100)), volume, EXTENT);
            prop_assert!(whole > volume && whole.as_u64() - volume.as_u64() <= volume.as_u64() / 128 + 2 * EXTENT.as_u64());
            for room in [room(asked), room_of(Some(Room::Percent(percent)), volume, EXTENT), room_of(None, volume, EXTENT)] {
                prop_assert!(room <= whole);
            }
        }
    }
}
