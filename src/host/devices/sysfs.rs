//! What sysfs says of one device. Attributes that are missing or odd are facts not known, never errors: drivers differ.

use super::claims::parse_number;
use super::{DeviceNumber, Kind};
use crate::model::ByteSize;
use std::fs;
use std::path::{Path, PathBuf};

/// Sectors of sysfs have this many bytes, whatever the device's own have.
const SECTOR: u64 = 512;
/// Longest text taken from an attribute.
const LONGEST: usize = 256;

/// One device, before its bytes and its users were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub name: String,
    pub number: DeviceNumber,
    pub size: ByteSize,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub rotational: bool,
    pub read_only: bool,
    pub removable: bool,
    pub kind: Kind,
    pub holders: Vec<String>,
}

/// Reads `<sys>/class/block/<name>`; none for what is no disk: memory, optical drives, devices without a medium.
pub(super) fn facts(sys: &Path, name: &str) -> Option<Facts> {
    if ["ram", "zram", "sr", "fd", "mtdblock"].iter().any(|prefix| is_numbered(name, prefix)) {
        return None;
    }
    let place = sys.join("class/block").join(name);
    let number = parse_number(&text(&place, "dev")?)?;
    let size = ByteSize::bytes(text(&place, "size")?.parse::<u64>().ok()?.checked_mul(SECTOR)?);
    // Second paths to one NVMe namespace are hidden; they have no node.
    if size == ByteSize::ZERO || flag(&place, "hidden") {
        return None;
    }
    let kind = kind(&place, name);
    let disk = match &kind {
        Kind::Partition { of } => sys.join("class/block").join(of),
        _ => place.clone(),
    };
    let model = match (text(&disk, "device/vendor"), text(&disk, "device/model")) {
        // Virtio's vendor is a number, ATA's says "ATA".
        (Some(vendor), Some(model)) if !vendor.starts_with("0x") && vendor != "ATA" => {
            Some(format!("{vendor} {model}"))
        }
        (_, model) => model,
    };
    let serial = text(&disk, "serial").or_else(|| text(&disk, "device/serial")).or_else(|| page_80(&disk));
    Some(Facts {
        name: name.to_owned(),
        number,
        size,
        model,
        serial,
        rotational: flag(&disk, "queue/rotational"),
        read_only: flag(&place, "ro") || flag(&disk, "ro"),
        removable: flag(&disk, "removable"),
        holders: names(&place.join("holders")),
        kind,
    })
}

/// The names in a directory, sorted; none if there is no such directory.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok().and_then(|entry| entry.file_name().into_string().ok())).collect();
    names.sort();
    names
}

fn kind(place: &Path, name: &str) -> Kind {
    if place.join("partition").exists() {
        // The link leads to …/block/vda/vda1: the disk is the directory above.
        let real = place.canonicalize().unwrap_or_else(|_| place.to_owned());
        let of = real.parent().and_then(Path::file_name).and_then(|disk| disk.to_str());
        if let Some(of) = of {
            return Kind::Partition { of: of.to_owned() };
        }
    }
    if is_numbered(name, "nbd") {
        return Kind::Network;
    }
    if is_numbered(name, "loop") {
        let file = text(place, "loop/backing_file").map(PathBuf::from);
        return Kind::Loop { file };
    }
    match text(place, "dm/uuid") {
        Some(uuid) if uuid.starts_with("LVM-") => Kind::LogicalVolume { called: mapped_name(place, name) },
        // A mapping without an id may be anything: dmsetup's own, or one of LVM's in the making.
        Some(_) => Kind::Mapped { called: mapped_name(place, name) },
        None if place.join("dm").exists() => Kind::Mapped { called: mapped_name(place, name) },
        None => Kind::Disk,
    }
}

fn mapped_name(place: &Path, name: &str) -> String {
    text(place, "dm/name").unwrap_or_else(|| name.to_owned())
}

/// Whether `name` is `prefix` and a number.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// An attribute without the blanks around it; none if it is missing or empty.
fn text(place: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(place.join(name)).ok()?;
    let text: String = String::from_utf8_lossy(&bytes).chars().take(LONGEST).collect();
    Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned()).filter(|text| !text.is_empty())
}

fn flag(place: &Path, name: &str) -> bool {
    text(place, name).is_some_and(|text| text == "1")
}

/// The serial number of a SCSI disk: vital product data, page 0x80. Four bytes of header, then text.
fn page_80(disk: &Path) -> Option<String> {
    let page = fs::read(disk.join("device/vpd_pg80")).ok()?;
    let serial = String::from_utf8_lossy(page.get(4..)?).trim_matches(|c: char| c <= ' ').to_owned();
    Some(serial.chars().take(LONGEST).collect::<String>()).filter(|serial| !serial.is_empty())
}
