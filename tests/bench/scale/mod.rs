//! `make bench-scale`: what the control plane does as the cluster grows, on simulated block services.
//!
//! For each store, once with each number of volumes, on the same cluster: creates beside the raw store's transactions in
//! the same run, the latency of one create while all services heartbeat, a listing of everything, memory, what it takes
//! until the death of a block service is noticed, a manager's start. Then the move of all services to another manager.

mod fleet;

use super::figures::{Figures, percentile};
use super::processes::{Control, wait_ready};
use super::raw::{MANY, Rates};
use super::{raw, support::etcd::Etcd};
use anyhow::{Context, Result, bail};
use fleet::{Block, Fleet, list, services_of};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use symphony::model::ServiceState;
use symphony::rpc::proto;
use tokio::task::JoinSet;

/// How large it gets: from the environment, for a shorter or a longer look.
struct Extent {
    services: usize,
    volumes: Vec<usize>,
}

impl Extent {
    fn from_environment() -> Result<Self> {
        let read = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        let services = read("SERVICES", "1000").parse().context("SERVICES is not a number")?;
        let volumes = read("VOLUMES", "1000,10000,100000");
        let volumes: Vec<usize> = volumes.split(',').map(str::parse).collect::<Result<_, _>>().context("VOLUMES")?;
        Ok(Self { services, volumes })
    }
}

const SAMPLES: usize = 200;
const SIZE: u64 = 1 << 20;

pub async fn run(binary: &Path) -> Result<()> {
    let extent = Extent::from_environment()?;
    let mut figures = Figures::default();
    println!("measuring on the embedded store …");
    let fleet = Fleet::start(binary, &[]).await?;
    measure("embedded", fleet, raw::embedded().await?, &extent, &mut figures).await?;
    println!("measuring on an etcd cluster of three …");
    let etcd = Etcd::start(3).await;
    let fleet = Fleet::start(binary, &etcd.endpoints()).await?;
    measure("etcd", fleet, raw::etcd(&etcd.endpoints()).await?, &extent, &mut figures).await?;
    print!("{figures}");
    Ok(())
}

async fn measure(store: &str, mut fleet: Fleet, raw: Rates, extent: &Extent, figures: &mut Figures) -> Result<()> {
    let count = extent.services;
    let empty = fleet.manager.resident()?;
    let began = Instant::now();
    fleet.simulate(count).await?;
    figures.add(format!("{store}: {count} services join"), began.elapsed().as_secs_f64(), "s", None);
    make_pools(&fleet, count).await?;
    let without = fleet.manager.resident()?;
    figures.add(format!("{store}: manager, {count} sessions and pools"), without - empty, "MiB", None);
    let (mut made, mut fewest) = (0, None);
    for &volumes in &extent.volumes {
        let row = |what: &str| format!("{store}, {volumes} volumes: {what}");
        let more = volumes.saturating_sub(made);
        let began = Instant::now();
        create(&fleet, made, volumes).await?;
        let rate = more as f64 / began.elapsed().as_secs_f64();
        made = volumes;
        figures.add(row(&format!("the last {more} created")), rate, "/s", None);
        figures.add(row(&format!("  ratio to {:.0} raw transactions/s", raw.many)), rate / raw.many, "x", None);
        wait_until_all_ready(&fleet, made).await?;
        figures.add(row("the same until all are ready"), more as f64 / began.elapsed().as_secs_f64(), "/s", None);
        let mut samples = one_by_one(&fleet, volumes).await?;
        figures.add(row("create to ready, p50"), percentile(&mut samples, 0.5), "ms", None);
        figures.add(row("create to ready, p99"), percentile(&mut samples, 0.99), "ms", None);
        made += SAMPLES;
        let began = Instant::now();
        let listed = list(&mut fleet.control().await?, proto::Kind::Volume).await?.len();
        if listed != made {
            bail!("{listed} volumes are listed, and {made} were created");
        }
        let per_thousand = 1e6 / listed as f64 * began.elapsed().as_secs_f64();
        figures.add(row("listing all of them, each 1,000"), per_thousand, "ms", None);
        let each = (fleet.manager.resident()? - without) / made as f64 * 1000.0;
        figures.add(row("manager's memory, each 1,000"), each, "MiB", Some("under 4"));
        // What grows with the number of volumes costs each of them the same.
        let (create, show) = *fewest.get_or_insert((rate, per_thousand));
        figures.add(row("cost of a create, beside that with the fewest"), create / rate, "x", None);
        figures.add(row("cost of listing one, beside that with the fewest"), per_thousand / show, "x", None);
        // While the manager has been there for a while: one that has just begun gives services time to come to it.
        let down = fleet.lose_one_service(&format!("lost-{volumes}")).await?.as_secs_f64();
        figures.add(row("block service's kill to down"), down, "s", Some("under 5"));
        let seconds = fleet.restart_manager().await?.as_secs_f64();
        figures.add(row("kill and start of the manager to serving"), seconds, "s", None);
        fleet.wait_for_sessions(count).await?;
        println!("  {volumes} volumes measured");
    }
    if fleet.has_shared_store() {
        let moved = fleet.fail_over(count).await?.as_secs_f64();
        figures.add(format!("{store}: manager's kill to {count} sessions elsewhere"), moved, "s", Some("under 3"));
    }
    let down = fleet.lose_one_service("lost").await?.as_secs_f64();
    figures.add(format!("{store}: the same right after another manager began"), down, "s", None);
    Ok(())
}

/// One pool for each service.
async fn make_pools(fleet: &Fleet, count: usize) -> Result<()> {
    let services = services_of(&mut fleet.control().await?).await?;
    let blocks: Vec<String> =
        services.iter().filter(|service| service.is_block()).map(|service| service.meta.id.to_string()).collect();
    if blocks.len() != count {
        bail!("{} block services are there, and {count} should be", blocks.len());
    }
    let blocks = Arc::new(blocks);
    spread(fleet, 0, count, move |mut control, index| {
        let blocks = blocks.clone();
        async move {
            let service = blocks.get(index).context("no such service")?.clone();
            let driver = symphony::model::Driver::File { path: "/simulated".into(), limit: None };
            let (name, driver) = (format!("pool-{index}"), Some((&driver).into()));
            let request = proto::CreatePoolRequest { name, service, driver, rules: None };
            control.create_pool(request).await?;
            Ok(())
        }
    })
    .await?;
    let mut control = fleet.control().await?;
    for index in 0..count {
        wait_ready(&mut control, proto::Kind::Pool, &format!("pool-{index}")).await?;
    }
    Ok(())
}

/// Volumes `from..to` by [`MANY`] clients, each one at a time; done when all are accepted.
async fn create(fleet: &Fleet, from: usize, to: usize) -> Result<()> {
    spread(fleet, from, to, |mut control, index| async move {
        let request = proto::CreateVolumeRequest {
            name: format!("volume-{index}"),
            size: SIZE,
            pool: String::new(),
            source: None,
        };
        control.create_volume(request).await?;
        Ok(())
    })
    .await
}

/// Does it for each index, [`MANY`] at a time.
async fn spread<F>(fleet: &Fleet, from: usize, to: usize, work: impl Fn(Control, usize) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    // Each client has a connection of its own.
    let mut free = Vec::new();
    for _ in 0..MANY.min(to.saturating_sub(from)) {
        free.push(fleet.control().await?);
    }
    let mut at_work = JoinSet::new();
    let mut left = from..to;
    loop {
        while !left.is_empty()
            && let Some(control) = free.pop()
            && let Some(index) = left.next()
        {
            let task = work(control.clone(), index);
            at_work.spawn(async move { task.await.map(|()| control) });
        }
        match at_work.join_next().await {
            Some(done) => free.push(done??),
            None => return Ok(()),
        }
    }
}

async fn wait_until_all_ready(fleet: &Fleet, volumes: usize) -> Result<()> {
    let mut control = fleet.control().await?;
    let began = Instant::now();
    loop {
        let looked = Instant::now();
        let listed = list(&mut control, proto::Kind::Volume).await?;
        let ready = listed.iter().filter(|object| object.phase().0 == symphony::model::Phase::Ready).count();
        if ready >= volumes {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(300) {
            bail!("only {ready} of {volumes} volumes are ready");
        }
        // Looking at everything is work itself: it is to be a part of it only.
        tokio::time::sleep(looked.elapsed() * 3).await;
    }
}

/// How long it takes until a volume is ready, for one client that creates one after the other.
async fn one_by_one(fleet: &Fleet, round: usize) -> Result<Vec<Duration>> {
    let mut control = fleet.control().await?;
    let mut samples = Vec::new();
    for index in 0..SAMPLES {
        let name = format!("single-{round}-{index}");
        let began = Instant::now();
        let request = proto::CreateVolumeRequest { name: name.clone(), size: SIZE, pool: String::new(), source: None };
        control.create_volume(request).await?;
        wait_ready(&mut control, proto::Kind::Volume, &name).await?;
        samples.push(began.elapsed());
    }
    Ok(samples)
}

/// Whether a service is up, as it says of itself through its manager.
fn is_ready(service: &symphony::model::Service) -> bool {
    service.status.state == ServiceState::Ready
}
