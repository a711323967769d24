//! Which faults happen when: a pure function of a seed, of what there is to hurt, and of how long it shall go on.

use std::collections::BTreeMap;
use std::fmt;

/// What there is to hurt. Hosts have their managers and etcd members first, then their block services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub managers: usize,
    pub etcds: usize,
    pub blocks: usize,
    /// None where all are on one host.
    pub hosts: usize,
    /// Managers and etcd members but the first of each are reached through relays.
    pub relays: bool,
    /// Block services' pools and everybody's config directories are file systems of their own.
    pub disks: bool,
}

/// Somebody who can be killed, by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    Manager(usize),
    Etcd(usize),
    Block(usize),
}

/// What is wrong from the beginning of a strike to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Killed with SIGKILL; started again at the end.
    Kill(Process),
    /// Stopped with SIGSTOP; goes on at the end.
    Pause(Process),
    /// Packets from the first host to the second are lost, and to nobody else's knowledge.
    Deafen(usize, usize),
    /// Nothing gets through between two hosts.
    Part(usize, usize),
    /// A host is cut off from all others.
    Isolate(usize),
    /// A host's cable has a loose contact: it loses everything in these spans of milliseconds since the beginning.
    Flicker(usize, Vec<(u64, u64)>),
    /// What is said to the manager and the etcd member of a host, and what they answer, takes so many milliseconds more.
    Slow(usize, u64),
    /// Connections to the manager and the etcd member of a host break at random.
    HangUp(usize),
    /// The file system of a block service's pool is full.
    FillPool(usize),
    /// The file system of a process's config directory is full.
    FillConfig(Process),
    /// So many of a thousand operations of clients on a service's volumes fail, by the layer for that in `io`.
    FailIo(usize, u16),
    /// Every access to a pool's file system fails; at the end the service is killed, the disk replaced, the service started.
    BreakDisk(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Since the beginning of the run, in milliseconds.
    pub at: u64,
    pub lasts: u64,
    pub fault: Fault,
}

/// What must not be hurt twice at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Process(Process),
    Network,
    Relays(usize),
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} ms for {:>5} ms: {:?}", self.at, self.lasts, self.fault)
    }
}

impl Fault {
    fn target(&self) -> Target {
        match self {
            Fault::Kill(process) | Fault::Pause(process) | Fault::FillConfig(process) => Target::Process(*process),
            Fault::FillPool(block) | Fault::BreakDisk(block) | Fault::FailIo(block, _) => {
                Target::Process(Process::Block(*block))
            }
            // Cuts are mended one by one, so that one must not mend what another has cut.
            Fault::Slow(host, _) | Fault::HangUp(host) => Target::Relays(*host),
            Fault::Deafen(..) | Fault::Part(..) | Fault::Isolate(_) | Fault::Flicker(..) => Target::Network,
        }
    }

    fn random(random: &mut fastrand::Rng, shape: &Shape) -> Self {
        let processes = shape.processes();
        let anybody = processes[random.usize(..processes.len())];
        let block = random.usize(..shape.blocks);
        let networks = if shape.hosts > 1 { 6 } else { 0 };
        let relays = if shape.relays { 2 } else { 0 };
        let disks = if shape.disks { 4 } else { 0 };
        match random.u32(..10 + networks + relays + disks) {
            0..5 => Fault::Kill(anybody),
            5..8 => Fault::Pause(anybody),
            8 | 9 => Fault::FailIo(block, [20, 200, 1000][random.usize(..3)]),
            kind if kind < 10 + networks => Self::of_network(random, shape.hosts, kind - 10),
            kind if kind < 10 + networks + relays => {
                let host = random.usize(1..shape.managers);
                if random.bool() { Fault::Slow(host, random.u64(10..700)) } else { Fault::HangUp(host) }
            }
            kind => match (kind - 10 - networks - relays, anybody) {
                (0, _) => Fault::FillPool(block),
                (1, _) | (_, Process::Etcd(_)) => Fault::BreakDisk(block),
                _ => Fault::FillConfig(anybody),
            },
        }
    }

    fn of_network(random: &mut fastrand::Rng, hosts: usize, kind: u32) -> Self {
        let from = random.usize(..hosts);
        let to = (from + random.usize(1..hosts)) % hosts;
        match kind {
            0 | 1 => Fault::Deafen(from, to),
            2 => Fault::Part(from, to),
            3 => Fault::Isolate(from),
            _ => Fault::Flicker(from, gaps(random)),
        }
    }
}

/// A loose contact: losses of up to a fifth of a second.
fn gaps(random: &mut fastrand::Rng) -> Vec<(u64, u64)> {
    let mut at = 0;
    let gap = |_| {
        let (from, to) = (at + random.u64(20..300), random.u64(20..200));
        at = from + to;
        (from, at)
    };
    (0..12).map(gap).collect()
}

impl Shape {
    pub fn processes(&self) -> Vec<Process> {
        let managers = (0..self.managers).map(Process::Manager);
        let (etcds, blocks) = ((0..self.etcds).map(Process::Etcd), (0..self.blocks).map(Process::Block));
        managers.chain(etcds).chain(blocks).collect()
    }
}

/// Strikes in the order in which they begin; all are over by `length` milliseconds.
pub fn plan(seed: u64, shape: &Shape, length: u64) -> Vec<Strike> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut at, mut strikes) = (0, Vec::new());
    let mut free: BTreeMap<Target, u64> = BTreeMap::new();
    loop {
        // Sometimes one upon the other, sometimes time to recover.
        at += if random.bool() { random.u64(50..700) } else { random.u64(700..3500) };
        let fault = Fault::random(&mut random, shape);
        let lasts = duration(&mut random, &fault);
        if at + lasts > length {
            return strikes;
        }
        let busy = free.entry(fault.target()).or_default();
        if *busy <= at {
            *busy = at + lasts + 100;
            strikes.push(Strike { at, lasts, fault });
        }
    }
}

/// Short ones are about what an operation takes; long ones outlast every lease.
fn duration(random: &mut fastrand::Rng, fault: &Fault) -> u64 {
    match fault {
        Fault::Flicker(_, gaps) => gaps.last().map_or(0, |(_, end)| end + 10),
        Fault::Kill(_) if random.bool() => random.u64(1..50),
        _ => match random.u8(..4) {
            0 | 1 => random.u64(50..1500),
            2 => random.u64(1500..4500),
            _ => random.u64(5500..9000),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: Shape = Shape { managers: 3, etcds: 3, blocks: 2, hosts: 5, relays: true, disks: true };
    const ONE: Shape = Shape { managers: 1, etcds: 0, blocks: 2, hosts: 0, relays: false, disks: false };

    #[test]
    fn a_seed_has_one_schedule_and_another_seed_another() {
        assert_eq!(plan(7, &HOSTS, 60_000), plan(7, &HOSTS, 60_000));
        assert_ne!(plan(7, &HOSTS, 60_000), plan(8, &HOSTS, 60_000));
    }

    #[test]
    fn a_longer_run_begins_as_a_shorter_one_does() {
        let (short, long) = (plan(3, &HOSTS, 30_000), plan(3, &HOSTS, 90_000));
        let before = |strikes: &[Strike]| strikes.iter().filter(|it| it.at < 20_000).cloned().collect::<Vec<_>>();
        assert_eq!(before(&short), before(&long));
    }

    #[test]
    fn nobody_is_hurt_twice_at_once_and_all_is_over_at_the_end() {
        for seed in 0..200 {
            let strikes = plan(seed, &HOSTS, 60_000);
            assert!(strikes.iter().all(|it| it.at + it.lasts <= 60_000));
            for (number, one) in strikes.iter().enumerate() {
                let beside =
                    |other: &&Strike| other.at < one.at + one.lasts && other.fault.target() == one.fault.target();
                assert_eq!(strikes[number + 1..].iter().find(beside), None, "seed {seed}: {one}");
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes_up_where_it_can_and_none_where_it_cannot() {
        let kinds = |shape: &Shape| {
            let all = (0..40).flat_map(|seed| plan(seed, shape, 60_000));
            all.map(|it| std::mem::discriminant(&it.fault)).collect::<std::collections::HashSet<_>>()
        };
        assert_eq!((kinds(&HOSTS).len(), kinds(&ONE).len()), (12, 3));
    }
}
