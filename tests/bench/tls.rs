//! What encryption costs on the data path: the same volume over plain NBD and over TLS, in turns, in one run.

use super::figures::{Figures, percentile};
use super::processes::{Cloud, wait_ready};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use symphony::model::{Export, Object, Protocol};
use symphony::nbd::Client;
use symphony::rpc::proto;

const SIZE: u64 = 256 << 20;
const ROUNDS: usize = 5;
const REQUESTS: usize = 3000;
const BLOCK: u64 = 4096;

/// What one transport did, over all rounds.
#[derive(Default)]
struct Tally {
    copying: Duration,
    copy_cpu: Duration,
    latencies: Vec<Duration>,
    small_cpu: Duration,
}

/// Measures on a cluster that has a pool; its block service must have nothing else to do.
pub async fn measure(binary: &Path, cloud: &Cloud, figures: &mut Figures) -> Result<()> {
    let mut control = cloud.control().await?;
    let request = proto::CreateVolumeRequest { name: "bulk".into(), size: SIZE, pool: String::new(), source: None };
    control.create_volume(request).await?;
    let object = Object::try_from(wait_ready(&mut control, proto::Kind::Volume, "bulk").await?)?;
    let Object::Volume(volume) = object else { bail!("the manager answered with something else") };
    let scratch = tempfile::tempdir()?;
    let bundle = scratch.path().join("bench");
    let socket = format!("--socket={}", cloud.socket.display());
    let output = format!("--output-dir={}", bundle.display());
    ctl(binary, &[&socket, "manager", "client", "create", "bench", "--role", "data", &output])?;
    ctl(binary, &[&socket, "volume", "attach", "bulk", "--client", "bench", "--shared"])?;
    let uri = |protocol| {
        let export = volume.status.exports.iter().find(|export: &&Export| export.protocol == protocol);
        export.map(|export| export.uri.clone()).with_context(|| format!("no {protocol} export"))
    };
    let plain = uri(Protocol::Nbd)?;
    let secured = format!("{}?tls-certificates={}", uri(Protocol::NbdTls)?, bundle.display());
    fill(scratch.path(), &plain)?;
    let (mut without, mut with) = (Tally::default(), Tally::default());
    for _ in 0..ROUNDS {
        for (uri, tally) in [(&plain, &mut without), (&secured, &mut with)] {
            round(cloud, uri, tally)?;
        }
    }
    let ratio = |with: Duration, without: Duration| with.as_secs_f64() / without.as_secs_f64();
    let mib = |tally: &Tally| (SIZE >> 20) as f64 * ROUNDS as f64 / tally.copying.as_secs_f64();
    figures.add("nbdcopy of 256 MiB, plain", mib(&without), "MiB/s", None);
    figures.add("nbdcopy of 256 MiB, TLS", mib(&with), "MiB/s", None);
    figures.add("  TLS against plain, throughput", ratio(without.copying, with.copying), "x", None);
    figures.add("  TLS against plain, the block service's CPU", ratio(with.copy_cpu, without.copy_cpu), "x", None);
    let (slow, fast) = (percentile(&mut with.latencies, 0.5), percentile(&mut without.latencies, 0.5));
    figures.add("4 KiB read, one at a time, plain, p50", fast * 1000.0, "us", None);
    figures.add("4 KiB read, one at a time, TLS, p50", slow * 1000.0, "us", None);
    figures.add("  TLS against plain, latency", slow / fast, "x", None);
    figures.add("  TLS against plain, the block service's CPU", ratio(with.small_cpu, without.small_cpu), "x", None);
    Ok(())
}

/// Bytes that are there to be read, and that nothing can leave out.
fn fill(scratch: &Path, uri: &str) -> Result<()> {
    let image = scratch.join("image");
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| fastrand::u64(..)).take((SIZE / 8) as usize).flat_map(u64::to_ne_bytes).collect();
    std::fs::write(&image, bytes)?;
    nbdcopy(&[&image.to_string_lossy(), uri])
}

fn round(cloud: &Cloud, uri: &str, tally: &mut Tally) -> Result<()> {
    let (began, cpu) = (Instant::now(), cloud.block.cpu()?);
    nbdcopy(&["--connections=2", uri, "null:"])?;
    tally.copying += began.elapsed();
    tally.copy_cpu += cloud.block.cpu()?.saturating_sub(cpu);
    let mut client = Client::dial(&uri.parse()?)?;
    let cpu = cloud.block.cpu()?;
    let mut buffer = vec![0; BLOCK as usize];
    for _ in 0..REQUESTS {
        let began = Instant::now();
        client.read(fastrand::u64(..SIZE / BLOCK) * BLOCK, &mut buffer)?;
        tally.latencies.push(began.elapsed());
    }
    tally.small_cpu += cloud.block.cpu()?.saturating_sub(cpu);
    Ok(client.disconnect()?)
}

fn ctl(binary: &Path, arguments: &[&str]) -> Result<()> {
    run(Command::new(binary).arg("ctl").args(arguments))
}

fn nbdcopy(arguments: &[&str]) -> Result<()> {
    run(Command::new("nbdcopy").args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    if !done.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
