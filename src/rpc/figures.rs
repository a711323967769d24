//! Limits and figures between their model and their protobuf form.

use super::objects::{enumerated, number};
use super::{Malformed, proto};
use crate::model::*;
use std::time::Duration;

pub(super) fn limits_into(limits: &Limits) -> Option<proto::Limits> {
    (*limits != Limits::NONE).then(|| proto::Limits {
        iops: limits.iops,
        bandwidth: limits.bandwidth.map(ByteSize::as_u64),
        burst_ms: limits.burst_ms,
    })
}

pub(super) fn limits_from(message: Option<proto::Limits>) -> Result<Limits, Malformed> {
    let Some(proto::Limits { iops, bandwidth, burst_ms }) = message else { return Ok(Limits::NONE) };
    let limits = Limits { iops, bandwidth: bandwidth.map(ByteSize::bytes), burst_ms };
    limits.fault().map_or(Ok(limits), |fault| Err(Malformed(fault)))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl From<&VolumeFigures> for proto::VolumeFigures {
    fn from(volume: &VolumeFigures) -> Self {
        let figures = &volume.figures;
        let operations = Operation::ALL.into_iter().zip(&figures.operations);
        Self {
            id: volume.id.to_string(),
            name: volume.name.to_string(),
            limits: limits_into(&volume.limits),
            elapsed_ns: nanos(figures.elapsed),
            operations: operations.map(|(operation, seen)| operation_into(operation, seen)).collect(),
            refused: figures.refused,
            throttled: figures.throttled,
            in_flight: figures.in_flight,
            connections: figures.connections,
        }
    }
}

fn operation_into(operation: Operation, seen: &OperationFigures) -> proto::OperationFigures {
    proto::OperationFigures {
        operation: number::<proto::Operation>(operation),
        bounds_ns: seen.latency.buckets().iter().map(|(bound, _)| *bound).collect(),
        counts: seen.latency.buckets().iter().map(|(_, count)| *count).collect(),
        time_ns: nanos(seen.time),
        bytes: seen.bytes,
        errors: seen.errors,
    }
}

impl TryFrom<proto::VolumeFigures> for VolumeFigures {
    type Error = Malformed;

    fn try_from(volume: proto::VolumeFigures) -> Result<Self, Malformed> {
        let mut figures = Figures {
            elapsed: Duration::from_nanos(volume.elapsed_ns),
            refused: volume.refused,
            throttled: volume.throttled,
            in_flight: volume.in_flight,
            connections: volume.connections,
            ..Figures::default()
        };
        for message in volume.operations {
            let operation: Operation = enumerated::<proto::Operation, _>(message.operation)?;
            if message.bounds_ns.len() != message.counts.len() {
                return Err(Malformed(format!("the figures of {}s have bounds without counts", operation.as_str())));
            }
            if let Some(place) = figures.operations.get_mut(operation as usize) {
                *place = OperationFigures {
                    latency: Latency::new(message.bounds_ns.into_iter().zip(message.counts)),
                    time: Duration::from_nanos(message.time_ns),
                    bytes: message.bytes,
                    errors: message.errors,
                };
            }
        }
        let (id, name) = (volume.id.parse()?, volume.name.parse()?);
        Ok(Self { id, name, limits: limits_from(volume.limits)?, figures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> VolumeFigures {
        let mut figures = Figures { elapsed: Duration::from_secs(9), refused: 1, throttled: 2, ..Figures::default() };
        (figures.in_flight, figures.connections) = (3, 4);
        for (place, seen) in figures.operations.iter_mut().enumerate() {
            let place = place as u64;
            let (latency, time) = (Latency::new([(64, place), (1 << 36, 2)]), Duration::from_nanos(place));
            *seen = OperationFigures { latency, time, bytes: 10 + place, errors: 20 + place };
        }
        let limits = Limits { iops: Some(7), ..Limits::NONE };
        VolumeFigures { id: VolumeId::from_bytes([1; 16]), name: "v".parse().unwrap(), limits, figures }
    }

    #[test]
    fn figures_survive_the_wire() {
        let figures = figures();
        assert_eq!(VolumeFigures::try_from(proto::VolumeFigures::from(&figures)), Ok(figures));
    }

    #[test]
    fn figures_that_cannot_be_are_refused() {
        let whole = proto::VolumeFigures::from(&figures());
        let mut uneven = whole.clone();
        uneven.operations[0].counts.push(1);
        let mut unknown = whole.clone();
        unknown.operations[0].operation = 77;
        let absurd =
            proto::VolumeFigures { limits: Some(proto::Limits { iops: Some(0), ..Default::default() }), ..whole };
        for broken in [uneven, unknown, absurd, proto::VolumeFigures::default()] {
            assert!(VolumeFigures::try_from(broken).is_err());
        }
    }
}
