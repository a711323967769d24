//! Several hosts on one machine: network namespaces, each at the end of a cable to a switch that is a namespace too.
//!
//! Nothing of it touches the network that the tests themselves run in. Addresses may be the same in every test.

use super::command::{Outcome, finish};
use super::tools::tool;
use crate::support::process::mortal;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A switch, and the hosts that are plugged in. All of it goes with the test.
pub struct Network {
    tag: String,
    hosts: Vec<Host>,
}

/// One host, by its place in the network: `10.214.0.PLACE`.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    pub name: String,
    pub address: String,
}

impl Network {
    /// A network of hosts with these names; none where this system makes no namespaces, which is said.
    pub fn of<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root makes network namespaces");
            return None;
        }
        let tag = format!("sy{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { tag, hosts: Vec::new() };
        let switch = network.switch();
        let made = tool("ip", &["netns", "add", &switch]);
        if made.code != Some(0) {
            eprintln!("skipped: this system makes no network namespaces: {}", made.stderr);
            return None;
        }
        let bridged = tool("ip", &["-n", &switch, "link", "add", "bridge", "type", "bridge"]);
        if bridged.code != Some(0) {
            eprintln!("skipped: this system makes no bridges: {}", bridged.stderr);
            return None;
        }
        tool("ip", &["-n", &switch, "link", "set", "bridge", "up"]).succeeds();
        for (index, name) in names.into_iter().enumerate() {
            network.plug_in(name, index + 1);
        }
        Some(network)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    fn plug_in(&mut self, name: &str, place: usize) {
        let (switch, namespace) = (self.switch(), format!("{}-{place}", self.tag));
        let host = Host { namespace, name: name.to_owned(), address: format!("10.214.0.{place}") };
        let (cable, address) = (format!("port{place}"), format!("{}/24", host.address));
        let inside = ["-n", host.namespace.as_str()];
        tool("ip", &["netns", "add", &host.namespace]).succeeds();
        // Named before anything of it can fail, so that it goes with the network.
        self.hosts.push(host.clone());
        tool(
            "ip",
            &["-n", &switch, "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &host.namespace],
        )
        .succeeds();
        tool("ip", &["-n", &switch, "link", "set", &cable, "master", "bridge", "up"]).succeeds();
        tool("ip", &[&inside[..], &["addr", "add", &address, "dev", "eth0"]].concat()).succeeds();
        tool("ip", &[&inside[..], &["link", "set", "eth0", "up"]].concat()).succeeds();
        tool("ip", &[&inside[..], &["link", "set", "lo", "up"]].concat()).succeeds();
    }

    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("no host '{name}'"))
    }

    /// Sets a host's cable `up` or `down`, at the switch: the host itself notices nothing but silence.
    pub fn set_cable(&self, host: &Host, state: &str) {
        let place = host.address.rsplit('.').next().expect("an address");
        tool("ip", &["-n", &self.switch(), "link", "set", &format!("port{place}"), state]).succeeds();
    }

    /// What `/etc/hosts` says everywhere.
    pub fn names(&self) -> String {
        let lines = self.hosts.iter().map(|host| format!("{} {}\n", host.address, host.name));
        std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines).collect()
    }
}

impl Host {
    /// A program on this host; it goes with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = mortal("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Moves the calling thread to this host, for good: connections that it makes come from there.
    pub fn enter(&self) {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace)).expect("a namespace");
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter a namespace");
    }

    /// Runs a program on this host to its end.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.command(program);
        command.args(arguments);
        finish(command)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let switch = self.switch();
        let namespaces = self.hosts.iter().map(|host| host.namespace.as_str()).chain([switch.as_str()]);
        for namespace in namespaces {
            let mut command = Command::new("ip");
            command.args(["netns", "del", namespace]);
            // After a failure some of them may not be there.
            if let Err(error) = command.output() {
                eprintln!("the namespace {namespace} stays: {error}");
            }
        }
    }
}
