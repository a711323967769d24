//! How long volumes take.

use super::figures::{Figures, percentile};
use super::processes::{Cloud, Control, Process, dial, wait_ready};
use super::raw::{MANY, Rates};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};
use symphony::nbd::{Client, Uri};
use symphony::rpc::proto::{self, control_client::ControlClient};

const ROUNDS: usize = 10;
const CREATES: usize = 300;
const SPAN: Duration = Duration::from_secs(4);
const SIZE: u64 = 1 << 20;

/// From exec of `symphony dev` in a fresh directory to a volume that an NBD client has opened.
pub async fn first_volume(binary: &Path, figures: &mut Figures) -> Result<()> {
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let dir = tempfile::Builder::new().prefix("symphony-bench").tempdir_in("/var/tmp")?;
        let state = dir.path().join("state");
        let args = ["dev", "--listen-port=0", "--block-port=0", "--nbd-port=0"].map(String::from).into_iter();
        let args: Vec<String> = args.chain([format!("--config-dir={}", state.display())]).collect();
        let began = Instant::now();
        let _process = Process::start(binary, &dir.path().join("log"), &args)?;
        let mut control = ControlClient::new(dial(&state.join("manager/control.sock")).await?);
        loop {
            let request =
                proto::CreateVolumeRequest { name: "first".into(), size: SIZE, pool: String::new(), source: None };
            match control.create_volume(request).await {
                Ok(_) => break,
                // The role is still putting its parts together.
                Err(_) if began.elapsed() < Duration::from_secs(20) => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
        let volume = wait_ready(&mut control, proto::Kind::Volume, "first").await?;
        open(&volume)?;
        samples.push(began.elapsed());
    }
    figures.add("exec of dev to first exported volume, p50", percentile(&mut samples, 0.5), "ms", Some("under 1000"));
    figures.add("exec of dev to first exported volume, slowest", percentile(&mut samples, 1.0), "ms", None);
    Ok(())
}

fn open(object: &proto::Object) -> Result<()> {
    let Some(proto::object::Object::Volume(volume)) = &object.object else { anyhow::bail!("not a volume") };
    let export = volume.status.as_ref().and_then(|status| status.exports.first()).context("no export")?;
    let uri: Uri = export.uri.parse()?;
    Client::dial(&uri)?.disconnect()?;
    Ok(())
}

async fn create(control: &mut Control, name: String) -> Result<()> {
    let request = proto::CreateVolumeRequest { name: name.clone(), size: SIZE, pool: String::new(), source: None };
    control.create_volume(request).await?;
    wait_ready(control, proto::Kind::Volume, &name).await.map(drop)
}

pub async fn measure(
    store: &str,
    cloud: &Cloud,
    raw: Rates,
    goal: Option<&'static str>,
    figures: &mut Figures,
) -> Result<()> {
    // Before there is anything to hold in memory.
    let (manager, block) = (cloud.manager.resident()?, cloud.block.resident()?);
    let mut control = cloud.control().await?;
    let mut samples = Vec::new();
    for index in 0..CREATES {
        let began = Instant::now();
        create(&mut control, format!("latency-{index}")).await?;
        samples.push(began.elapsed());
    }
    figures.add(format!("{store}: volume create to exported, p50"), percentile(&mut samples, 0.5), "ms", goal);
    figures.add(format!("{store}: volume create to exported, p99"), percentile(&mut samples, 0.99), "ms", None);
    // What is only accepted leaves a queue behind, so it comes last.
    for exported in [true, false] {
        let what = if exported { "creates to exported" } else { "creates accepted" };
        for (clients, raw) in [(1, raw.one), (MANY, raw.many)] {
            let done = rate(cloud, clients, exported).await?;
            figures.add(format!("{store}: {what}, clients {clients}"), done, "/s", None);
            figures.add(format!("{store}:   ratio to {raw:.0} raw transactions/s"), done / raw, "x", None);
        }
    }
    figures.add(format!("{store}: manager, idle resident memory"), manager, "MiB", Some("under 30"));
    figures.add(format!("{store}: block service, idle resident memory"), block, "MiB", Some("under 30"));
    figures.add(format!("{store}: manager, after all these volumes"), cloud.manager.resident()?, "MiB", None);
    figures.add(format!("{store}: block service, after all these volumes"), cloud.block.resident()?, "MiB", None);
    Ok(())
}

/// Creates a second, each client one at a time; with `exported`, each waits until the volume can be reached.
async fn rate(cloud: &Cloud, clients: usize, exported: bool) -> Result<f64> {
    let mut tasks = Vec::new();
    let began = Instant::now();
    for client in 0..clients {
        let mut control = cloud.control().await?;
        tasks.push(tokio::spawn(async move {
            let mut done = 0u64;
            while began.elapsed() < SPAN {
                let name = format!("rate-{clients}-{exported}-{client}-{done}");
                if exported {
                    create(&mut control, name).await?;
                } else {
                    let request = proto::CreateVolumeRequest { name, size: SIZE, pool: String::new(), source: None };
                    control.create_volume(request).await?;
                }
                done += 1;
            }
            anyhow::Ok(done)
        }));
    }
    let mut creates = 0;
    for task in tasks {
        creates += task.await??;
    }
    Ok(creates as f64 / began.elapsed().as_secs_f64())
}
