//! What is hurt: managers, etcd members and block services, on hosts of their own or all on one.

use super::disk::{Disk, Ground};
use super::relay::Relays;
use super::schedule::{Fault, Process, Shape};
use crate::stage::{Control, Daemon, Host, Network, bundle, path_text, symphony, symphony_on, until};
use crate::support::ports::free_ports;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An address of the network that no host has: what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:01";
/// Where etcd serves its clients and its peers.
const ETCD_PORTS: [u16; 2] = [2379, 2380];
const MANAGER_PORT: u16 = 15760;
/// Where relays stand before an etcd member and a manager.
const RELAYED: [u16; 2] = [12379, 25760];

/// One process, what asks it, and what its config directory is on.
struct Node {
    daemon: Daemon,
    /// None of an etcd member.
    control: Option<Control>,
    config: Option<Disk>,
    host: Option<Host>,
}

/// See the module.
pub struct Arena {
    // The processes end before what they stand on does.
    nodes: BTreeMap<Process, Node>,
    pools: Vec<Disk>,
    /// By the place of the host.
    relays: BTreeMap<usize, Relays>,
    network: Option<Network>,
    ground: Option<Ground>,
    pub shape: Shape,
    scratch: Option<tempfile::TempDir>,
}

/// How workers reach what they use, whatever happens to it.
#[derive(Clone, Debug)]
pub struct Reach {
    pub managers: Vec<Control>,
    /// The sockets that block services serve volumes on, by the services' ids.
    pub nbd: BTreeMap<String, PathBuf>,
    /// Where clients are.
    pub client: Option<Host>,
    /// With the certificate of the client `web`.
    pub bundle: PathBuf,
}

impl Arena {
    /// Three managers beside three etcd members and two block services, each pair and each service on a host; none where
    /// this system has no namespaces.
    pub fn of_hosts() -> Option<Self> {
        let names = ["host-0", "host-1", "host-2", "host-3", "host-4", "client"];
        let network = Network::of(names)?;
        let shape = Shape { managers: 3, etcds: 3, blocks: 2, hosts: 5, relays: true, disks: true };
        let mut arena = Self::bare(shape, Some(network));
        for place in 0..3 {
            arena.add_etcd(place);
        }
        // The first manager and the first member are reached without one.
        for place in 1..3 {
            let host = arena.host(place).expect("a host");
            let ports = [(RELAYED[0], ETCD_PORTS[0]), (RELAYED[1], MANAGER_PORT)];
            arena.relays.insert(place, Relays::start(&host, &ports));
        }
        arena.populate();
        Some(arena)
    }

    /// A manager with the embedded store and two block services.
    pub fn of_one_machine() -> Self {
        let mut arena =
            Self::bare(Shape { managers: 1, etcds: 0, blocks: 2, hosts: 0, relays: false, disks: true }, None);
        arena.populate();
        arena
    }

    fn bare(mut shape: Shape, network: Option<Network>) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let ground = Ground::prepare(scratch.path());
        shape.disks &= ground.is_some();
        let (nodes, pools, relays) = Default::default();
        Self { nodes, pools, relays, network, ground, shape, scratch: Some(scratch) }
    }

    pub fn path(&self) -> &Path {
        self.scratch.as_ref().expect("a directory until the end").path()
    }

    /// Says how many of a thousand operations on a block service's volumes are to fail.
    fn fault_file(&self, place: usize) -> PathBuf {
        self.path().join(format!("faults-{place}"))
    }

    fn host(&self, place: usize) -> Option<Host> {
        self.network.as_ref().map(|network| network.host(&format!("host-{place}")).clone())
    }

    fn program(&self, place: usize) -> impl Fn() -> Command + Send + Sync + 'static {
        let (host, home) = (self.host(place), self.path().to_owned());
        move || match &host {
            Some(host) => symphony_on(host, &home),
            None => symphony(std::iter::empty::<&str>()),
        }
    }

    fn add_etcd(&mut self, place: usize) {
        let host = self.host(place).expect("etcd members have hosts of their own");
        let url = |place: usize, port: u16| format!("http://{}:{port}", self.host(place).expect("a host").address);
        let [client, peer] = ETCD_PORTS.map(|port| url(place, port));
        let members: Vec<String> = (0..3).map(|it| format!("etcd-{it}={}", url(it, ETCD_PORTS[1]))).collect();
        let (name, data) = (format!("etcd-{place}"), self.path().join(format!("etcd-{place}")));
        let arguments = [
            ["--name", &name],
            ["--data-dir", path_text(&data)],
            ["--initial-cluster", &members.join(",")],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--logger", "zap"],
            ["--log-level", "error"],
        ];
        let there = host.clone();
        let program = move || there.command("etcd");
        let mut daemon = Daemon::of(&name, self.path(), program, arguments.as_flattened());
        daemon.start();
        self.nodes.insert(Process::Etcd(place), Node { daemon, control: None, config: None, host: Some(host) });
    }

    fn populate(&mut self) {
        let manager_port = match &self.network {
            Some(_) => MANAGER_PORT,
            None => free_ports(1)[0],
        };
        for place in 0..self.shape.managers {
            self.add_manager(place, manager_port);
        }
        let first = self.host(0).map_or("127.0.0.1".to_owned(), |host| host.address);
        for place in 0..self.shape.blocks {
            self.add_block(place, &format!("{first}:{manager_port}"));
        }
        let nothing = self.reach().nbd.len();
        assert_eq!(nothing, self.shape.blocks, "block services have ids of their own");
        bundle(self.manager(0), self.path(), "web", "data");
    }

    /// Where a process keeps its state: on a file system of its own, if this system lets us have one.
    fn config_dir(&mut self, name: &str) -> (PathBuf, Option<Disk>) {
        let disk = self.ground.as_ref().and_then(|_| Disk::memory(self.path().join(name)));
        self.shape.disks &= disk.is_some();
        (self.path().join(name), disk)
    }

    fn add_manager(&mut self, place: usize, port: u16) {
        let name = format!("manager-{place}");
        let (directory, config) = self.config_dir(&name);
        let (host, port) = (self.host(place), port.to_string());
        let mut arguments = vec!["manager", "run", "--config-dir", path_text(&directory), "--listen-port", &port];
        let etcds: Vec<Host> = (0..self.shape.etcds).filter_map(|place| self.host(place)).collect();
        // What a relay stands before on its host is reached through it.
        let through = |place: usize, straight: u16, relayed: u16| match self.relays.contains_key(&place) {
            true => relayed,
            false => straight,
        };
        let url = |(place, host): (usize, &Host)| {
            format!("http://{}:{}", host.address, through(place, ETCD_PORTS[0], RELAYED[0]))
        };
        let urls = etcds.iter().enumerate().map(url).collect::<Vec<_>>().join(",");
        let shown = |host: &Host| format!("{}:{}", host.address, through(place, MANAGER_PORT, RELAYED[1]));
        let address = host.as_ref().map(shown);
        if let Some(address) = &address {
            arguments.extend(["--advertise-address", address, "--etcd-endpoints", &urls]);
        }
        let mut daemon = Daemon::of(&name, self.path(), self.program(place), &arguments);
        let control = Control::of(&directory);
        daemon.start_serving(&control.socket);
        until("a manager that knows its store", || {
            (control.text("manager status", "/state") == "uninitialised").then_some(())
        });
        control.ok("manager init");
        self.nodes.insert(Process::Manager(place), Node { daemon, control: Some(control), config, host });
    }

    fn add_block(&mut self, place: usize, manager: &str) {
        let name = format!("block-{place}");
        let (directory, config) = self.config_dir(&name);
        let on = self.shape.managers + place;
        let host = self.host(on);
        let fault_file = self.fault_file(place);
        let mut arguments =
            vec!["block", "run", "--config-dir", path_text(&directory), "--fail-io", path_text(&fault_file)];
        match &host {
            Some(host) => arguments.extend(["--advertise-address", &host.address]),
            None => arguments.extend(["--listen-port", "0", "--nbd-port", "0"]),
        }
        let mut daemon = Daemon::of(&name, self.path(), self.program(on), &arguments);
        let control = Control::of(&directory);
        daemon.start_serving(&control.socket);
        let token = match &host {
            Some(_) => format!("--token {}", self.manager(0).text("manager token create", "/text")),
            None => String::new(),
        };
        control.ok(&format!("block init {manager} {token}"));
        let service = control.text("block status", "/service/id");
        let path = self.path().join(format!("pool-{place}"));
        let disk = self.ground.as_ref().and_then(|_| Disk::xfs(path.clone()));
        self.shape.disks &= disk.is_some();
        self.manager(0).ok(&format!("pool create pool-{place} --path {} --service {service}", path_text(&path)));
        self.pools.extend(disk);
        self.nodes.insert(Process::Block(place), Node { daemon, control: Some(control), config, host });
    }

    pub fn manager(&self, place: usize) -> &Control {
        self.nodes[&Process::Manager(place)].control.as_ref().expect("managers have sockets")
    }

    pub fn reach(&self) -> Reach {
        let controls = |wanted: fn(&Process) -> bool| {
            let nodes = self.nodes.iter().filter(move |(process, _)| wanted(process));
            nodes.filter_map(|(_, node)| node.control.clone()).collect::<Vec<_>>()
        };
        let nbd = |control: &Control| {
            (control.text("block status", "/service/id"), control.socket.with_file_name("nbd.sock"))
        };
        Reach {
            managers: controls(|it| matches!(it, Process::Manager(_))),
            nbd: controls(|it| matches!(it, Process::Block(_))).iter().map(nbd).collect(),
            client: self.network.as_ref().map(|network| network.host("client").clone()),
            bundle: self.path().join("bundle-web"),
        }
    }

    fn node(&mut self, process: Process) -> &mut Node {
        self.nodes.get_mut(&process).expect("the schedule knows who there is")
    }

    fn start(&mut self, process: Process) {
        let node = self.node(process);
        match node.control.clone() {
            Some(control) => node.daemon.start_serving(&control.socket),
            None => node.daemon.start(),
        }
    }

    pub fn begin(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill(process) => self.kill(*process),
            Fault::Pause(process) => self.node(*process).daemon.signal(Signal::SIGSTOP),
            Fault::Deafen(from, to) => self.cut(*from, *to),
            Fault::Part(one, other) => {
                self.cut(*one, *other);
                self.cut(*other, *one);
            }
            Fault::Isolate(host) => self.isolate(*host),
            Fault::Flicker(..) => {}
            Fault::Slow(host, delay) => self.relays[host].trouble.delay(*delay),
            Fault::HangUp(host) => self.relays[host].trouble.hang_up(true),
            Fault::FillPool(block) => self.pools[*block].fill(),
            Fault::FillConfig(process) => self.node(*process).config.as_ref().expect("a file system").fill(),
            Fault::BreakDisk(block) => self.pools[*block].shut_down(),
            Fault::FailIo(block, share) => std::fs::write(self.fault_file(*block), share.to_string()).expect("a file"),
        }
    }

    pub fn end(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill(process) => self.start(*process),
            Fault::Pause(process) => self.node(*process).daemon.signal(Signal::SIGCONT),
            Fault::Deafen(from, to) => self.mend(*from, *to),
            Fault::Part(one, other) => {
                self.mend(*one, *other);
                self.mend(*other, *one);
            }
            Fault::Isolate(host) => self.rejoin(*host),
            Fault::Flicker(..) => {}
            Fault::Slow(host, _) => self.relays[host].trouble.delay(0),
            Fault::HangUp(host) => self.relays[host].trouble.hang_up(false),
            Fault::FillPool(block) => self.pools[*block].make_room(),
            Fault::FillConfig(process) => self.node(*process).config.as_ref().expect("a file system").make_room(),
            Fault::FailIo(block, _) => {
                std::fs::remove_file(self.fault_file(*block)).expect("the file of the beginning")
            }
            Fault::BreakDisk(block) => {
                self.kill(Process::Block(*block));
                self.pools[*block].remount();
                self.start(Process::Block(*block));
            }
        }
    }

    /// What goes from one host to another is lost from now on.
    fn cut(&self, from: usize, to: usize) {
        if let (Some(from), Some(to)) = (self.host(from), self.host(to)) {
            let arguments = ["neigh", "replace", &to.address, "lladdr", NOWHERE, "nud", "permanent", "dev", "eth0"];
            from.run("ip", &arguments).succeeds();
        }
    }

    fn mend(&self, from: usize, to: usize) {
        if let (Some(from), Some(to)) = (self.host(from), self.host(to)) {
            from.run("ip", &["neigh", "del", &to.address, "dev", "eth0"]).succeeds();
        }
    }

    /// Cuts a host off from all others.
    pub fn isolate(&self, host: usize) {
        self.plug(host, "down");
    }

    pub fn rejoin(&self, host: usize) {
        self.plug(host, "up");
    }

    fn plug(&self, place: usize, state: &str) {
        if let (Some(network), Some(host)) = (&self.network, self.host(place)) {
            network.set_cable(&host, state);
        }
    }

    /// Nobody has ended by itself.
    pub fn assert_alive(&mut self) {
        for node in self.nodes.values_mut() {
            node.daemon.assert_alive();
        }
    }

    /// Asks the first etcd member; none where there is none.
    pub fn etcdctl(&self, arguments: &[&str]) -> Option<String> {
        let host = self.nodes.get(&Process::Etcd(0))?.host.as_ref()?;
        let endpoint = format!("http://{}:{}", host.address, ETCD_PORTS[0]);
        let arguments = [&["ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoint], arguments].concat();
        Some(host.run("env", &arguments).succeeds())
    }

    fn kill(&mut self, process: Process) {
        self.node(process).daemon.kill();
    }

    /// Takes so many etcd members away at once, or brings them back.
    pub fn lose_members(&mut self, places: &[usize]) {
        places.iter().for_each(|place| self.kill(Process::Etcd(*place)));
    }

    pub fn bring_members_back(&mut self, places: &[usize]) {
        places.iter().for_each(|place| self.start(Process::Etcd(*place)));
    }

    /// Sends a manager a signal.
    pub fn signal_manager(&mut self, place: usize, signal: Signal) {
        self.node(Process::Manager(place)).daemon.signal(signal);
    }

    /// The files in the pools' directories.
    pub fn files_in_pools(&self) -> Vec<PathBuf> {
        let pools: Vec<PathBuf> =
            (0..self.shape.blocks).map(|place| self.path().join(format!("pool-{place}"))).collect();
        files_in(&pools)
    }

    /// The files in the config directories.
    pub fn files_in_config(&self) -> Vec<PathBuf> {
        let controls = self.nodes.values().filter_map(|node| node.control.as_ref());
        let directories = controls.filter_map(|control| Some(control.socket.parent()?.to_owned()));
        files_in(&directories.collect::<Vec<_>>())
    }

    /// What each of our processes holds.
    pub fn holdings(&self) -> BTreeMap<String, Holdings> {
        let symphonies = self.nodes.iter().filter(|(_, node)| node.control.is_some());
        symphonies.map(|(process, node)| (format!("{process:?}"), Holdings::of(node.daemon.pid()))).collect()
    }

    /// How many loop devices there are on files of this arena.
    pub fn loop_devices(&self) -> usize {
        let devices = std::fs::read_dir("/sys/block").map_or(Vec::new(), |all| all.flatten().collect());
        let backing = |device: std::fs::DirEntry| {
            // Gone since it was listed, or with nothing behind it.
            std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default()
        };
        devices.into_iter().map(backing).filter(|file| Path::new(file.trim()).starts_with(self.path())).count()
    }
}

/// What a process has open, and what runs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    pub files: usize,
    pub threads: usize,
    pub children: usize,
}

impl Holdings {
    fn of(pid: u32) -> Self {
        let list = |what: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("a process that runs");
            entries.flatten().map(|entry| entry.path()).collect()
        };
        let threads = list("task");
        // A thread may have ended since it was listed.
        let children = |thread: &PathBuf| std::fs::read_to_string(thread.join("children")).unwrap_or_default();
        let children = threads.iter().map(|thread| children(thread).split_whitespace().count()).sum();
        Self { files: list("fd").len(), threads: threads.len(), children }
    }
}

fn files_in(directories: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    directories.iter().for_each(|directory| gather(directory, &mut found));
    found.sort();
    found
}

fn gather(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => gather(&path, found),
            false => found.push(path),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(scratch) = self.scratch.take()
        {
            eprintln!("the logs of all processes are in {}", scratch.keep().display());
        }
    }
}
