//! `ctl volume move`: to another pool, or not after all.

use super::connect::{Manager, Session, answer, object};
use super::failure::Failure;
use super::output;
use super::volume::expect;
use super::wait::{Until, is_passing, settle, show, spinner};
use crate::model::{Kind, Moving, Object, Phase, Volume, VolumeId};
use crate::rpc::{Fault, FaultKind, proto};
use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;
use std::time::Duration;
use tokio::time::Instant;

/// How often to look how far a move is.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Name or id
    pub volume: String,
    /// Where to: name or id
    #[arg(long, env = "SYMPHONY_VOLUME_TO_POOL", required_unless_present = "cancel")]
    pub pool: Option<String>,
    /// Let it stay where it is, if it is being moved
    #[arg(long, conflicts_with = "pool", env = "SYMPHONY_VOLUME_MOVE_CANCEL", value_parser = clap::builder::BoolishValueParser::new())]
    pub cancel: bool,
}

/// How a move stands.
enum Standing {
    /// Under way.
    Going,
    /// Everything is done, the former bytes are gone.
    Done(Box<Volume>),
    /// It does not get on, and is tried again.
    Stuck(String),
    /// It was called off.
    Ended(String),
}

pub async fn run(session: &Session, args: MoveArgs) -> Result<()> {
    let MoveArgs { volume, pool, cancel } = args;
    let mut manager = session.manager().await?;
    let request = proto::MoveVolumeRequest { reference: volume, pool: pool.unwrap_or_default(), cancel };
    let volume = expect(object(answer(manager.client.move_volume(request).await, "manager")?)?)?;
    let Some(copy) = volume.successor() else {
        let volume = expect(settle(session, Object::Volume(volume), Until::Ready).await?)?;
        return said(session, &volume);
    };
    if !session.wait {
        return output::one(session.format, &volume, volume.meta.name.as_str(), |volume| {
            format!("volume '{}' is being moved; it is volume {copy} then\n", volume.meta.name)
        });
    }
    let moved = follow(session, &volume, copy).await?;
    said(session, &moved)
}

fn said(session: &Session, volume: &Volume) -> Result<()> {
    output::one(session.format, volume, volume.meta.name.as_str(), |volume| {
        let placed = volume.status.placement.iter();
        let placed: String =
            placed.map(|it| format!(" in pool {} on service {}", it.pool, it.service)).collect::<Vec<_>>().join(",");
        let uris: String = volume.status.exports.iter().map(|export| format!("  {}\n", export.uri)).collect();
        format!("volume '{}' is {}{placed}\n{uris}", volume.meta.name, volume.status.phase)
    })
}

/// Waits until the volume is served where it goes, and gone where it was. The limit is one on standing still: a large volume
/// takes its time.
async fn follow(session: &Session, volume: &Volume, copy: VolumeId) -> Result<Volume> {
    let name = volume.meta.name.clone();
    let bar = spinner(format!("moving volume '{name}'"));
    let (mut last, mut since) = (None, Instant::now());
    let moved = loop {
        let seen = look(session, volume.meta.id, copy, &bar).await;
        match seen {
            Ok((Standing::Done(volume), _)) => break Ok(*volume),
            Ok((Standing::Stuck(why), _)) => {
                let text = format!(
                    "volume '{name}' has not been moved yet: {why} (it is tried again; `symphony ctl volume move {name} \
                     --cancel` calls it off)"
                );
                break Err(Failure::Unfulfilled(text).into());
            }
            Ok((Standing::Ended(why), _)) => break Err(Failure::Unfulfilled(why).into()),
            Ok((Standing::Going, far)) if far != last => (last, since) = (far, Instant::now()),
            Ok((Standing::Going, _)) => {}
            Err(error) if is_passing(&error) => bar.set_message(format!("moving volume '{name}': {error}")),
            Err(error) => break Err(error),
        }
        if since.elapsed() >= session.timeout {
            let what = format!("volume '{name}' is being moved");
            break Err(Failure::TimedOut { limit: session.timeout, what, look: format!("volume get {name}") }.into());
        }
        tokio::time::sleep(LOOK).await;
    };
    bar.finish_and_clear();
    moved
}

async fn get(manager: &mut Manager, id: VolumeId) -> Result<Option<Volume>> {
    match manager.get(Kind::Volume, &id.to_string()).await {
        Ok(found) => expect(found).map(Some),
        Err(error) if error.downcast_ref::<Fault>().is_some_and(|fault| fault.kind == FaultKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How the move stands, and something that changes as it gets on.
async fn look(
    session: &Session,
    volume: VolumeId,
    copy: VolumeId,
    bar: &ProgressBar,
) -> Result<(Standing, Option<(u64, u64)>)> {
    let mut manager = session.manager().await?;
    let (old, new) = (get(&mut manager, volume).await?, get(&mut manager, copy).await?);
    let progress = new.as_ref().and_then(|it| it.status.progress).map_or(0, |progress| progress.done.as_u64());
    let generation = new.as_ref().map_or(0, |it| it.meta.generation.as_u64());
    if let Some(new) = &new {
        show(&Object::Volume(new.clone()), bar);
    }
    Ok((judge(old, new, volume), Some((generation, progress))))
}

/// From how both ends stand.
fn judge(old: Option<Volume>, new: Option<Volume>, id: VolumeId) -> Standing {
    let stuck = |it: &Volume| {
        let failed = it.status.phase == Phase::Failed && it.status.observed_generation == it.meta.generation;
        failed.then(|| it.status.message.clone().unwrap_or_else(|| "no reason was given".into()))
    };
    let ended = |why: &str| Standing::Ended(format!("the move was called off: {why}"));
    match (old, new) {
        (Some(old), _) if old.meta.id == id && old.spec.moving.is_none() && !old.meta.is_removed() => {
            ended("the volume is where it was")
        }
        (Some(old), new) if matches!(old.spec.moving.as_deref(), Some(Moving::Leaving { .. })) => match new {
            _ if old.meta.is_removed() => ended("the volume is being removed"),
            Some(new) => stuck(&old).or(stuck(&new)).map_or(Standing::Going, Standing::Stuck),
            None => Standing::Going,
        },
        // What was left behind goes on its own, once the volume is served.
        (old, Some(new)) if !new.is_hidden() => match stuck(&new) {
            _ if new.meta.is_removed() => ended("the volume is being removed"),
            Some(why) => Standing::Stuck(why),
            None if old.is_none() && new.status.left.is_none() && new.status.phase == Phase::Ready => {
                Standing::Done(new.into())
            }
            None => Standing::Going,
        },
        (None, None) => ended("the volume was removed"),
        // The two were not looked at in the same instant.
        (Some(_), _) | (None, Some(_)) => Standing::Going,
    }
}

/// How far a volume that is being moved has come, for people.
pub async fn line(manager: &mut Manager, volume: &Volume) -> Result<Option<String>> {
    let Some(Moving::Leaving { to, pool, service, .. }) = volume.spec.moving.as_deref() else { return Ok(None) };
    let copy = get(manager, *to).await?;
    let status = copy.as_ref().map(|copy| &copy.status);
    let far = status.and_then(|it| it.progress).map(|progress| format!(", {progress}")).unwrap_or_default();
    let why = status.and_then(|it| it.message.as_ref()).map(|why| format!(": {why}")).unwrap_or_default();
    Ok(Some(format!("to pool {pool} on service {service}{far}{why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ByteSize, Meta, PoolId, ServiceId, Supply, Timestamp, VolumeSpec};

    fn ends() -> (Volume, Volume) {
        let (pool, service) = (PoolId::from_bytes([3; 16]), ServiceId::from_bytes([4; 16]));
        let volume = |id: u8, name: &str, moving| {
            let meta = Meta::new(VolumeId::from_bytes([id; 16]), name.parse().unwrap(), Timestamp::EPOCH);
            let spec = VolumeSpec { moving: Some(Box::new(moving)), ..VolumeSpec::of_size(ByteSize::mib(1)) };
            Volume::new(meta, spec, Vec::new())
        };
        let (one, two) = (VolumeId::from_bytes([1; 16]), VolumeId::from_bytes([2; 16]));
        let supply = Supply { volume: one, pool, service, address: None, length: ByteSize::mib(1), sha256: None };
        let old = volume(1, "v", Moving::Leaving { to: two, pool, service, drain: false });
        (old, volume(2, "moving-2", Moving::Arriving { supply, begun: true }))
    }

    #[test]
    fn a_move_is_over_when_the_volume_is_served_anew_and_its_former_bytes_are_gone() {
        let (old, new) = ends();
        let id = old.meta.id;
        let is_going =
            |old: &Volume, new: &Volume| matches!(judge(Some(old.clone()), Some(new.clone()), id), Standing::Going);
        assert!(is_going(&old, &new));
        let mut left = old.clone();
        left.spec.moving = Some(Box::new(Moving::Left { to: new.meta.id }));
        let mut moved = new.clone();
        moved.spec.moving = None;
        (moved.status.phase, moved.status.left) = (Phase::Ready, Some(id));
        assert!(
            is_going(&left, &moved) && is_going(&left, &new),
            "also when one was looked at a moment before the other"
        );
        assert!(matches!(judge(None, Some(moved.clone()), id), Standing::Going), "not yet taken note of");
        moved.status.left = None;
        assert!(is_going(&left, &moved), "the former bytes are still there");
        assert!(matches!(judge(None, Some(moved), id), Standing::Done(_)));
    }

    #[test]
    fn what_keeps_a_move_from_getting_on_is_told_and_so_is_that_it_was_called_off() {
        let (mut old, mut new) = ends();
        let id = old.meta.id;
        new.status.phase = Phase::Failed;
        let going = judge(Some(old.clone()), Some(new.clone()), id);
        assert!(matches!(going, Standing::Going), "that was of an older generation");
        new.status.observed_generation = new.meta.generation;
        new.status.message = Some("no space".into());
        let stuck = judge(Some(old.clone()), Some(new.clone()), id);
        assert!(matches!(&stuck, Standing::Stuck(why) if why == "no space"));
        old.spec.moving = None;
        assert!(matches!(judge(Some(old.clone()), Some(new), id), Standing::Ended(_)));
        assert!(matches!(judge(Some(old), None, id), Standing::Ended(_)));
        assert!(matches!(judge(None, None, id), Standing::Ended(_)));
    }
}
