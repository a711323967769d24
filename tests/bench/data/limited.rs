//! Prints what limits let through beside what was asked for, over ten seconds each: `cargo run --example limited`.
//!
//! Two clients ask for as much as they can get, one with sixteen requests in flight, one with one at a time.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use symphony::export::{Account, EngineChoice, ExportTable, NbdServer, ServedExport, ServerConfig};
use symphony::io::MemoryIo;
use symphony::model::{ByteSize, Limits, Operation};
use symphony::nbd::{Client, Target, Uri};

const SIZE: u64 = 64 << 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Reads without end, so many at a time; how many have been answered when the account is closed.
fn ask(uri: &Uri, length: u32, at_once: usize, until: Instant) -> Result<u64> {
    let mut client = Client::dial(uri)?;
    let mut tickets = std::collections::VecDeque::new();
    let mut answered = 0;
    while Instant::now() < until {
        while tickets.len() < at_once {
            let offset = answered * u64::from(length) % (SIZE / 2);
            tickets.push_back(client.submit_read(offset, length)?);
        }
        if let Some(ticket) = tickets.pop_front() {
            client.wait(ticket)?;
            answered += 1;
        }
    }
    Ok(answered)
}

fn measure(engine: EngineChoice, limits: Limits, length: u32) -> Result<()> {
    let (table, account) = (ExportTable::new(), Account::new());
    let (name, id, io) = (String::new(), uuid::Uuid::nil(), Arc::new(MemoryIo::new(SIZE)));
    let (description, account_of) = (String::new(), account.clone());
    table.publish(ServedExport { name, id, description, io, read_only: false, account: account_of })?;
    let config = ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), engine, ..ServerConfig::new() };
    let server = NbdServer::start(config, table)?;
    let address = server.tcp_address().context("a port")?;
    let uri = Uri {
        target: Target::Tcp { host: address.ip().to_string(), port: address.port() },
        export: String::new(),
        tls: None,
    };
    account.limit(limits);
    // What was saved up is used first.
    let until = Instant::now() + WINDOW + Duration::from_secs(1);
    let (deep, shallow) = std::thread::scope(|scope| {
        let asking = |at_once| {
            scope.spawn({
                let uri = &uri;
                move || ask(uri, length, at_once, until)
            })
        };
        let (deep, shallow) = (asking(16), asking(1));
        std::thread::sleep(Duration::from_secs(1));
        let before = account.figures();
        std::thread::sleep(WINDOW);
        let since = account.figures().since(&before);
        let (seconds, seen) = (since.elapsed.as_secs_f64(), since.of(Operation::Read));
        let (iops, bandwidth) = (seen.operations() as f64 / seconds, seen.bytes as f64 / seconds);
        let asked = limits.iops.map_or_else(|| limits.bandwidth.map_or(0.0, |it| it.as_u64() as f64), |it| it as f64);
        let got = if limits.iops.is_some() { iops } else { bandwidth };
        let off = (got / asked - 1.0) * 100.0;
        print!("{:>8}  {limits:<28}  {length:>7} B  {got:>14.1}/s  {off:>+6.2}%", server.engine());
        (deep.join(), shallow.join())
    });
    let counted =
        |joined: std::thread::Result<Result<u64>>| joined.map_err(|_| anyhow::anyhow!("a client panicked"))?;
    println!("  {} : {}", counted(deep)?, counted(shallow)?);
    Ok(())
}

fn main() -> Result<()> {
    println!("  engine  limit                        request       measured     off  deep : one at a time");
    for engine in [EngineChoice::Auto, EngineChoice::Threads] {
        for iops in [100, 1000, 10_000, 50_000] {
            measure(engine, Limits { iops: Some(iops), ..Limits::NONE }, 4096)?;
        }
        for (mib, length) in [(1, 65_536), (100, 4096), (100, 1 << 20)] {
            measure(engine, Limits { bandwidth: Some(ByteSize::mib(mib)), ..Limits::NONE }, length)?;
        }
    }
    Ok(())
}
