//! The record of changes, as it is read: what is stored, and then what comes.
//!
//! Both parts come from the view, in the order of the commits, and one place in that order is all that is kept for a
//! reader: nothing is told twice or left out between the parts, and a slow reader holds no memory but its place.

use super::member::Member;
use super::view::{Recorded, View};
use crate::model::{Event, Timestamp};
use crate::rpc::{Fault, FaultKind, proto};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Entries that are taken out of the view at once.
const GULP: usize = 256;

pub type Sink = mpsc::Sender<Result<proto::Event, Status>>;

/// A reader's place in the record.
struct Reader {
    /// Stored entries from before this time are passed over.
    since: Timestamp,
    /// Where the stored part ends; what follows is new, whatever its author's clock says.
    stored: Option<Recorded>,
    last: Option<Recorded>,
}

impl Reader {
    fn new(view: &View, since: Timestamp) -> Self {
        Self { since, stored: view.last_event(), last: None }
    }

    /// What to tell next; none if nothing is left for now.
    ///
    /// # Errors
    /// If entries were dropped from the record before this reader came to them.
    fn next(&mut self, view: &View) -> Result<Option<Vec<Arc<Event>>>, Fault> {
        if self.last.is_some_and(|last| view.has_dropped_after(last)) {
            let text = "this reader is so slow that entries were dropped before it came to them: begin anew";
            return Err(Fault::new(FaultKind::Unavailable, text));
        }
        if self.last > view.last_event() {
            let text = "the state was put back in time, and the record of changes with it: begin anew";
            return Err(Fault::new(FaultKind::Unavailable, text));
        }
        let entries = view.events_after(self.last, GULP);
        let Some((place, _)) = entries.last() else { return Ok(None) };
        self.last = Some(*place);
        let wanted = |(place, event): &(Recorded, Arc<Event>)| Some(*place) > self.stored || event.at >= self.since;
        Ok(Some(entries.into_iter().filter(wanted).map(|(_, event)| event).collect()))
    }
}

/// Tells the record from `since` on and, if asked to follow, all that comes, until nobody listens.
pub async fn tell(member: Arc<Member>, since: Timestamp, follow: bool, sink: Sink) {
    let mut changes = member.view.changes();
    let mut reader = Reader::new(&member.view.read(), since);
    loop {
        changes.mark_unchanged();
        let next = reader.next(&member.view.read());
        match next {
            Ok(Some(events)) => {
                for event in events {
                    if sink.send(Ok((&*event).into())).await.is_err() {
                        return;
                    }
                }
            }
            Ok(None) if !follow => return,
            Ok(None) => tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sink.closed() => return,
            },
            Err(fault) => {
                if sink.send(Err(fault.into())).await.is_err() {
                    tracing::debug!("a slow reader of the record of changes has gone");
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
