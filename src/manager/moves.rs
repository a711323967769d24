//! The leader's part in moves: it takes every step that is due, and sets in motion what is to leave services that are being
//! emptied. What is due follows from the state alone, so that a leader goes on where another one stopped.

use super::audit;
use super::draft::Draft;
use super::leader::in_office;
use super::member::Member;
use super::plan;
use super::refusal::Refusal;
use crate::discovery::Leadership;
use crate::model::{EventId, ServiceId, VolumeId};

/// Steps of one look: what is due then is due again at the next one.
const STEPS_AT_ONCE: usize = 64;

/// Takes the steps that are due now.
///
/// # Errors
/// If the term is over, or the store cannot be written.
pub async fn advance(member: &Member, term: Leadership) -> Result<(), Refusal> {
    let due = plan::due_moves(&member.view.read());
    for end in due.into_iter().take(STEPS_AT_ONCE) {
        let author = audit::leader(member.service);
        let plan =
            move |draft: &mut Draft<'_>| in_office(draft, term).and_then(|()| plan::advance_move(draft, &author, end));
        member.writer.write(plan).await?;
    }
    for service in leaving(member) {
        let (author, copy) = (audit::leader(member.service), VolumeId::generate());
        let plan = move |draft: &mut Draft<'_>| {
            in_office(draft, term).and_then(|()| plan::empty_one(draft, &author, service, copy))
        };
        match member.writer.write(plan).await {
            Ok(moved) => tracing::debug!(%service, moved, "a service is being emptied"),
            // Another change has taken the room: it is looked for again.
            Err(refusal @ (Refusal::NoRoom { .. } | Refusal::PoolFull { .. } | Refusal::Precondition(_))) => {
                tracing::debug!(%service, %refusal, "nothing leaves a service now");
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(())
}

/// The services that something can leave now.
fn leaving(member: &Member) -> Vec<ServiceId> {
    let view = member.view.read();
    let draft = Draft::new(&view, member.clock.wall(), EventId::generate());
    plan::draining(&view).into_iter().filter(|service| plan::has_next(&draft, *service)).collect()
}
