//! Managers and simulated block services, as processes, and how they come and go.

use super::is_ready;
use crate::processes::{Control, Process, dial, init};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use symphony::model::{Object, Service, ServiceId, ServiceType};
use symphony::rpc::proto::{self, control_client::ControlClient};
use tempfile::TempDir;

/// What managers' directories are called.
const FIRST: &str = "manager";
const SECOND: &str = "second";
/// How long services may take to hear of a new manager.
const HEARING: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at: what is measured by it is that much too long at most.
const LOOK: Duration = Duration::from_millis(50);

pub struct Fleet {
    pub manager: Process,
    /// The directory of that manager.
    name: &'static str,
    /// Simulated services, all in one process.
    services: Option<Process>,
    binary: PathBuf,
    endpoints: Vec<String>,
    /// Where services dial the first manager.
    address: String,
    dir: TempDir,
}

impl Fleet {
    /// One manager, initialised; on the embedded store where there are no endpoints.
    pub async fn start(binary: &Path, endpoints: &[String]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("symphony-bench").tempdir_in("/var/tmp")?;
        let manager = start_manager(binary, dir.path(), FIRST, 0, endpoints)?;
        let mut control = ControlClient::new(dial(&dir.path().join(FIRST).join("control.sock")).await?);
        let address = init(&mut control).await?;
        let (binary, endpoints) = (binary.to_owned(), endpoints.to_vec());
        Ok(Self { manager, name: FIRST, services: None, binary, endpoints, address, dir })
    }

    pub fn has_shared_store(&self) -> bool {
        !self.endpoints.is_empty()
    }

    pub async fn control(&self) -> Result<Control> {
        self.control_of(self.name).await
    }

    async fn control_of(&self, manager: &str) -> Result<Control> {
        Ok(ControlClient::new(dial(&self.dir.path().join(manager).join("control.sock")).await?))
    }

    /// Starts that many services, and waits until all are members with a session.
    pub async fn simulate(&mut self, count: usize) -> Result<()> {
        self.services = Some(self.start_services("services", count)?);
        self.wait_for_sessions(count).await
    }

    fn start_services(&self, name: &str, count: usize) -> Result<Process> {
        let place = self.dir.path().join(name);
        let args = [
            "block".to_owned(),
            "run".to_owned(),
            format!("--simulate={count}"),
            format!("--config-dir={}", place.display()),
            format!("--join={}", self.address),
        ];
        Process::start(&self.binary, &self.dir.path().join(format!("{name}.log")), &args)
    }

    /// Waits until that many block services are ready.
    pub async fn wait_for_sessions(&self, count: usize) -> Result<()> {
        let mut control = self.control().await?;
        let enough = |services: &[Service]| services.iter().filter(|it| it.is_block() && is_ready(it)).count() >= count;
        wait_for(&mut control, &format!("{count} sessions"), enough).await.map(drop)
    }

    /// Kills the manager and starts it again: how long until it answers from the store.
    pub async fn restart_manager(&mut self) -> Result<Duration> {
        self.manager.kill()?;
        let began = Instant::now();
        let port = self.address.rsplit_once(':').context("an address without a port")?.1.parse()?;
        self.manager = start_manager(&self.binary, self.dir.path(), self.name, port, &self.endpoints)?;
        let mut control = self.control().await?;
        loop {
            let request = proto::ListRequest { kind: proto::Kind::Pool.into(), ..Default::default() };
            match control.list(request).await {
                Ok(_) => return Ok(began.elapsed()),
                Err(status) if began.elapsed() > PATIENCE => return Err(status.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Starts a second manager, kills the first, which holds all sessions, and takes the time until `count` services
    /// have one with the second. The first is not started again.
    pub async fn fail_over(&mut self, count: usize) -> Result<Duration> {
        let second = start_manager(&self.binary, self.dir.path(), SECOND, 0, &self.endpoints)?;
        let mut control = self.control_of(SECOND).await?;
        init(&mut control).await?;
        let status = control.get_manager_status(proto::GetManagerStatusRequest {}).await?.into_inner();
        let own: ServiceId = status.service_id.context("a member without an id")?.parse()?;
        let known = |services: &[Service]| services.iter().any(|it| it.meta.id == own);
        wait_for(&mut self.control().await?, "the second manager", known).await?;
        // Nothing shows that every service has heard of it. One that has not could not find it.
        tokio::time::sleep(HEARING).await;
        self.manager.kill()?;
        let began = Instant::now();
        let there = |it: &&Service| it.is_block() && is_ready(it) && it.status.manager == Some(own);
        wait_for(&mut control, "the move", |services| services.iter().filter(there).count() >= count).await?;
        let took = began.elapsed();
        (self.manager, self.name) = (second, SECOND);
        self.address = status.address;
        Ok(took)
    }

    /// Starts one more service, kills it, and takes the time until it is down. `name` is new each time.
    pub async fn lose_one_service(&mut self, name: &str) -> Result<Duration> {
        let mut control = self.control().await?;
        let before: Vec<ServiceId> = services_of(&mut control).await?.iter().map(|it| it.meta.id).collect();
        let mut process = self.start_services(name, 1)?;
        let fresh = |it: &&Service| !before.contains(&it.meta.id) && is_ready(it);
        let services = wait_for(&mut control, "one more", |services| services.iter().any(|it| fresh(&it))).await?;
        let lost = services.iter().find(fresh).context("it is gone again")?.meta.id;
        process.kill()?;
        let began = Instant::now();
        let down = |services: &[Service]| services.iter().any(|it| it.meta.id == lost && !is_ready(it));
        wait_for(&mut control, "its end", down).await?;
        Ok(began.elapsed())
    }
}

fn start_manager(binary: &Path, dir: &Path, name: &str, port: u16, endpoints: &[String]) -> Result<Process> {
    let mut args = vec!["manager".into(), "run".into(), format!("--listen-port={port}")];
    args.push(format!("--config-dir={}", dir.join(name).display()));
    if !endpoints.is_empty() {
        args.push(format!("--etcd-endpoints={}", endpoints.join(",")));
    }
    Process::start(binary, &dir.join(format!("{name}.log")), &args)
}

/// Looks at the services until they are as they should be.
async fn wait_for(control: &mut Control, what: &str, enough: impl Fn(&[Service]) -> bool) -> Result<Vec<Service>> {
    let began = Instant::now();
    loop {
        let services = services_of(control).await?;
        if enough(&services) {
            return Ok(services);
        }
        if began.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn services_of(control: &mut Control) -> Result<Vec<Service>> {
    let objects = list(control, proto::Kind::Service).await?;
    Ok(objects
        .into_iter()
        .filter_map(|object| if let Object::Service(it) = object { Some(it) } else { None })
        .collect())
}

/// Everything of a kind, page by page.
pub async fn list(control: &mut Control, kind: proto::Kind) -> Result<Vec<Object>> {
    let mut found = Vec::new();
    let mut request = proto::ListRequest { kind: kind.into(), ..Default::default() };
    loop {
        let page = control.list(request.clone()).await?.into_inner();
        for object in page.objects {
            found.push(Object::try_from(object)?);
        }
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}

/// What the benchmark asks of services.
pub trait Block {
    fn is_block(&self) -> bool;
}

impl Block for Service {
    fn is_block(&self) -> bool {
        self.spec.service_type == ServiceType::Block
    }
}
