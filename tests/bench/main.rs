//! `make bench`: figures of the control plane, beside what the raw stores do in the same run; `make bench-scale`: the same
//! as the cluster grows; `make bench-vm`: what needs device-mapper, in an emulated guest.
//!
//! Not a test: nothing is asserted, the numbers are printed with their goals and ratios. Processes are the static
//! release executable named by `SYMPHONY_BENCH_BINARY`; etcd is a real cluster of three members on this machine.

mod copies;
mod figures;
mod images;
mod processes;
mod raw;
mod restarts;
mod scale;
#[expect(dead_code, reason = "a benchmark hurts no member")]
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod volumes;

use anyhow::{Context, Result};
use copies::Ground;
use figures::Figures;
use std::path::{Path, PathBuf};
use support::etcd::Etcd;
use support::mounted::Mounted;
use symphony::model::{Devices, Driver};

fn main() -> Result<()> {
    let binary: PathBuf = std::env::var_os("SYMPHONY_BENCH_BINARY")
        .context("SYMPHONY_BENCH_BINARY does not name the executable: run `make bench`")?
        .into();
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // `cargo bench` passes flags of its own as well.
    let words: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["scale"] => executor.block_on(scale::run(&binary)),
        ["copies"] => executor.block_on(copies(&binary)),
        ["thin", device] => executor.block_on(thin(&binary, device.into())),
        _ => executor.block_on(run(binary)),
    }
}

/// Of everything, what has to do with the sizes of volumes.
async fn copies(binary: &Path) -> Result<()> {
    let mut figures = Figures::default();
    reflink(binary, &mut figures).await?;
    print!("{figures}");
    Ok(())
}

/// On a device whose content may be destroyed, which needs device-mapper.
async fn thin(binary: &Path, device: PathBuf) -> Result<()> {
    let mut figures = Figures::default();
    let devices = Devices { devices: vec![device.clone()], wipe: vec![device], ceiling: None };
    let cloud = processes::Cloud::start(binary, &[]).await?;
    let ground = Ground { label: "lvm-thin", driver: Driver::LvmThin(devices), rounds: 5 };
    copies::measure(&cloud, &ground, &mut figures).await?;
    print!("{figures}");
    Ok(())
}

/// On a file system of this run's own, larger than what carries it.
async fn reflink(binary: &Path, figures: &mut Figures) -> Result<()> {
    let mounted = match Mounted::xfs_of(200 << 30) {
        Ok(mounted) => mounted,
        Err(why) => {
            println!("not measured: no XFS here: {why}");
            return Ok(());
        }
    };
    let cloud = processes::Cloud::start(binary, &[]).await?;
    let driver = Driver::File { path: mounted.path().join("pool"), limit: None };
    copies::measure(&cloud, &Ground { label: "XFS", driver, rounds: 20 }, figures).await
}

async fn run(binary: PathBuf) -> Result<()> {
    let mut figures = Figures::default();
    let size = std::fs::metadata(&binary).with_context(|| format!("looking at {}", binary.display()))?.len();
    figures.add("executable, stripped and static", size as f64 / f64::from(1 << 20), "MiB", Some("under 25"));

    volumes::first_volume(&binary, &mut figures).await?;

    println!("measuring on the embedded store …");
    let raw = raw::embedded().await?;
    let cloud = processes::Cloud::start(&binary, &[]).await?;
    volumes::measure("embedded", &cloud, raw, Some("under 10"), &mut figures).await?;
    drop(cloud);

    println!("measuring restarts in place …");
    let cloud = processes::Cloud::start(&binary, &[]).await?;
    restarts::measure(&cloud, &mut figures).await?;
    drop(cloud);

    println!("measuring imports of images …");
    let cloud = processes::Cloud::start(&binary, &[]).await?;
    tokio::task::block_in_place(|| images::measure(&binary, &cloud, &mut figures))?;
    drop(cloud);

    println!("measuring snapshots and copies …");
    reflink(&binary, &mut figures).await?;

    println!("measuring what encryption costs …");
    let cloud = processes::Cloud::start(&binary, &[]).await?;
    tls::measure(&binary, &cloud, &mut figures).await?;
    drop(cloud);

    println!("measuring on an etcd cluster of three …");
    let etcd = Etcd::start(3).await;
    let raw = raw::etcd(&etcd.endpoints()).await?;
    let cloud = processes::Cloud::start(&binary, &etcd.endpoints()).await?;
    volumes::measure("etcd", &cloud, raw, Some("under 30"), &mut figures).await?;
    drop(cloud);

    print!("{figures}");
    Ok(())
}
