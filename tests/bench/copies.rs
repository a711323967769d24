//! What snapshots and copies cost as volumes grow, and what first writes cost beside second ones, where blocks are shared.
//!
//! Volumes of all sizes hold the same data, in pieces spread evenly over their whole length: what is compared is the size
//! alone. A snapshot is asked for and waited for, with its freeze of the export; a copy of it until clients can reach it.

use super::figures::{Figures, percentile};
use super::processes::{Cloud, Control, wait_ready};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use symphony::model::Driver;
use symphony::nbd::{Client, Dialled, Uri};
use symphony::rpc::proto::{self, create_snapshots_request::Wanted, create_volume_request::Source};
use tonic::Code;

/// Of volumes, with what people call them.
const SIZES: [(u64, &str); 4] =
    [(64 << 20, "64 MiB"), (1 << 30, "1 GiB"), (16 << 30, "16 GiB"), (128 << 30, "128 GiB")];
const PIECES: u64 = 128;
const PIECE: usize = 256 << 10;
/// As many bytes as thin pools of this size allocate at once.
const WRITE: usize = 64 << 10;
const WRITES: u64 = 256;

/// Where copies are made.
pub struct Ground {
    /// What the figures call it.
    pub label: &'static str,
    pub driver: Driver,
    /// Copies of each size.
    pub rounds: usize,
}

pub async fn measure(cloud: &Cloud, ground: &Ground, figures: &mut Figures) -> Result<()> {
    let Ground { label, driver, .. } = ground;
    let mut control = cloud.control().await?;
    // Volumes are larger than what carries them.
    let rules = proto::PoolRuleChanges { overcommit_percent: Some(10_000), ..proto::PoolRuleChanges::default() };
    let request = proto::CreatePoolRequest {
        name: "copies".into(),
        service: String::new(),
        driver: Some(driver.into()),
        rules: Some(rules),
    };
    control.create_pool(request).await?;
    wait_ready(&mut control, proto::Kind::Pool, "copies").await?;
    let mut all = Vec::new();
    for (size, text) in SIZES {
        let Samples { mut snapshots, mut copies } = copy(&mut control, ground.rounds, size).await?;
        for (what, samples) in [("snapshot", &mut snapshots), ("copy of it, exported", &mut copies)] {
            let (p50, max) = (percentile(samples, 0.5), percentile(samples, 1.0));
            figures.add(format!("{label}: {what}, {text}, p50 of {}", ground.rounds), p50, "ms", None);
            figures.add(format!("{label}: {what}, {text}, slowest"), max, "ms", None);
        }
        all.push((percentile(&mut snapshots, 0.5), percentile(&mut copies, 0.5)));
    }
    if let (Some(least), Some(most)) = (all.first(), all.last()) {
        let flat = Some("flat: about 1");
        figures.add(format!("{label}:   snapshot, 128 GiB to 64 MiB"), most.0 / least.0, "x", flat);
        figures.add(format!("{label}:   copy of it, 128 GiB to 64 MiB"), most.1 / least.1, "x", flat);
    }
    first_writes(&mut control, label, figures).await
}

struct Samples {
    snapshots: Vec<Duration>,
    copies: Vec<Duration>,
}

/// Each snapshot and copy is removed before the next, so that every one finds the same.
async fn copy(control: &mut Control, rounds: usize, size: u64) -> Result<Samples> {
    let name = format!("v-{size}");
    let mut client = create(control, &name, size, None).await?;
    let bytes: Vec<u8> = (0..PIECE).map(|place| (place % 251) as u8 + 1).collect();
    for piece in 0..PIECES {
        client.write(piece * (size / PIECES), &bytes, false)?;
    }
    client.flush()?;
    let mut samples = Samples { snapshots: Vec::new(), copies: Vec::new() };
    for _ in 0..rounds {
        let began = Instant::now();
        take_snapshot(control, &name).await?;
        samples.snapshots.push(began.elapsed());
        let began = Instant::now();
        let copy = create(control, "copy", 0, Some(Source::FromSnapshot("snapshot".into()))).await?;
        samples.copies.push(began.elapsed());
        copy.disconnect()?;
        remove_volume(control, "copy").await?;
        control.remove_snapshot(proto::RemoveRequest { reference: "snapshot".into() }).await?;
        wait_gone(control, proto::Kind::Snapshot, "snapshot").await?;
    }
    client.disconnect()?;
    remove_volume(control, &name).await?;
    Ok(samples)
}

/// Durable writes of one place after the other, one at a time: where nothing was, where something is, and where a snapshot
/// shares what is there.
async fn first_writes(control: &mut Control, label: &str, figures: &mut Figures) -> Result<()> {
    let mut client = create(control, "written", WRITES * WRITE as u64, None).await?;
    let first = write_all(&mut client)?;
    let second = write_all(&mut client)?;
    take_snapshot(control, "written").await?;
    let shared = write_all(&mut client)?;
    for (what, cost) in [("first write", first), ("second write", second), ("first write after a snapshot", shared)] {
        figures.add(format!("{label}: {what}, 64 KiB, durable, p50"), cost, "ms", None);
    }
    figures.add(format!("{label}:   first to second"), first / second, "x", None);
    figures.add(format!("{label}:   first after a snapshot to second"), shared / second, "x", None);
    client.disconnect()?;
    Ok(())
}

/// What a write took, in the middle.
fn write_all(client: &mut Dialled) -> Result<f64> {
    let mut samples = Vec::new();
    for place in 0..WRITES {
        let began = Instant::now();
        client.write(place * WRITE as u64, &[0x5a; WRITE], true)?;
        samples.push(began.elapsed());
    }
    Ok(percentile(&mut samples, 0.5))
}

async fn create(control: &mut Control, name: &str, size: u64, source: Option<Source>) -> Result<Dialled> {
    let request = proto::CreateVolumeRequest { name: name.into(), size, pool: "copies".into(), source };
    control.create_volume(request).await?;
    let volume = wait_ready(control, proto::Kind::Volume, name).await?;
    let Some(proto::object::Object::Volume(volume)) = &volume.object else { anyhow::bail!("not a volume") };
    let export = volume.status.as_ref().and_then(|status| status.exports.first()).context("no export")?;
    let uri: Uri = export.uri.parse()?;
    Ok(Client::dial(&uri)?)
}

async fn take_snapshot(control: &mut Control, volume: &str) -> Result<()> {
    let wanted = vec![Wanted { volume: volume.into(), name: "snapshot".into() }];
    control.create_snapshots(proto::CreateSnapshotsRequest { wanted, room: None }).await?;
    wait_ready(control, proto::Kind::Snapshot, "snapshot").await.map(drop)
}

async fn remove_volume(control: &mut Control, name: &str) -> Result<()> {
    control.remove_volume(proto::RemoveVolumeRequest { reference: name.into(), wipe: None }).await?;
    wait_gone(control, proto::Kind::Volume, name).await
}

async fn wait_gone(control: &mut Control, kind: proto::Kind, name: &str) -> Result<()> {
    let request = proto::GetRequest { kind: kind.into(), reference: name.into() };
    let mut changes = match control.watch(request).await {
        Ok(changes) => changes.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    while let Some(change) = changes.message().await? {
        if change.object.is_none() {
            return Ok(());
        }
    }
    anyhow::bail!("the manager stopped answering")
}
