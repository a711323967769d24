//! How long a client waits while another executable takes the place of the one that serves it.

use super::figures::{Figures, percentile};
use super::processes::{Cloud, PATIENCE, dial, wait_ready};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use symphony::nbd::Client;
use symphony::rpc::proto::{self, block_control_client::BlockControlClient};

const RESTARTS: usize = 10;
const BLOCK: usize = 4096;

/// One reader that asks for one block at a time, without ever connecting again.
pub async fn measure(cloud: &Cloud, figures: &mut Figures) -> Result<()> {
    let mut control = cloud.control().await?;
    let request = proto::CreateVolumeRequest { name: "watched".into(), size: 64 << 20, ..Default::default() };
    control.create_volume(request).await?;
    wait_ready(&mut control, proto::Kind::Volume, "watched").await?;
    let directory = cloud.block_directory();
    let uri = format!("nbd+unix:///watched?socket={}", directory.join("nbd.sock").display());
    let mut client = Client::dial(&uri.parse()?)?;
    let (over, longest, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| -> Result<()> {
            let mut block = [0; BLOCK];
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.read(0, &mut block)?;
                longest.fetch_max(began.elapsed().as_nanos() as u64, Ordering::SeqCst);
                reads.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let restarting = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..RESTARTS {
                    longest.store(0, Ordering::SeqCst);
                    restart(&directory).await?;
                    // One that was begun before the end has been answered.
                    let seen = reads.load(Ordering::SeqCst);
                    while reads.load(Ordering::SeqCst) < seen + 2 && !reading.is_finished() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    waits.push(Duration::from_nanos(longest.load(Ordering::SeqCst)));
                }
                anyhow::Ok(())
            })
        });
        over.store(true, Ordering::Relaxed);
        let read = reading.join().ok().context("the reader panicked")?;
        read.context("reading across restarts").and(restarting)
    })?;
    let what = |which| format!("restart in place: a reader's longest wait, {which} of {RESTARTS}");
    figures.add(what("median"), percentile(&mut waits, 0.5), "ms", Some("under 100"));
    figures.add(what("longest"), percentile(&mut waits, 1.0), "ms", Some("under 100"));
    Ok(())
}

/// Returns when another process has gone on with everything.
async fn restart(directory: &Path) -> Result<()> {
    let socket = directory.join("control.sock");
    let mut block = BlockControlClient::new(dial(&socket).await?);
    let before = block.get_block_status(proto::GetBlockStatusRequest {}).await?.into_inner().instance;
    // No answer is a good one.
    let refused = block.restart_block(proto::RestartBlockRequest::default()).await;
    let began = Instant::now();
    loop {
        let mut block = BlockControlClient::new(dial(&socket).await?);
        match block.get_block_status(proto::GetBlockStatusRequest {}).await.map(tonic::Response::into_inner) {
            Ok(status) if status.instance == before => bail!("no restart: {refused:?}"),
            Ok(status) if status.passage.as_ref().is_some_and(|passage| passage.settled) => return Ok(()),
            _ if began.elapsed() > PATIENCE => bail!("the restart does not settle"),
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}
