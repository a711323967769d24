//! Real processes of symphony in a scratch directory, gone with the value that holds them.

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use symphony::model::Driver;
use symphony::rpc::dial_socket;
use symphony::rpc::proto::{self, block_control_client::BlockControlClient, control_client::ControlClient};
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long a process may take to answer, or to be as it was asked to be.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Control = ControlClient<Channel>;

/// A child that dies with its owner.
pub struct Process(Child);

impl Process {
    pub fn start(binary: &Path, log: &Path, args: &[String]) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: prctl is async-signal-safe and touches nothing that the parent shares.
        unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        Ok(Self(command.spawn().with_context(|| format!("starting {}", binary.display()))?))
    }

    /// Resident memory in MiB, as the kernel counts it now.
    pub fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Process {
    /// The processor time that it has used so far (proc(5), `utime` and `stime`).
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The name in brackets may hold spaces.
        let fields = stat.rsplit_once(')').context("no name in the process's facts")?.1;
        let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / per_second as f64))
    }
}

impl Process {
    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("cannot end process {}: {error}", self.0.id());
        }
    }
}

/// A connection to a control socket, as soon as somebody answers on it.
pub async fn dial(socket: &Path) -> Result<Channel> {
    let began = Instant::now();
    loop {
        match dial_socket(socket).await {
            Ok(channel) => return Ok(channel),
            Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// One manager and one block service with a pool, initialised and joined.
pub struct Cloud {
    pub manager: Process,
    pub block: Process,
    pub socket: PathBuf,
    dir: TempDir,
}

impl Cloud {
    /// On the embedded store where there are no endpoints.
    pub async fn start(binary: &Path, endpoints: &[String]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("symphony-bench").tempdir_in("/var/tmp")?;
        let place = |name: &str| dir.path().join(name);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["manager".into(), "run".into(), "--listen-port=0".into()];
        args.push(format!("--config-dir={}", text(place("manager"))));
        if !endpoints.is_empty() {
            args.push(format!("--etcd-endpoints={}", endpoints.join(",")));
        }
        let manager = Process::start(binary, &place("log"), &args)?;
        let socket = place("manager/control.sock");
        let mut control = ControlClient::new(dial(&socket).await?);
        let address = init(&mut control).await?;
        let args = ["block", "run", "--listen-port=0", "--nbd-port=0"].map(String::from).into_iter();
        let args: Vec<String> = args.chain([format!("--config-dir={}", text(place("block")))]).collect();
        let block = Process::start(binary, &place("log"), &args)?;
        let mut joined = BlockControlClient::new(dial(&place("block/control.sock")).await?);
        joined.init_block(proto::InitBlockRequest { manager: address, token: None, recover: false }).await?;
        let driver = Some((&Driver::File { path: text(place("pool")).into(), limit: None }).into());
        let request = proto::CreatePoolRequest { name: "pool".into(), service: String::new(), driver, rules: None };
        control.create_pool(request).await?;
        wait_ready(&mut control, proto::Kind::Pool, "pool").await?;
        Ok(Self { manager, block, socket, dir })
    }

    /// The block service's.
    pub fn block_directory(&self) -> PathBuf {
        self.dir.path().join("block")
    }

    pub async fn control(&self) -> Result<Control> {
        Ok(ControlClient::new(dial(&self.socket).await?))
    }
}

/// Initialises a manager once its store is there; its address.
pub async fn init(control: &mut Control) -> Result<String> {
    let began = Instant::now();
    loop {
        let status = control.get_manager_status(proto::GetManagerStatusRequest {}).await?.into_inner();
        match status.state.as_str() {
            "uninitialised" => {
                control.init_cluster(proto::InitClusterRequest::default()).await?;
                return Ok(status.address);
            }
            "starting" if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(5)).await,
            other => bail!("the manager is {other}"),
        }
    }
}

/// Completes once the object is ready.
pub async fn wait_ready(control: &mut Control, kind: proto::Kind, name: &str) -> Result<proto::Object> {
    let request = proto::GetRequest { kind: kind.into(), reference: name.into() };
    let mut changes = control.watch(request).await?.into_inner();
    while let Some(change) = changes.message().await? {
        let object = change.object.with_context(|| format!("{name} is gone"))?;
        match symphony::model::Object::try_from(object.clone())?.phase() {
            (symphony::model::Phase::Ready, _) => return Ok(object),
            (symphony::model::Phase::Failed, why) => bail!("{name}: {why:?}"),
            _ => {}
        }
    }
    bail!("the manager stopped answering")
}
