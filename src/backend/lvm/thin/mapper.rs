//! Device-mapper, as far as thin pools are concerned: what their devices are called, and what is said of them.

use crate::host::device_mapper::{DeviceMapper, Target};
use std::io;

/// Whatever answers for device-mapper: the kernel, or a model of it. Each call is for a device's name.
pub trait Mapper: Send + Sync + 'static {
    fn table(&self, name: &str) -> io::Result<Vec<Target>>;
    /// Waits for no disk.
    fn status(&self, name: &str) -> io::Result<Vec<Target>>;
    fn message(&self, name: &str, message: &str) -> io::Result<()>;
}

impl Mapper for DeviceMapper {
    fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        DeviceMapper::table(self, name)
    }

    fn status(&self, name: &str) -> io::Result<Vec<Target>> {
        DeviceMapper::status(self, name)
    }

    fn message(&self, name: &str, message: &str) -> io::Result<()> {
        DeviceMapper::message(self, name, message)
    }
}

/// What device-mapper calls a logical volume: hyphens doubled, one between the group and it.
pub fn name_of(group: &str, lv: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), lv.replace('-', "--"))
}

/// How a thin pool is. In metadata blocks of 4 KiB, and chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    pub metadata: (u64, u64),
    pub data: (u64, u64),
    /// The block that a metadata snapshot begins with, which somebody holds.
    pub held: Option<u64>,
    /// Its metadata can be changed.
    pub writable: bool,
}

/// What a thin pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolTable {
    /// The number of the device that has its metadata.
    pub metadata: (u64, u64),
    /// In bytes.
    pub chunk: u64,
}

/// The device that is the thin pool `lv`, and its targets: below the volume's own name there may be the pool itself, or one
/// that hides it.
pub fn find_pool(
    group: &str,
    lv: &str,
    ask: impl Fn(&str) -> io::Result<Vec<Target>>,
) -> io::Result<(String, Vec<Target>)> {
    let plain = name_of(group, lv);
    let hidden = format!("{plain}-tpool");
    match ask(&hidden) {
        Ok(targets) => Ok((hidden, targets)),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => ask(&plain).map(|targets| (plain, targets)),
        Err(error) => Err(error),
    }
}

/// Reads the status of a thin pool; `None` for anything else, one that has failed among it.
pub fn pool_status(targets: &[Target]) -> Option<PoolStatus> {
    let words = only(targets, "thin-pool")?;
    let [_transaction, metadata, data, held, mode, ..] = words else { return None };
    let held = match held.as_str() {
        "-" => None,
        block => Some(block.parse().ok()?),
    };
    let writable = matches!(mode.as_str(), "rw" | "out_of_data_space");
    Some(PoolStatus { metadata: fraction(metadata)?, data: fraction(data)?, held, writable })
}

/// Reads the table of a thin pool; `None` for anything else.
pub fn pool_table(targets: &[Target]) -> Option<PoolTable> {
    let [metadata, _data, sectors, ..] = only(targets, "thin-pool")? else { return None };
    let (major, minor) = metadata.split_once(':')?;
    let chunk = sectors.parse::<u64>().ok()?.checked_mul(512).filter(|chunk| *chunk > 0)?;
    Some(PoolTable { metadata: (major.parse().ok()?, minor.parse().ok()?), chunk })
}

/// Reads from the table of a thin volume which of its pool's devices it is; `None` for anything else, and for one that shows
/// another volume's bytes where it has none of its own.
pub fn device_of(targets: &[Target]) -> Option<u64> {
    match only(targets, "thin")? {
        [_pool, device] => device.parse().ok(),
        _ => None,
    }
}

fn only<'t>(targets: &'t [Target], kind: &str) -> Option<&'t [String]> {
    match targets {
        [target] if target.kind == kind => Some(&target.words),
        _ => None,
    }
}

fn fraction(words: &str) -> Option<(u64, u64)> {
    let (part, whole) = words.split_once('/')?;
    Some((part.parse().ok()?, whole.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: &str, line: &str) -> Vec<Target> {
        vec![Target { kind: kind.to_owned(), words: line.split(' ').map(str::to_owned).collect() }]
    }

    #[test]
    fn a_pool_says_how_full_it_is_and_who_holds_its_metadata() {
        let seen =
            pool_status(&target("thin-pool", "3 141/1024 33/4800 - rw discard_passdown error_if_no_space - 1024"));
        let healthy = PoolStatus { metadata: (141, 1024), data: (33, 4800), held: None, writable: true };
        assert_eq!(seen, Some(healthy));
        let held = pool_status(&target("thin-pool", "3 141/1024 33/4800 77 ro discard_passdown error_if_no_space -"));
        assert_eq!(held, Some(PoolStatus { held: Some(77), writable: false, ..healthy }));
        for odd in ["Fail", "Error", "3 141 33/4800 - rw", "3 a/b 33/4800 - rw", "3 1/2 3/4 x rw", ""] {
            assert_eq!(pool_status(&target("thin-pool", odd)), None, "{odd}");
        }
        assert_eq!(pool_status(&target("linear", "3 141/1024 33/4800 - rw")), None);
    }

    #[test]
    fn tables_say_where_the_metadata_are_and_which_device_a_volume_is() {
        let table = pool_table(&target("thin-pool", "253:0 253:1 128 0 1 error_if_no_space"));
        assert_eq!(table, Some(PoolTable { metadata: (253, 0), chunk: 64 << 10 }));
        assert_eq!(pool_table(&target("thin-pool", "253:0 253:1 0 0")), None);
        assert_eq!(device_of(&target("thin", "253:2 5")), Some(5));
        assert_eq!(device_of(&target("thin", "253:2 5 253:9")), None, "it shows another's bytes");
        assert_eq!(device_of(&target("linear", "253:2 5")), None);
        assert_eq!(device_of(&[target("thin", "253:2 5"), target("thin", "253:2 5")].concat()), None);
    }

    #[test]
    fn a_pool_is_found_behind_the_one_that_hides_it_and_without_it() {
        assert_eq!(name_of("symphony-1", "thin-pool"), "symphony--1-thin--pool");
        let absent = || io::Error::from_raw_os_error(nix::libc::ENXIO);
        let ask = |there: &'static str| move |name: &str| if name == there { Ok(Vec::new()) } else { Err(absent()) };
        assert_eq!(find_pool("g", "p", ask("g-p-tpool")).unwrap().0, "g-p-tpool");
        assert_eq!(find_pool("g", "p", ask("g-p")).unwrap().0, "g-p");
        assert!(find_pool("g", "p", ask("x")).is_err());
    }
}
