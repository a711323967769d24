//! The disks of this host, for whoever may look: what they are, what they carry, who uses them.

use super::face::Face;
use super::worker::chain;
use crate::host::devices::{Device, Refused, judge};
use crate::model::DeviceFacts;
use crate::rpc::proto;
use proto::devices_server::Devices;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Devices for Face {
    async fn list_devices(
        &self,
        _request: Request<proto::ListDevicesRequest>,
    ) -> Result<Response<proto::ListDevicesResponse>, Status> {
        let scanner = self.0.scanner.clone();
        // A disk may take its time, so a thread of its own waits for it, and not for ever.
        let scanned = tokio::task::spawn_blocking(move || scanner.scan()).await;
        let scanned = scanned.map_err(|error| Status::internal(format!("the devices could not be listed: {error}")))?;
        let devices = scanned.map_err(|error| Status::unavailable(chain(&error)))?;
        let devices = devices.iter().map(|device| (&facts(device)).into()).collect();
        Ok(Response::new(proto::ListDevicesResponse { devices }))
    }
}

fn facts(device: &Device) -> DeviceFacts {
    let unfit = match judge(device, true) {
        // That it is used is said beside it.
        Ok(()) | Err(Refused::InUse { .. }) => None,
        Err(refused) => Some(refused.to_string()),
    };
    DeviceFacts {
        path: device.path.clone(),
        stable_path: device.stable_path.clone(),
        size: device.size,
        model: device.model.clone(),
        serial: device.serial.clone(),
        rotational: device.rotational,
        read_only: device.read_only,
        removable: device.removable,
        kind: device.kind.to_string(),
        carries: device.carried(),
        uses: device.claims.iter().map(ToString::to_string).collect(),
        unfit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::devices::{Carries, Claim, Kind, Scanner};
    use crate::model::ByteSize;
    use std::path::PathBuf;

    #[test]
    fn a_device_in_use_says_by_whom_and_one_that_is_unfit_says_why() {
        let free = Device {
            name: "vdb".into(),
            path: "/dev/vdb".into(),
            stable_path: None,
            number: (254, 16),
            size: ByteSize::mib(512),
            model: None,
            serial: None,
            rotational: false,
            read_only: false,
            removable: false,
            kind: Kind::Disk,
            carries: Carries::Known(Vec::new()),
            claims: Vec::new(),
        };
        let told = facts(&free);
        assert!(told.carries.is_none() && told.uses.is_empty() && told.unfit.is_none(), "{told:?}");
        let mounted = Device { claims: vec![Claim::Mounted { at: PathBuf::from("/srv") }], ..free.clone() };
        let told = facts(&mounted);
        assert_eq!((told.uses, told.unfit), (vec!["mounted at /srv".to_owned()], None));
        let small = Device { size: ByteSize::mib(1), ..free };
        assert!(facts(&small).unfit.is_some_and(|why| why.contains("too small")));
    }

    #[test]
    fn the_devices_of_this_very_host_can_be_told() {
        let devices = Scanner::default().scan().unwrap();
        assert!(devices.iter().map(facts).all(|told| told.path.is_absolute() && !told.kind.is_empty()));
    }
}
