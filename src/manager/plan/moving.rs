//! Moves of volumes from pool to pool. The rules are drawn in [`crate::model::Moving`]; here is who takes which step.
//!
//! 1. An operator, or the leader for a service that is being emptied, asks for it: the volume is held, its copy is promised
//!    its room. From now on nobody can be attached, and nothing of the volume changes.
//! 2. The source's block service reports that it serves the volume no more: the leader lets the copy begin.
//! 3. The target's block service reports that all bytes are there, compared and durable: the leader gives the copy the name,
//!    in one transaction with the end of the volume's own.
//! 4. It reports that it serves them under that name: the leader sets the tombstone of what was left.
//!
//! Up to step 3 a move is called off by anybody, and by whatever takes one of the two out of the state; the volume is then
//! what it was. Between 3 and 4, if the new place is declared lost, what was left becomes the volume again. Every step
//! compares both records, so that it is taken once, and not at all beside anything else that is done to either.

use super::attachment::know_all_attachments;
use super::copying::uncopied;
use super::pool::listed;
use super::volume::{detached, named_pool, pool_of, promise_volume};
use super::{find, look_up};
use crate::manager::audit::{audit, managers};
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{
    Author, ByteSize, Kind, Moving, Name, Phase, Pool, Replica, Service, ServiceId, ServiceState, Supply, Volume,
    VolumeId, VolumeSpec,
};

/// Moves a volume to the pool that is named. Repeating it changes nothing.
///
/// # Errors
/// If somebody uses the volume, or something depends on where it is: both are named. If the pool cannot take it.
pub fn move_volume(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    pool: &str,
    copy: VolumeId,
) -> Result<Volume, Refusal> {
    let volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    let wanted = look_up::<Pool>(draft, pool)?;
    match volume.spec.moving.as_deref() {
        Some(Moving::Leaving { pool, .. }) if *pool == wanted.meta.id => return Ok(volume),
        None if volume.is_in(wanted.meta.id) && !volume.meta.is_removed() => return Ok(volume),
        _ => {}
    }
    movable(draft, &volume)?;
    let wanted = named_pool(draft, pool, volume.spec.size)?;
    living(draft, wanted.spec.service, &format!("pool '{}' is on", wanted.meta.name))?;
    begin(draft, author, volume, wanted, (copy, false)).inspect(|volume| {
        tracing::debug!(%name, copy = ?volume.successor(), "a move is asked for");
    })
}

/// Holds the volume and makes room for its copy. The caller has made sure that it may move, and that the pool is fit.
pub(super) fn begin(
    draft: &mut Draft<'_>,
    author: &Author,
    mut volume: Volume,
    mut pool: Pool,
    (copy, drain): (VolumeId, bool),
) -> Result<Volume, Refusal> {
    let (id, name, size) = (volume.meta.id, volume.meta.name.clone(), volume.spec.size);
    let source = volume.status.placement.first().copied();
    let source = source.ok_or_else(|| Refusal::Precondition(format!("volume '{name}' is nowhere")))?;
    let copy_name = Name::resembling(&format!("{}{copy}", Moving::PREFIX), "moving");
    draft.claim(Kind::Volume, &copy_name, copy)?;
    let promised = promise_volume(&mut pool, size, ByteSize::ZERO)?;
    let (to, service) = (pool.meta.id, pool.spec.service);
    draft.guard::<Service>(service);
    let supply = Supply {
        volume: id,
        pool: source.pool,
        service: source.service,
        address: address_of(draft, source.service),
        length: size,
        sha256: None,
    };
    let arriving = Some(Box::new(Moving::Arriving { supply, begun: false }));
    let spec = VolumeSpec { moving: arriving, ..VolumeSpec::of_size(size) };
    let mut made = Volume::new(draft.new_meta(copy, copy_name), spec, vec![Replica { pool: to, service }]);
    made.status.promised = Some(promised);
    volume.spec.moving = Some(Box::new(Moving::Leaving { to: copy, pool: to, service, drain }));
    volume.meta.touch(draft.now);
    volume.status.phase = Phase::Pending;
    let why = if drain { ", as its service is being drained" } else { "" };
    let detail = format!("to pool '{}' begins{why}", pool.meta.name);
    audit(draft, author, "volume.move", Kind::Volume, id, &name, Some(detail));
    draft.put(pool);
    draft.put(made);
    draft.put(volume.clone());
    Ok(volume)
}

/// Calls a move off. Repeating it changes nothing.
///
/// # Errors
/// If the volume is not being moved, or has been moved already.
pub fn cancel_move(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Volume, Refusal> {
    let volume = find::<Volume>(draft, reference)?;
    let name = volume.meta.name.clone();
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    if volume.status.left.is_some() {
        return Err(Refusal::Precondition(format!(
            "volume '{name}' has been moved: only what it has left behind is still to go; to have it back, move it once more"
        )));
    }
    Ok(call_off(draft, author, volume))
}

/// Lets a volume stay where it is, if it is leaving; its copy goes.
pub(super) fn call_off(draft: &mut Draft<'_>, author: &Author, mut volume: Volume) -> Volume {
    let Some(copy) = volume.successor() else { return volume };
    bury_copy(draft, copy);
    stay(draft, &mut volume);
    let detail = Some("is called off".to_owned());
    audit(draft, author, "volume.move", Kind::Volume, volume.meta.id, &volume.meta.name, detail);
    draft.put(volume.clone());
    volume
}

fn stay(draft: &Draft<'_>, volume: &mut Volume) {
    volume.spec.moving = None;
    volume.meta.touch(draft.now);
    volume.status.phase = if volume.meta.is_removed() { Phase::Removing } else { Phase::Pending };
    volume.status.message = None;
}

fn bury_copy(draft: &mut Draft<'_>, copy: VolumeId) {
    let copy = draft.get::<Volume>(copy).filter(|copy| copy.predecessor().is_some()).cloned();
    if let Some(mut copy) = copy
        && copy.bury(draft.now)
    {
        draft.put(copy);
    }
}

/// Takes along what belongs to a volume whose tombstone is set: a copy that is being made, and what it has left elsewhere.
pub(super) fn bury_along(draft: &mut Draft<'_>, volume: &Volume) {
    if let Some(copy) = volume.successor() {
        bury_copy(draft, copy);
    }
    if let Some(left) = volume.status.left
        && let Some(mut left) = draft.get::<Volume>(left).cloned()
        && left.bury(draft.now)
    {
        draft.put(left);
    }
}

/// Takes note that a volume is out of the state: what was to be moved stays, what was being copied goes, and what was left
/// behind by one that is lost is the volume again. The name of the lost one is free already.
pub(super) fn forget_move(draft: &mut Draft<'_>, gone: &Volume) {
    let id = gone.meta.id;
    if let Some(copy) = gone.successor() {
        bury_copy(draft, copy);
    }
    if let Some(Moving::Left { to }) = gone.spec.moving.as_deref()
        && let Some(mut volume) = draft.get::<Volume>(*to).filter(|it| it.status.left == Some(id)).cloned()
    {
        volume.status.left = None;
        draft.put(volume);
    }
    let left_behind = |it: &Volume| matches!(it.spec.moving.as_deref(), Some(Moving::Left { to }) if *to == id);
    let waits = |it: &&Volume| it.successor() == Some(id) || left_behind(it);
    let other = gone.predecessor().or(gone.status.left);
    let other = other.and_then(|id| draft.get::<Volume>(id)).filter(waits).cloned();
    let Some(mut other) = other.filter(|other| !other.meta.is_removed()) else { return };
    if left_behind(&other) {
        draft.release(Kind::Volume, &other.meta.name);
        other.meta.name = gone.meta.name.clone();
        draft.set_name(Kind::Volume, &other.meta.name, Some(other.meta.id.to_string()));
    }
    stay(draft, &mut other);
    let detail = Some("did not come to its end: the copy is lost".to_owned());
    audit(draft, &managers(), "volume.move", Kind::Volume, other.meta.id, &other.meta.name, detail);
    draft.put(other);
}

/// Ends a move without a word of the devices, where the state is older than they are: the copy may be more than a copy by
/// now. The volume stays where the state says that it is; the copy is nobody's, and nothing happens to its bytes.
pub(super) fn void_move(draft: &mut Draft<'_>, volume: &Volume) {
    let (volume, copy) = match (volume.successor(), volume.predecessor()) {
        (Some(copy), _) => (Some(volume.clone()), draft.get::<Volume>(copy).cloned()),
        (None, Some(id)) => (draft.get::<Volume>(id).cloned(), Some(volume.clone())),
        (None, None) => return,
    };
    if let Some(mut volume) = volume.filter(|volume| volume.successor().is_some()) {
        stay(draft, &mut volume);
        draft.put(volume);
    }
    if let Some(mut copy) = copy.filter(|copy| copy.predecessor().is_some()) {
        // There is nothing left for it to call off.
        copy.spec.moving = None;
        super::volume::forget_volume(draft, &copy);
    }
}

/// # Errors
/// If the volume is being moved: nothing else is done to it meanwhile.
pub(super) fn settled(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let Some(Moving::Leaving { pool, .. }) = volume.spec.moving.as_deref() else { return Ok(()) };
    let name = &volume.meta.name;
    let pool = draft.get::<Pool>(*pool).map_or_else(|| pool.to_string(), |pool| pool.meta.name.to_string());
    Err(Refusal::Precondition(format!(
        "volume '{name}' is being moved to pool '{pool}': try again once it is there, or call that off with `symphony ctl \
         volume move {name} --cancel`"
    )))
}

/// # Errors
/// If the volume is one end of a move, and no volume of its own.
pub(super) fn own_end(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let name = &volume.meta.name;
    let of = |id: VolumeId| draft.get::<Volume>(id).map_or_else(|| id.to_string(), |it| it.meta.name.to_string());
    match volume.spec.moving.as_deref() {
        Some(Moving::Arriving { supply, .. }) => Err(Refusal::Precondition(format!(
            "volume '{name}' is no volume of its own yet: volume '{}' is being moved to it",
            of(supply.volume)
        ))),
        Some(Moving::Left { to }) => Err(Refusal::Precondition(format!(
            "volume '{name}' is what volume '{}' has left behind, and goes as soon as that one is served",
            of(*to)
        ))),
        Some(Moving::Leaving { .. }) | None => Ok(()),
    }
}

/// # Errors
/// If the volume cannot leave its place now: who uses it, or what depends on it, is named.
pub(super) fn movable(draft: &Draft<'_>, volume: &Volume) -> Result<(), Refusal> {
    let name = volume.meta.name.clone();
    let refuse = |text: String| Err(Refusal::Precondition(text));
    if volume.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Volume, name });
    }
    settled(draft, volume)?;
    if volume.status.left.is_some() {
        return refuse(format!("volume '{name}' has only just been moved: move it on once it is ready there"));
    }
    if draft.view().withholds() {
        let text = "some of the state cannot be read, or is still being recovered from disks, so it is not known what \
                    depends on the volume: see `symphony ctl check`";
        return refuse(text.into());
    }
    know_all_attachments(draft)?;
    detached(draft, volume)?;
    let snapshots = draft.snapshots_to(volume);
    if !snapshots.is_empty() {
        let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.meta.name.as_str()).collect();
        return refuse(format!(
            "volume '{name}' has snapshots {}, which cannot move: remove them first with `symphony ctl snapshot remove`",
            listed(&names)
        ));
    }
    uncopied(draft, volume, "move")?;
    let (status, generation) = (&volume.status, volume.meta.generation);
    if (status.phase, status.observed_generation, status.size) != (Phase::Ready, generation, Some(volume.spec.size)) {
        return refuse(format!("volume '{name}' is not ready: see `symphony ctl volume get {name}`"));
    }
    status.placement.iter().try_for_each(|replica| living(draft, replica.service, &format!("volume '{name}' is on")))
}

/// # Errors
/// If the service does not answer: nothing can be copied to or from it.
fn living(draft: &Draft<'_>, service: ServiceId, what: &str) -> Result<(), Refusal> {
    match draft.get::<Service>(service).map(|service| service.status.state) {
        Some(ServiceState::Ready) => Ok(()),
        Some(ServiceState::Joined | ServiceState::Down | ServiceState::Removed) | None => Err(Refusal::Precondition(
            format!("{what} block service {service}, which does not answer: see `symphony ctl service get {service}`"),
        )),
    }
}

fn address_of(draft: &Draft<'_>, service: ServiceId) -> Option<String> {
    draft.get::<Service>(service).and_then(|service| service.status.addresses.rpc.clone())
}

/// What is to be done next about one end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nobody uses the volume any more: the copy begins.
    Begin,
    /// All of it has arrived: the copy becomes the volume.
    Switch,
    /// The volume is served where it is now: what it has left goes.
    Clear,
    /// What it was a copy of is gone, or stays: it goes.
    Abandon,
}

/// Whether a block service holds a volume as its present generation says, and lets nobody use it. One of a version that
/// knows nothing of moves serves it all the same, and is not believed.
fn is_still(volume: &Volume) -> bool {
    let status = &volume.status;
    let current = status.observed_generation == volume.meta.generation && status.phase == Phase::Ready;
    current && status.size.is_some() && status.exports.is_empty() && !volume.meta.is_removed()
}

fn step<'v>(volume: &'v Volume, get: impl Fn(VolumeId) -> Option<&'v Volume>) -> Option<Step> {
    if volume.meta.is_removed() {
        return None;
    }
    let id = volume.meta.id;
    match volume.spec.moving.as_deref()? {
        Moving::Leaving { .. } => None,
        Moving::Arriving { supply, begun } => match get(supply.volume).filter(|it| it.successor() == Some(id)) {
            None => Some(Step::Abandon),
            Some(source) if source.meta.is_removed() => Some(Step::Abandon),
            Some(source) if !begun => is_still(source).then_some(Step::Begin),
            Some(_) => is_still(volume).then_some(Step::Switch),
        },
        Moving::Left { to } => {
            let served =
                |it: &Volume| it.status.phase == Phase::Ready && it.status.observed_generation == it.meta.generation;
            get(*to).is_some_and(served).then_some(Step::Clear)
        }
    }
}

/// The copies, and what was left behind, that something is to be done about now. They are found by their names.
pub fn due_moves(view: &View) -> Vec<VolumeId> {
    let Ok(first) = Moving::PREFIX.parse::<Name>() else { return Vec::new() };
    let named = view.names.range((Kind::Volume, first)..);
    let named =
        named.take_while(|((kind, name), _)| *kind == Kind::Volume && name.as_str().starts_with(Moving::PREFIX));
    let ends =
        named.filter_map(|(_, held)| held.value.parse::<VolumeId>().ok()).filter_map(|id| view.get::<Volume>(id));
    ends.filter(|end| step(end, |id| view.get::<Volume>(id)).is_some()).map(|end| end.meta.id).collect()
}

/// Takes the next step of a move, if one is due for this end of it.
///
/// # Errors
/// None of its own.
pub fn advance_move(draft: &mut Draft<'_>, author: &Author, end: VolumeId) -> Result<(), Refusal> {
    let Some(mut end) = draft.get::<Volume>(end).cloned() else { return Ok(()) };
    let other = |id| draft.get::<Volume>(id);
    let Some(step) = step(&end, other) else { return Ok(()) };
    match step {
        Step::Begin => {
            let Some(Moving::Arriving { supply, begun }) = end.spec.moving.as_deref_mut() else { return Ok(()) };
            *begun = true;
            supply.address = address_of(draft, supply.service);
            // What it is a copy of must stay held.
            draft.guard::<Volume>(supply.volume);
            end.meta.touch(draft.now);
            draft.put(end);
        }
        Step::Switch => switch(draft, author, end),
        Step::Clear => {
            if let Some(Moving::Left { to }) = end.spec.moving.as_deref()
                && let Some(mut volume) = draft.get::<Volume>(*to).cloned()
            {
                volume.status.left = None;
                draft.put(volume);
            }
            end.bury(draft.now);
            draft.put(end);
        }
        Step::Abandon => {
            end.bury(draft.now);
            draft.put(end);
        }
    }
    Ok(())
}

/// The copy becomes the volume: it takes over its name and all that was asked of it; the two exchange their names.
fn switch(draft: &mut Draft<'_>, author: &Author, mut copy: Volume) {
    let old = copy.predecessor().and_then(|id| draft.get::<Volume>(id)).cloned();
    let Some(mut old) = old else { return };
    let drain = matches!(old.spec.moving.as_deref(), Some(Moving::Leaving { drain: true, .. }));
    let pool = copy.status.placement.first().map(|replica| replica.pool);
    let generation = old.meta.generation.max(copy.meta.generation).next();
    std::mem::swap(&mut old.meta.name, &mut copy.meta.name);
    copy.meta.generation = generation;
    copy.meta.updated_at = draft.now;
    copy.meta.created_at = old.meta.created_at;
    copy.spec = VolumeSpec {
        // A pool that the user named is one that the user named.
        pool: pool.filter(|_| !drain || old.spec.pool.is_some()),
        moving: None,
        // Both have been done, and speak of generations that were the other's.
        revert: None,
        shrunk: None,
        ..old.spec.clone()
    };
    copy.status.phase = Phase::Pending;
    copy.status.left = Some(old.meta.id);
    (copy.status.progress, copy.status.message) = (None, None);
    old.spec.moving = Some(Box::new(Moving::Left { to: copy.meta.id }));
    old.meta.touch(draft.now);
    old.status.phase = Phase::Pending;
    for volume in [&old, &copy] {
        draft.set_name(Kind::Volume, &volume.meta.name, Some(volume.meta.id.to_string()));
    }
    let pool_name = |volume: &Volume| {
        let replica = volume.status.placement.first();
        replica.and_then(|it| pool_of(draft, it.pool).ok()).map(|pool| pool.meta.name.to_string()).unwrap_or_default()
    };
    let detail = format!(
        "from pool '{}' to pool '{}': what was volume {} is {} now",
        pool_name(&old),
        pool_name(&copy),
        old.meta.id,
        copy.meta.id
    );
    audit(draft, author, "volume.move", Kind::Volume, copy.meta.id, &copy.meta.name, Some(detail));
    draft.put(old);
    draft.put(copy);
}
