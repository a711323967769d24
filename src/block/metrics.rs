//! What a block service tells monitoring of itself and of the volumes that it serves.

use super::link::LinkState;
use super::serve::{Block, Stage};
use crate::model::{Operation, OperationFigures, VolumeFigures};
use crate::runtime::metrics::{Distribution, Labels, Page};
use std::time::Duration;

/// Bounds of the published histograms, in microseconds: the usual steps, from what memory takes to what users give up at.
const BOUNDS_US: [u64; 21] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 25_000_000, 60_000_000,
];

pub fn fill(block: &Block, page: &mut Page) {
    let stage = block.stage();
    let connected = matches!(&stage, Stage::Member(active) if matches!(active.link(), LinkState::Connected(_)));
    page.gauge(
        "block_connected",
        "1 if this block service has a session with a manager",
        [(vec![], f64::from(u8::from(connected)))],
    );
    let expiry = block.keyring.expires_at().map(|at| (vec![], at.as_millis() as f64 / 1000.0));
    page.gauge(
        "block_certificate_expiry_timestamp_seconds",
        "When this service's certificate expires, in seconds since 1970",
        expiry,
    );
    if let Stage::Member(active) = stage {
        fill_volumes(&active.worker.figures(), page);
    }
}

fn fill_volumes(volumes: &[VolumeFigures], page: &mut Page) {
    let each = |value: fn(&OperationFigures) -> u64| {
        volumes.iter().flat_map(move |volume| {
            Operation::ALL.map(|operation| (labels(volume, operation), value(volume.figures.of(operation))))
        })
    };
    page.counter(
        "volume_operations",
        "Operations that clients of a volume asked for and that have ended, well or not",
        each(OperationFigures::operations),
    );
    page.counter(
        "volume_bytes",
        "Bytes that operations on a volume were about, if they ended well",
        each(|seen| seen.bytes),
    );
    page.counter("volume_errors", "Operations on a volume that did not end well", each(|seen| seen.errors));
    let seen = volumes.iter().flat_map(|volume| Operation::ALL.map(|operation| (volume, operation)));
    page.histogram(
        "volume_operation_duration_seconds",
        "Time from an operation's header to its answer, waiting for limits included",
        seen.map(|(volume, operation)| (labels(volume, operation), distribution(volume.figures.of(operation)))),
    );
    let total = |value: fn(&VolumeFigures) -> u64| volumes.iter().map(move |volume| (label(volume), value(volume)));
    page.counter(
        "volume_requests_refused",
        "Requests to a volume that were declined before anything was done",
        total(|volume| volume.figures.refused),
    );
    page.counter(
        "volume_requests_throttled",
        "Requests to a volume that had to wait for its limits",
        total(|volume| volume.figures.throttled),
    );
    let now = |value: fn(&VolumeFigures) -> u64| volumes.iter().map(move |it| (label(it), value(it) as f64));
    page.gauge("volume_queue_depth", "Requests to a volume that wait for an answer", now(|it| it.figures.in_flight));
    page.gauge("volume_connections", "Connections of clients to a volume", now(|it| it.figures.connections));
}

fn label(volume: &VolumeFigures) -> Labels {
    vec![("volume", volume.name.to_string())]
}

fn labels(volume: &VolumeFigures, operation: Operation) -> Labels {
    vec![("volume", volume.name.to_string()), ("op", operation.as_str().to_owned())]
}

fn distribution(seen: &OperationFigures) -> Distribution {
    let within = BOUNDS_US.map(|bound| (bound as f64 / 1e6, seen.latency.within(Duration::from_micros(bound))));
    Distribution { count: seen.operations(), sum: seen.time.as_secs_f64(), within: within.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Latency;

    #[test]
    fn fine_buckets_are_folded_into_the_usual_ones_and_none_is_lost() {
        let nanos = [(64, 1), (10_000, 2), (10_001, 4), (1 << 36, 8)];
        let time = Duration::from_millis(1500);
        let seen = OperationFigures { latency: Latency::new(nanos), time, ..OperationFigures::default() };
        let Distribution { count, sum, within } = distribution(&seen);
        assert_eq!((count, sum), (15, 1.5));
        assert_eq!((within[0], within[1], within[20]), ((0.00001, 3), (0.000025, 7), (60.0, 7)));
    }
}
