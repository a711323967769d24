//! The label of an LVM physical volume: its id, its size, and the name of its volume group. Pure over bytes.
//!
//! The format is LVM's `lib/format_text/layout.h`: a label in one of the first four sectors, behind it a header with the
//! places of the metadata areas, in each a header with the place of the text, which begins with the group's name.

use super::signature::ReadAt;
use std::io;

const SECTOR: u64 = 512;
/// Sectors that LVM looks for a label in.
const SECTORS: u64 = 4;
const MAGIC: &[u8] = b"LABELONE";
const KIND: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// Longest name of a volume group, in bytes.
const LONGEST_NAME: usize = 127;

/// What a physical volume says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PvLabel {
    /// As LVM prints it: `abcdef-1234-5678-9ABC-DEFG-Hijk-lmnopq`.
    pub uuid: String,
    /// Of the device when the label was written, in bytes.
    pub size: u64,
    /// None if it is in no group, or its metadata cannot be read.
    pub group: Option<String>,
}

/// Finds the label; with it the offset of its sector.
pub(super) fn find(read: &mut ReadAt<'_>) -> io::Result<Option<(u64, PvLabel)>> {
    for number in 0..SECTORS {
        let start = number * SECTOR;
        let sector = read(start, SECTOR as usize)?;
        if sector.starts_with(MAGIC) && sector.get(24..32) == Some(KIND) {
            return Ok(Some((start, parse(&sector, read)?)));
        }
    }
    Ok(None)
}

fn parse(sector: &[u8], read: &mut ReadAt<'_>) -> io::Result<PvLabel> {
    let header = number32(sector, 20).and_then(|offset| sector.get(offset as usize..)).unwrap_or_default();
    let uuid = header.get(..32).map(spell_uuid).unwrap_or_default();
    let size = number64(header, 32).unwrap_or_default();
    let mut group = None;
    for area in metadata_areas(header) {
        group = group.or(group_name(area, read)?);
    }
    Ok(PvLabel { uuid, size, group })
}

/// Two lists of places lie behind one another, each ended by zeros: data, then metadata. Where the metadata begins.
fn metadata_areas(header: &[u8]) -> Vec<u64> {
    let places = header.get(40..).unwrap_or_default().chunks_exact(16);
    let starts: Vec<u64> = places.map_while(|place| number64(place, 0)).collect();
    let mut lists = starts.split(|start| *start == 0);
    lists.nth(1).map(<[u64]>::to_vec).unwrap_or_default()
}

fn group_name(area: u64, read: &mut ReadAt<'_>) -> io::Result<Option<String>> {
    let header = read(area, SECTOR as usize)?;
    let place = || {
        let is_area = header.get(4..20)? == AREA_MAGIC;
        let (offset, length) = (number64(&header, 40)?, number64(&header, 48)?);
        (is_area && length > 0).then(|| area.checked_add(offset)).flatten()
    };
    let Some(start) = place() else { return Ok(None) };
    let text = read(start, LONGEST_NAME + 1)?;
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(byte);
    let length = text.iter().take_while(|byte| is_of_name(byte)).count();
    let ends = text.get(length).is_some_and(|byte| byte.is_ascii_whitespace());
    let name = text.get(..length).and_then(|name| std::str::from_utf8(name).ok());
    Ok(name.filter(|name| ends && !name.is_empty()).map(str::to_owned))
}

/// 32 characters as 6-4-4-4-4-4-6; what is no character of an id becomes `?`.
fn spell_uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if (6..=26).contains(&at) && (at - 6) % 4 == 0 {
            text.push('-');
        }
        let known = byte.is_ascii_alphanumeric() || matches!(byte, b'#' | b'!');
        text.push(if known { char::from(*byte) } else { '?' });
    }
    text
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
