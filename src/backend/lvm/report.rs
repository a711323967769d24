//! What LVM reports, as types. Pure: JSON in, rows out.
//!
//! LVM's reports are JSON whose values are all strings, sizes among them; they are asked for in bytes. A report that
//! lacks a field, or holds something in it that does not belong there, is an error: guessing would cost data.

use super::tags::{GroupTags, SnapshotTags, TagsError, VolumeTags};
use crate::model::ByteSize;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The fields that [`parse`] needs.
pub const GROUP_FIELDS: &str = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_tags";
pub const PV_FIELDS: &str = "pv_name,pv_uuid,vg_name,pv_size,dev_size,pv_missing,pv_mda_count,pv_major,pv_minor";
pub const LV_FIELDS: &str = "lv_name,vg_name,lv_size,lv_metadata_size,pool_lv,origin,data_percent,metadata_percent,\
lv_when_full,lv_health_status,lv_snapshot_invalid,lv_active,lv_tags";
/// Of the segments of logical volumes; a report on these may have them among the fields above as well.
pub const SEGMENT_FIELDS: &str = "lv_name,vg_name,segtype,chunk_size";

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("it is not a report: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("'{value}' is no {field}")]
    Value { field: &'static str, value: String },
}

/// All that LVM sees on the devices that it was shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    pub groups: Vec<Group>,
    pub pvs: Vec<Pv>,
    pub lvs: Vec<Lv>,
}

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub uuid: String,
    pub size: ByteSize,
    pub free: ByteSize,
    /// In bytes; never zero.
    pub extent: u64,
    /// How many of its physical volumes are on none of the devices.
    pub missing: u64,
    pub tags: Vec<String>,
}

/// A physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pv {
    /// By the name that LVM likes best; none if it is missing.
    pub device: Option<PathBuf>,
    /// Major and minor; unknown if it is missing or was not asked for.
    pub number: Option<(u64, u64)>,
    pub uuid: String,
    pub group: Option<String>,
    pub size: ByteSize,
    /// Of its device; unknown if it is missing or was not asked for.
    pub device_size: Option<ByteSize>,
    /// How many of its metadata areas can be read; unknown if it was not asked for.
    pub areas: Option<u64>,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lv {
    pub name: String,
    /// A part of another one.
    pub hidden: bool,
    pub group: String,
    /// LVM's word for how it is kept: `linear`, `thin`, `thin-pool`.
    pub segments: String,
    pub size: ByteSize,
    /// Of a thin pool.
    pub metadata_size: Option<ByteSize>,
    /// The thin pool that it is in.
    pub pool: Option<String>,
    /// What it is a snapshot of.
    pub origin: Option<String>,
    /// It is a classic snapshot that had no room any more for what its origin was before.
    pub overflowed: bool,
    /// How full it is: of a thin pool, and of a classic snapshot's room.
    pub data: Option<Percent>,
    pub metadata: Option<Percent>,
    /// What a thin pool does when it is full: `queue` or `error`.
    pub when_full: Option<String>,
    /// LVM's word for what ails it; none if nothing does.
    pub ailment: Option<String>,
    pub active: bool,
    pub tags: Vec<String>,
    /// Of a thin pool, in bytes.
    pub chunk: u64,
}

/// Hundredths of a percent: 0 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    pub const FULL: Self = Self(10_000);

    /// Whole hundredths, rounded down.
    pub fn whole(self) -> u64 {
        u64::from(self.0) / 100
    }

    /// So much of `whole`, rounded up: LVM prints 0.00 and 100.00 only where they are meant.
    pub fn of(self, whole: ByteSize) -> ByteSize {
        let part = (u128::from(whole.as_u64()) * u128::from(self.0)).div_ceil(10_000);
        ByteSize::bytes(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

impl Reported {
    /// The groups of that name: two may share it.
    pub fn groups_called<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r Group> {
        self.groups.iter().filter(move |group| group.name == name)
    }

    /// The physical volume on a device, whatever LVM calls it.
    pub fn pv_on(&self, path: &Path, number: (u64, u64)) -> Option<&Pv> {
        let is_it = |pv: &&Pv| match pv.number {
            Some(own) => own == number,
            None => pv.device.as_deref() == Some(path),
        };
        self.pvs.iter().find(is_it)
    }

    /// The logical volume of that name in a group.
    pub fn lv(&self, group: &str, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.group == group && lv.name == name)
    }

    pub fn lvs_of<'r>(&'r self, group: &'r str) -> impl Iterator<Item = &'r Lv> {
        self.lvs.iter().filter(move |lv| lv.group == group)
    }
}

impl Group {
    pub fn decoded(&self) -> Result<Option<GroupTags>, TagsError> {
        GroupTags::decode(&self.tags)
    }
}

impl Lv {
    pub fn decoded(&self) -> Result<Option<VolumeTags>, TagsError> {
        VolumeTags::decode(&self.tags)
    }

    pub fn decoded_snapshot(&self) -> Result<Option<SnapshotTags>, TagsError> {
        SnapshotTags::decode(&self.tags)
    }
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    #[serde(default)]
    vg: Vec<RawGroup>,
    #[serde(default)]
    pv: Vec<RawPv>,
    #[serde(default)]
    lv: Vec<RawLv>,
    #[serde(default)]
    seg: Vec<RawSegment>,
}

#[derive(Deserialize)]
struct RawSegment {
    lv_name: String,
    vg_name: String,
    segtype: String,
    chunk_size: String,
}

#[derive(Deserialize)]
struct RawGroup {
    vg_name: String,
    vg_uuid: String,
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    vg_missing_pv_count: String,
    vg_tags: String,
}

#[derive(Deserialize)]
struct RawPv {
    pv_name: String,
    pv_uuid: String,
    vg_name: String,
    pv_size: String,
    dev_size: Option<String>,
    pv_missing: String,
    pv_mda_count: Option<String>,
    pv_major: Option<String>,
    pv_minor: Option<String>,
}

#[derive(Deserialize)]
struct RawLv {
    lv_name: String,
    vg_name: String,
    segtype: Option<String>,
    lv_size: String,
    lv_metadata_size: String,
    pool_lv: String,
    origin: String,
    data_percent: String,
    metadata_percent: String,
    lv_when_full: String,
    lv_health_status: String,
    lv_snapshot_invalid: Option<String>,
    lv_active: String,
    lv_tags: String,
    chunk_size: Option<String>,
}

/// Reads any of LVM's reports that has the fields above; sections and fields of others are passed over.
pub fn parse(json: &[u8]) -> Result<Reported, ReportError> {
    let document: Document = serde_json::from_slice(json)?;
    let mut reported = Reported::default();
    for section in document.report {
        for row in section.vg {
            reported.groups.push(row.typed()?);
        }
        for row in section.pv {
            reported.pvs.push(row.typed()?);
        }
        for row in section.lv {
            let segment = section.seg.iter().find(|seg| seg.lv_name == row.lv_name && seg.vg_name == row.vg_name);
            reported.lvs.push(row.typed(segment)?);
        }
    }
    Ok(reported)
}

impl RawGroup {
    fn typed(self) -> Result<Group, ReportError> {
        let extent = number("vg_extent_size", &self.vg_extent_size)?;
        if extent == 0 {
            return Err(odd("vg_extent_size", &self.vg_extent_size));
        }
        Ok(Group {
            name: named("vg_name", self.vg_name)?,
            uuid: self.vg_uuid,
            size: size("vg_size", &self.vg_size)?,
            free: size("vg_free", &self.vg_free)?,
            extent,
            missing: number("vg_missing_pv_count", &self.vg_missing_pv_count)?,
            tags: list(&self.vg_tags),
        })
    }
}

impl RawPv {
    fn typed(self) -> Result<Pv, ReportError> {
        let device = match (self.pv_missing.as_str(), self.pv_name.as_str()) {
            ("missing", _) | (_, "[unknown]") => None,
            ("", path) if path.starts_with('/') => Some(PathBuf::from(path)),
            ("", path) => return Err(odd("pv_name", path)),
            (word, _) => return Err(odd("pv_missing", word)),
        };
        let half = |field, text: Option<String>| {
            text.filter(|_| device.is_some()).map(|text| number(field, &text)).transpose()
        };
        let number_of = half("pv_major", self.pv_major)?.zip(half("pv_minor", self.pv_minor)?);
        let device_size = self.dev_size.as_deref().map(|text| size("dev_size", text)).transpose()?;
        Ok(Pv {
            number: number_of,
            uuid: self.pv_uuid,
            group: filled(self.vg_name),
            size: size("pv_size", &self.pv_size)?,
            device_size: device_size.filter(|_| device.is_some()),
            areas: self.pv_mda_count.as_deref().map(|text| number("pv_mda_count", text)).transpose()?,
            device,
        })
    }
}

impl RawLv {
    fn typed(self, segment: Option<&RawSegment>) -> Result<Lv, ReportError> {
        let segments = self.segtype.or_else(|| segment.map(|row| row.segtype.clone()));
        let chunk = self.chunk_size.or_else(|| segment.map(|row| row.chunk_size.clone()));
        let shown = self.lv_name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).map(str::to_owned);
        let active = match self.lv_active.as_str() {
            "" => false,
            "active" => true,
            word => return Err(odd("lv_active", word)),
        };
        Ok(Lv {
            hidden: shown.is_some(),
            name: named("lv_name", shown.unwrap_or(self.lv_name))?,
            group: named("vg_name", self.vg_name)?,
            segments: segments.ok_or_else(|| odd("segtype", "nothing"))?,
            size: size("lv_size", &self.lv_size)?,
            metadata_size: filled(self.lv_metadata_size).map(|text| size("lv_metadata_size", &text)).transpose()?,
            pool: filled(self.pool_lv),
            origin: filled(self.origin),
            // What is not active cannot be asked, and is said to be unknown.
            overflowed: self.lv_snapshot_invalid.is_some_and(|word| word.contains("invalid")),
            data: percent("data_percent", &self.data_percent)?,
            metadata: percent("metadata_percent", &self.metadata_percent)?,
            when_full: filled(self.lv_when_full),
            ailment: filled(self.lv_health_status),
            active,
            tags: list(&self.lv_tags),
            chunk: number("chunk_size", &chunk.unwrap_or_default())?,
        })
    }
}

fn odd(field: &'static str, value: &str) -> ReportError {
    ReportError::Value { field, value: value.chars().take(80).collect() }
}

fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A name that may go into a path and onto a command line.
fn named(field: &'static str, text: String) -> Result<String, ReportError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    let good = !text.is_empty() && !text.starts_with(['-', '.']) && text.chars().all(allowed);
    if good { Ok(text) } else { Err(odd(field, &text)) }
}

fn number(field: &'static str, text: &str) -> Result<u64, ReportError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| odd(field, text))
}

fn size(field: &'static str, text: &str) -> Result<ByteSize, ReportError> {
    let size = ByteSize::bytes(number(field, text)?);
    if size > ByteSize::MAX { Err(odd(field, text)) } else { Ok(size) }
}

/// `12.40`; nothing where there is nothing to measure.
fn percent(field: &'static str, text: &str) -> Result<Option<Percent>, ReportError> {
    if text.is_empty() {
        return Ok(None);
    }
    let hundredths = || {
        let (whole, part) = text.split_once('.')?;
        let digits = part.len() == 2 && [whole, part].iter().all(|half| half.bytes().all(|byte| byte.is_ascii_digit()));
        let sum = whole.parse::<u16>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)?;
        (digits && sum <= Percent::FULL.0).then_some(Percent(sum))
    };
    hundredths().map(Some).ok_or_else(|| odd(field, text))
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/lvm/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn parsed(name: &str) -> Reported {
        parse(&fixture(name)).unwrap()
    }

    #[test]
    fn a_group_with_a_missing_device_says_so_in_both_reports() {
        let groups = parsed("vgs-missing").groups;
        assert_eq!((groups[0].missing, groups[0].extent), (1, 4 << 20));
        assert_eq!(groups[0].tags, ["symphony.cluster=c1"]);
        let pvs = parsed("pvs-missing").pvs;
        assert_eq!(pvs[0].device.as_deref(), Some(std::path::Path::new("/dev/vda")));
        assert_eq!((&pvs[1].device, pvs[1].group.as_deref()), (&None, Some("one")));
        assert_eq!(parsed("vgs").groups[0].missing, 0);
    }

    #[test]
    fn a_device_is_known_by_its_number_whatever_lvm_calls_it() {
        let pvs = String::from_utf8(fixture("pvs")).unwrap().replace(
            r#""pv_name":"/dev/vda""#,
            r#""pv_name":"/dev/mapper/multipath", "pv_major":"252", "pv_minor":"3""#,
        );
        let reported = parse(pvs.as_bytes()).unwrap();
        assert!(reported.pv_on(Path::new("/dev/dm-3"), (252, 3)).is_some());
        assert!(reported.pv_on(Path::new("/dev/mapper/multipath"), (252, 4)).is_none());
        assert!(reported.pv_on(Path::new("/dev/vdb"), (254, 16)).is_some(), "by its name, where there is no number");
    }

    #[test]
    fn two_groups_of_one_name_are_two_rows() {
        assert_eq!(parsed("vgs-twins").groups_called("twin").count(), 2);
    }

    #[test]
    fn a_thin_pool_its_parts_and_its_volumes_are_told_apart() {
        let reported = parsed("lvs-thin");
        let pool = reported.lv("one", "pool").unwrap();
        assert_eq!(
            (pool.segments.as_str(), pool.when_full.as_deref(), pool.chunk),
            ("thin-pool", Some("error"), 65536)
        );
        assert_eq!(pool.metadata_size, Some(ByteSize::mib(4)));
        assert!(reported.lv("one", "pool_tdata").unwrap().hidden && !pool.hidden);
        let thin = reported.lv("one", "thin").unwrap();
        assert_eq!((thin.pool.as_deref(), thin.data, thin.ailment.as_deref()), (Some("pool"), Some(Percent(0)), None));
        assert_eq!(reported.lv("one", "snap").unwrap().origin.as_deref(), Some("thin"));
        assert!(reported.lv("one", "config").unwrap().data.is_none());
    }

    #[test]
    fn a_full_pool_is_full_and_ails() {
        let reported = parsed("lvs-thin-full");
        let pool = reported.lv("one", "pool").unwrap();
        assert_eq!((pool.data, pool.ailment.as_deref()), (Some(Percent::FULL), Some("out_of_data")));
        assert_eq!(pool.data.unwrap().of(pool.size), pool.size);
        let after = parsed("lvs-thin-after");
        let used = after.lv("one", "pool").unwrap().data.unwrap().of(ByteSize::mib(96));
        assert!(used >= ByteSize::bytes(65536) && used < ByteSize::mib(1), "{used}");
    }

    #[test]
    fn an_empty_report_is_nothing() {
        assert_eq!(parsed("lvs-nothing"), Reported::default());
        assert_eq!(parse(br#"{"report":[]}"#).unwrap(), Reported::default());
    }

    #[test]
    fn odd_reports_are_errors_that_name_what_is_odd() {
        let good = String::from_utf8(fixture("lvs-thin")).unwrap();
        for (old, new) in [
            (r#""lv_size":"16777216""#, r#""lv_size":"16777216B""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"16.00m""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"-1""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"+1""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"99999999999999999999""#),
            (r#""lv_size":"16777216""#, r#""lv_size":"18446744073709551615""#),
            (r#""lv_size":"16777216""#, r#""lv_size":16777216"#),
            (r#""lv_name":"config""#, r#""lv_name":"../config""#),
            (r#""lv_name":"config""#, r#""lv_name":"-f""#),
            (r#""lv_name":"config""#, r#""lv_name":"""#),
            (r#""lv_name":"config","#, ""),
            (r#""data_percent":"0.00""#, r#""data_percent":"100.01""#),
            (r#""data_percent":"0.00""#, r#""data_percent":"nan""#),
            (r#""data_percent":"0.00""#, r#""data_percent":"1,5""#),
            (r#""lv_active":"active""#, r#""lv_active":"perhaps""#),
        ] {
            let changed = good.replacen(old, new, 1);
            assert_ne!(changed, good, "{old} is there");
            assert!(parse(changed.as_bytes()).is_err(), "{new}");
        }
        for text in
            ["", "[]", "{}", r#"{"report":{}}"#, "  WARNING: something\n{\"report\":[]}", "{\"report\":[]} more"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let pvs = String::from_utf8(fixture("pvs")).unwrap();
        assert!(parse(pvs.replace("\"/dev/vda\"", "\"vda\"").as_bytes()).is_err());
        let vgs = String::from_utf8(fixture("vgs")).unwrap();
        assert!(parse(vgs.replace("\"4194304\"", "\"0\"").as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either_is_fine = parse(&bytes).is_ok();
        }

        #[test]
        fn a_report_that_was_cut_or_changed_is_parsed_or_refused_without_a_panic(
            which in 0..4usize, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
        ) {
            let mut bytes = fixture(["vgs", "pvs", "lvs", "lvs-thin"][which]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            let _either_is_fine = parse(&bytes).is_ok();
        }

        #[test]
        fn a_part_is_never_more_than_the_whole(hundredths in 0..=10_000u16, whole in 0..=i64::MAX as u64) {
            let part = Percent(hundredths).of(ByteSize::bytes(whole));
            prop_assert!(part.as_u64() <= whole && (part.as_u64() > 0 || hundredths == 0 || whole == 0));
        }
    }
}
