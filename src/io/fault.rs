//! A layer that makes chosen operations fail, tear or wait, over any other [`BlockIo`]: for tests of what stands above
//! it.
//!
//! It decides before the layer below is asked: an operation that fails here has changed nothing, but for a write that is
//! torn. A flush or durable write that fails is remembered, as the trait asks for, until the layer is healed.
//!
//! What a layer does is decided by who made it, call by call, or from outside its process, by a [`FaultFile`].

use super::crash::SECTOR;
use super::{BlockIo, Extent, RawFile};
use nix::errno::Errno;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The verbs of [`BlockIo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Flush,
    Trim,
    Zero,
    Prefetch,
    Extents,
}

/// One operation that reached the layer, faulty or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Performed {
    pub operation: Operation,
    pub offset: u64,
    pub length: u64,
    pub fua: bool,
}

/// What happens to an operation that a [`Fault`] matches.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It fails with this `errno`.
    Fail(i32),
    /// A write reaches the layer below with so many sectors of its front, then fails with this `errno`; anything else
    /// just fails.
    Tear { sectors: usize, errno: i32 },
    /// It waits until the gate is opened, then goes on.
    Hold(Arc<Gate>),
}

/// One line of the script.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Absent: any operation.
    pub operation: Option<Operation>,
    /// Which bytes must be touched; absent: any, and operations without a range.
    pub range: Option<Range<u64>>,
    /// So many matching operations pass first.
    pub skip: u64,
    /// So many matching operations are hit then.
    pub hits: u64,
    pub effect: Effect,
}

impl Fault {
    /// Every such operation fails with `errno`.
    pub fn every(operation: Operation, errno: i32) -> Self {
        Self { operation: Some(operation), range: None, skip: 0, hits: u64::MAX, effect: Effect::Fail(errno) }
    }

    /// The next such operation fails with `errno`, and that was all.
    pub fn once(operation: Operation, errno: i32) -> Self {
        Self { hits: 1, ..Self::every(operation, errno) }
    }

    /// The next write ends behind so many sectors, and fails with `errno`.
    pub fn torn(sectors: usize, errno: i32) -> Self {
        Self { effect: Effect::Tear { sectors, errno }, ..Self::once(Operation::Write, errno) }
    }

    /// The next such operation waits at the gate.
    pub fn hold(operation: Operation, gate: &Arc<Gate>) -> Self {
        let effect = Effect::Hold(Arc::clone(gate));
        Self { operation: Some(operation), range: None, skip: 0, hits: 1, effect }
    }

    fn matches(&self, performed: &Performed) -> bool {
        let touched = |range: &Range<u64>| {
            performed.offset < range.end && range.start < performed.offset.saturating_add(performed.length)
        };
        self.operation.is_none_or(|operation| operation == performed.operation)
            && self.range.as_ref().is_none_or(touched)
    }
}

/// Holds operations until it is opened, and tells who waits for them that they have come.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    waiting: usize,
    open: bool,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Returns when `count` operations have come to the gate.
    pub fn wait_for(&self, count: usize) {
        let mut state = self.lock();
        while state.waiting < count {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.open {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that says, as long as it is there, how many of a thousand operations fail with `EIO`: a decimal number. Anything
/// else in it is none of them. Once it is gone the medium is healed.
#[derive(Clone, Debug)]
pub struct FaultFile(PathBuf);

impl FaultFile {
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self(file.into())
    }

    fn is_there(&self) -> bool {
        self.0.exists()
    }

    fn per_mille(&self) -> Option<u16> {
        let said = std::fs::read_to_string(&self.0).ok()?;
        Some(said.trim().parse().unwrap_or_default())
    }
}

/// See the module.
pub struct FaultIo {
    below: Arc<dyn BlockIo>,
    plan: Mutex<Plan>,
    fault_file: Option<FaultFile>,
}

#[derive(Default)]
struct Plan {
    script: Vec<Fault>,
    dice: Option<Dice>,
    log: Vec<Performed>,
    /// Of a flush or a durable write that failed: the answer to every flush from then on.
    lost: Option<i32>,
}

struct Dice {
    random: fastrand::Rng,
    per_mille: u16,
    errno: i32,
}

impl FaultIo {
    /// A layer that does nothing until it is told to.
    pub fn new(below: Arc<dyn BlockIo>) -> Self {
        Self { below, plan: Mutex::default(), fault_file: None }
    }

    /// A layer that fails `per_mille` of a thousand operations with `errno`; the seed decides which.
    pub fn seeded(below: Arc<dyn BlockIo>, seed: u64, per_mille: u16, errno: i32) -> Self {
        let dice = Some(Dice { random: fastrand::Rng::with_seed(seed), per_mille, errno });
        Self { below, plan: Mutex::new(Plan { dice, ..Plan::default() }), fault_file: None }
    }

    /// A layer that fails what the file says. As long as it is not there, engines may go around it.
    pub fn told_by(below: Arc<dyn BlockIo>, fault_file: FaultFile) -> Self {
        Self { below, plan: Mutex::default(), fault_file: Some(fault_file) }
    }

    /// Adds a line to the script. The first line that matches an operation has its effect.
    pub fn inject(&self, fault: Fault) {
        self.plan().script.push(fault);
    }

    /// Forgets the script, the dice and what was lost, as if the medium had been replaced.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.script.clear();
        plan.dice = None;
        plan.lost = None;
    }

    /// Every operation so far, in order of arrival.
    pub fn performed(&self) -> Vec<Performed> {
        self.plan().log.clone()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, performed: Performed) -> Option<Effect> {
        let mut plan = self.plan();
        let Some(fault_file) = &self.fault_file else { return plan.decide(performed) };
        match fault_file.per_mille() {
            Some(per_mille) => (fastrand::u16(0..1000) < per_mille).then_some(Effect::Fail(Errno::EIO as i32)),
            None => {
                plan.lost = None;
                None
            }
        }
    }

    fn meet(&self, operation: Operation, offset: u64, length: u64) -> io::Result<()> {
        let performed = Performed { operation, offset, length, fua: false };
        act(self.decide(performed))
    }
}

fn act(effect: Option<Effect>) -> io::Result<()> {
    match effect {
        None => Ok(()),
        Some(Effect::Fail(errno) | Effect::Tear { errno, .. }) => Err(io::Error::from_raw_os_error(errno)),
        Some(Effect::Hold(gate)) => {
            gate.pass();
            Ok(())
        }
    }
}

impl Plan {
    /// What a flush, or a write that was to be durable, comes to from now on.
    fn remember(&mut self, error: &io::Error) {
        self.lost.get_or_insert(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    }

    fn decide(&mut self, performed: Performed) -> Option<Effect> {
        self.log.push(performed);
        for fault in self.script.iter_mut().filter(|fault| fault.matches(&performed)) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.hits > 0 {
                fault.hits -= 1;
                return Some(fault.effect.clone());
            }
        }
        let dice = self.dice.as_mut()?;
        (dice.random.u16(0..1000) < dice.per_mille).then_some(Effect::Fail(dice.errno))
    }
}

impl BlockIo for FaultIo {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.meet(Operation::Read, offset, buffer.len() as u64)?;
        self.below.read(buffer, offset)
    }

    fn write(&self, buffer: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let performed = Performed { operation: Operation::Write, offset, length: buffer.len() as u64, fua };
        let effect = self.decide(performed);
        let outcome = match &effect {
            Some(Effect::Tear { sectors, .. }) => {
                let front = buffer.len().min(sectors.saturating_mul(SECTOR));
                let front = buffer.get(..front).unwrap_or_default();
                self.below.write(front, offset, false).and_then(|()| act(effect))
            }
            _ => act(effect).and_then(|()| self.below.write(buffer, offset, fua)),
        };
        if let (Err(error), true) = (&outcome, fua) {
            self.plan().remember(error);
        }
        outcome
    }

    fn flush(&self) -> io::Result<()> {
        let outcome = self.meet(Operation::Flush, 0, 0).and_then(|()| self.below.flush());
        let mut plan = self.plan();
        if let Err(error) = &outcome {
            plan.remember(error);
        }
        plan.lost.map_or(outcome, |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.meet(Operation::Trim, offset, length)?;
        self.below.trim(offset, length)
    }

    fn zero(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        self.meet(Operation::Zero, offset, length)?;
        self.below.zero(offset, length, may_punch)
    }

    fn zero_fast(&self, offset: u64, length: u64, may_punch: bool) -> io::Result<()> {
        self.meet(Operation::Zero, offset, length)?;
        self.below.zero_fast(offset, length, may_punch)
    }

    fn prefetch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.meet(Operation::Prefetch, offset, length)?;
        self.below.prefetch(offset, length)
    }

    fn raw(&self) -> Option<&RawFile> {
        // Who goes around this layer meets no faults.
        self.fault_file.as_ref().filter(|file| !file.is_there()).and_then(|_| self.below.raw())
    }

    fn expect_questions(&self) {
        self.below.expect_questions();
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        self.meet(Operation::Extents, offset, length)?;
        self.below.extents(offset, length, limit)
    }
}
