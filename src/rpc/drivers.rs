//! Pools' drivers and hosts' devices between their model and their protobuf form.

use super::objects::{bounded, required};
use super::{Malformed, proto};
use crate::model::{ByteSize, DeviceFacts, Devices, Driver};
use std::path::{Path, PathBuf};

/// Longer texts about a device than this are cut, in bytes.
const LONGEST: usize = 4096;

impl From<&Driver> for proto::Driver {
    fn from(driver: &Driver) -> Self {
        use proto::driver::Driver as Wire;
        let driver = match driver {
            Driver::File { path, limit } => {
                Wire::File(proto::FileDriver { path: text(path), limit: limit.map(ByteSize::as_u64) })
            }
            Driver::Lvm(devices) => Wire::Lvm(devices.into()),
            Driver::LvmThin(devices) => Wire::LvmThin(devices.into()),
        };
        Self { driver: Some(driver) }
    }
}

impl TryFrom<proto::Driver> for Driver {
    type Error = Malformed;

    fn try_from(driver: proto::Driver) -> Result<Self, Malformed> {
        use proto::driver::Driver as Wire;
        let driver = match required(driver.driver, "a pool's driver")? {
            Wire::File(file) => Driver::File { path: file.path.into(), limit: file.limit.map(ByteSize::bytes) },
            Wire::Lvm(devices) => Driver::Lvm(devices.into()),
            Wire::LvmThin(devices) => Driver::LvmThin(devices.into()),
        };
        driver.fault().map_or(Ok(driver), |fault| Err(Malformed(fault)))
    }
}

impl From<&Devices> for proto::LvmDriver {
    fn from(devices: &Devices) -> Self {
        let texts = |paths: &[PathBuf]| paths.iter().map(|path| text(path)).collect();
        let ceiling = devices.ceiling.map(ByteSize::as_u64);
        Self { devices: texts(&devices.devices), wipe: texts(&devices.wipe), ceiling }
    }
}

impl From<proto::LvmDriver> for Devices {
    fn from(message: proto::LvmDriver) -> Self {
        let paths = |texts: Vec<String>| texts.into_iter().map(PathBuf::from).collect();
        let ceiling = message.ceiling.map(ByteSize::bytes);
        Self { devices: paths(message.devices), wipe: paths(message.wipe), ceiling }
    }
}

impl From<&DeviceFacts> for proto::Device {
    fn from(device: &DeviceFacts) -> Self {
        Self {
            path: text(&device.path),
            stable_path: device.stable_path.as_deref().map(text),
            size: device.size.as_u64(),
            model: device.model.clone(),
            serial: device.serial.clone(),
            rotational: device.rotational,
            read_only: device.read_only,
            removable: device.removable,
            kind: device.kind.clone(),
            carries: device.carries.clone(),
            uses: device.uses.clone(),
            unfit: device.unfit.clone(),
        }
    }
}

impl TryFrom<proto::Device> for DeviceFacts {
    type Error = Malformed;

    fn try_from(device: proto::Device) -> Result<Self, Malformed> {
        let short = |text: String| bounded(text, LONGEST, "what is said of a device");
        let some = |text: Option<String>| text.map(short).transpose();
        Ok(Self {
            path: short(device.path)?.into(),
            stable_path: some(device.stable_path)?.map(PathBuf::from),
            size: ByteSize::bytes(device.size),
            model: some(device.model)?,
            serial: some(device.serial)?,
            rotational: device.rotational,
            read_only: device.read_only,
            removable: device.removable,
            kind: short(device.kind)?,
            carries: some(device.carries)?,
            uses: device.uses.into_iter().map(short).collect::<Result<_, _>>()?,
            unfit: some(device.unfit)?,
        })
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_survive_the_wire() {
        let paths = || vec!["/dev/vdb".into(), "/dev/vdc".into()];
        let devices = Devices { devices: paths(), wipe: vec!["/dev/vdc".into()], ceiling: None };
        let bounded = Devices { ceiling: Some(ByteSize::mib(9)), ..devices.clone() };
        let file = Driver::File { path: "/srv/pool".into(), limit: Some(ByteSize::mib(5)) };
        for driver in [file, Driver::Lvm(devices.clone()), Driver::LvmThin(devices), Driver::LvmThin(bounded)] {
            assert_eq!(Driver::try_from(proto::Driver::from(&driver)), Ok(driver));
        }
    }

    #[test]
    fn paths_that_could_lead_elsewhere_and_devices_that_make_no_sense_are_refused() {
        for path in ["", "relative", "/a/../b"] {
            let driver = Driver::File { path: path.into(), limit: None };
            assert!(Driver::try_from(proto::Driver::from(&driver)).is_err(), "{path}");
        }
        for devices in [vec![], vec!["vdb"], vec!["/dev/vdb", "/dev/vdb"]] {
            let devices = Devices { devices: devices.into_iter().map(PathBuf::from).collect(), ..Devices::default() };
            let driver = Driver::Lvm(devices);
            assert!(Driver::try_from(proto::Driver::from(&driver)).is_err(), "{driver:?}");
        }
    }

    #[test]
    fn devices_survive_the_wire_and_novels_do_not() {
        let facts = DeviceFacts {
            path: "/dev/vdb".into(),
            stable_path: Some("/dev/disk/by-id/x".into()),
            size: ByteSize::mib(9),
            model: Some("m".into()),
            serial: None,
            rotational: true,
            read_only: false,
            removable: true,
            kind: "a disk".into(),
            carries: Some("an ext4 file system".into()),
            uses: vec!["mounted at /".into()],
            unfit: Some("in use".into()),
        };
        assert_eq!(DeviceFacts::try_from(proto::Device::from(&facts)), Ok(facts.clone()));
        let novel = DeviceFacts { kind: "x".repeat(LONGEST + 1), ..facts };
        assert!(DeviceFacts::try_from(proto::Device::from(&novel)).is_err());
    }
}
