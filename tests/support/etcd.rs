//! Real etcd members on loopback, for tests: started, hurt and brought back at will, gone with the test.
//!
//! `SYMPHONY_TEST_ETCD` names another etcd than the one in `PATH`.

use super::ports::free_ports;
use super::process::{mortal, spawn_for_life};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use symphony::store::{EtcdAccess, EtcdOptions, EtcdStore, Key, Store};
use tempfile::TempDir;

/// How long a healthy cluster may take to form before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct EtcdSetup {
    /// The ports that serve clients, one a member; free ones are taken for those not given.
    pub client_ports: Vec<u16>,
    /// Faster, and fit only for tests that kill no member.
    pub unsafe_no_fsync: bool,
    /// Serve over TLS only.
    pub tls: Option<EtcdTls>,
}

/// What members serve TLS with, and whom they let in.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients need a certificate that this authority signed, where it is given.
    pub client_ca: Option<PathBuf>,
    /// What gets this test in.
    pub access: EtcdAccess,
}

/// A cluster of etcd members. Dropping it kills them and removes their data.
pub struct Etcd {
    members: Vec<Member>,
    initial_cluster: String,
    setup: EtcdSetup,
    directory: TempDir,
}

struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    process: Mutex<Option<Child>>,
}

impl Etcd {
    /// Starts `members` members and waits until each of them serves reads and writes.
    pub async fn start(members: usize) -> Self {
        Self::start_with(members, EtcdSetup::default()).await
    }

    pub async fn start_with(members: usize, setup: EtcdSetup) -> Self {
        let ports = free_ports(2 * members);
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        let member = |place: usize| {
            let client = setup.client_ports.get(place).copied().unwrap_or(ports[2 * place]);
            Member {
                name: format!("etcd-{place}"),
                client_url: format!("{scheme}://127.0.0.1:{client}"),
                peer_url: format!("http://127.0.0.1:{}", ports[2 * place + 1]),
                process: Mutex::new(None),
            }
        };
        let members: Vec<_> = (0..members).map(member).collect();
        let peers: Vec<_> = members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
        let directory = TempDir::new().expect("a directory for etcd");
        let etcd = Self { members, initial_cluster: peers.join(","), setup, directory };
        for place in 0..etcd.members.len() {
            etcd.spawn(place);
        }
        for place in 0..etcd.members.len() {
            etcd.wait_until_healthy(place).await;
        }
        etcd
    }

    /// Where the members serve clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client_url.clone()).collect()
    }

    /// Ends a member as a power cut would.
    pub fn kill(&self, place: usize) {
        if let Some(mut child) = self.members[place].process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().expect("kill etcd");
            child.wait().expect("wait for etcd");
        }
    }

    /// Makes a member hang: its connections stay, and nothing is answered.
    pub fn pause(&self, place: usize) {
        self.signal(place, Signal::SIGSTOP);
    }

    pub fn resume(&self, place: usize) {
        self.signal(place, Signal::SIGCONT);
    }

    /// Starts a member that was killed, on its old data.
    pub fn restart(&self, place: usize) {
        self.kill(place);
        self.spawn(place);
    }

    /// Waits until the member answers a read that needs the quorum.
    pub async fn wait_until_healthy(&self, place: usize) {
        let member = &self.members[place];
        let start = Instant::now();
        loop {
            let access = self.setup.tls.as_ref().map(|tls| tls.access.clone()).unwrap_or_default();
            let options = EtcdOptions { access, ..EtcdOptions::default() };
            let ask = async {
                let store = EtcdStore::connect(std::slice::from_ref(&member.client_url), options).await?;
                store.get(&Key::raw("/health")).await
            };
            let problem = match tokio::time::timeout(Duration::from_secs(2), ask).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if start.elapsed() > PATIENCE {
                panic!("{} is not healthy: {problem}\n{}", member.name, self.log(place));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The member that leads the others.
    pub async fn leader(&self) -> usize {
        for place in 0..self.members.len() {
            let mut client =
                etcd_client::Client::connect([&self.members[place].client_url], None).await.expect("connect");
            let status = client.status().await.expect("status of a healthy member");
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return place;
            }
        }
        panic!("no member leads");
    }

    /// Copies everything in it, as an administrator would.
    pub fn save(&self, file: &Path) {
        let endpoint = format!("--endpoints={}", self.members[0].client_url);
        etcdctl(&[&endpoint, "snapshot", "save", file.to_str().expect("a plain name")]);
    }

    /// Puts all members back to what was saved, as an administrator would; they run again, and serve.
    pub async fn put_back(&self, file: &Path) {
        (0..self.members.len()).for_each(|place| self.kill(place));
        for member in &self.members {
            let data = self.directory.path().join(&member.name);
            std::fs::remove_dir_all(&data).expect("etcd's data");
            let option = |name: &str, value: &str| format!("--{name}={value}");
            etcdctl(&[
                "snapshot",
                "restore",
                file.to_str().expect("a plain name"),
                &option("name", &member.name),
                &option("initial-cluster", &self.initial_cluster),
                &option("initial-advertise-peer-urls", &member.peer_url),
                &option("data-dir", data.to_str().expect("a plain name")),
            ]);
        }
        self.start_all().await;
    }

    /// Loses everything, for good; the members run again, with nothing in them.
    pub async fn wipe(&self) {
        for place in 0..self.members.len() {
            self.kill(place);
            std::fs::remove_dir_all(self.directory.path().join(&self.members[place].name)).expect("etcd's data");
        }
        self.start_all().await;
    }

    async fn start_all(&self) {
        (0..self.members.len()).for_each(|place| self.spawn(place));
        for place in 0..self.members.len() {
            self.wait_until_healthy(place).await;
        }
    }

    /// Forgets its history up to now.
    pub async fn compact(&self) {
        let mut client = etcd_client::Client::connect(self.endpoints(), None).await.expect("connect");
        let now = client.get("/", None).await.expect("a read").header().expect("a header").revision();
        client.compact(now, None).await.expect("a compaction");
    }

    /// Writes keys that are nobody's, of so many bytes each, one after the other.
    pub async fn crowd(&self, count: usize, bytes: usize) {
        let mut client = etcd_client::Client::connect(self.endpoints(), None).await.expect("connect");
        for number in 0..count {
            client.put(format!("/crowd/{number}"), vec![b'x'; bytes], None).await.expect("a write");
        }
    }

    fn signal(&self, place: usize, signal: Signal) {
        let process = self.members[place].process.lock().unwrap_or_else(PoisonError::into_inner);
        let child = process.as_ref().expect("the member runs");
        kill(Pid::from_raw(child.id().try_into().expect("a pid")), signal).expect("signal etcd");
    }

    fn log_path(&self, place: usize) -> PathBuf {
        self.directory.path().join(format!("{}.log", self.members[place].name))
    }

    fn log(&self, place: usize) -> String {
        std::fs::read_to_string(self.log_path(place)).unwrap_or_default()
    }

    fn spawn(&self, place: usize) {
        let member = &self.members[place];
        let log = File::options().create(true).append(true).open(self.log_path(place)).expect("etcd's log");
        let mut command = mortal(executable());
        command.args(["--name", &member.name, "--initial-cluster-state", "new", "--logger", "zap"]);
        command.args(["--log-level", "error", "--initial-cluster", &self.initial_cluster]);
        command.args(["--listen-client-urls", &member.client_url, "--advertise-client-urls", &member.client_url]);
        command.args(["--listen-peer-urls", &member.peer_url, "--initial-advertise-peer-urls", &member.peer_url]);
        command.arg("--data-dir").arg(self.directory.path().join(&member.name));
        if let Some(tls) = &self.setup.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            if let Some(ca) = &tls.client_ca {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            }
        }
        if self.setup.unsafe_no_fsync {
            command.arg("--unsafe-no-fsync");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("etcd's log")).stderr(log);
        let child = spawn_for_life(command);
        *member.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|place| self.kill(place));
    }
}

/// Runs `etcdctl` of version 3 to its end.
fn etcdctl(arguments: &[&str]) {
    let mut command = mortal("etcdctl");
    command.env("ETCDCTL_API", "3").args(arguments);
    let output = command.output().expect("this test needs etcdctl: apt-get install etcd-client");
    assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn executable() -> PathBuf {
    if let Some(path) = env::var_os("SYMPHONY_TEST_ETCD") {
        return path.into();
    }
    let places = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&places).map(|place| place.join("etcd")).find(|path: &PathBuf| Path::is_file(path));
    found.expect("this test needs etcd: apt-get install etcd-server")
}
