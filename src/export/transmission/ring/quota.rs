//! Connections of a reactor that wait for their export's limits: the reactor's alarms. A connection that waits takes
//! nothing more from its client, and holds up nobody else.

use super::ClientId;
use super::client::{Client, Waits};
use super::reactor::Reactor;
use crate::export::transmission::tally::Request;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A reactor that waits for an alarm sleeps no shorter than this: what falls due meanwhile goes together, and the limits
/// make up for the delay.
const NAP: Duration = Duration::from_micros(200);

/// Alarms further away are looked at again by then.
const LONGEST: Duration = Duration::from_secs(60);

/// When connections are to ask again.
#[derive(Default)]
pub(super) struct Alarms(BinaryHeap<Reverse<(Instant, usize, u64)>>);

impl Alarms {
    pub(super) fn set(&mut self, when: Instant, id: ClientId) {
        self.0.push(Reverse((when, id.place, id.round)));
    }

    /// How long the reactor may sleep at most.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let Reverse((when, ..)) = self.0.peek()?;
        let left = when.saturating_duration_since(now);
        Some(if left.is_zero() { left } else { left.max(NAP) })
    }

    fn take_due(&mut self, now: Instant) -> Option<ClientId> {
        let Reverse((when, place, round)) = *self.0.peek()?;
        if when > now {
            return None;
        }
        self.0.pop();
        Some(ClientId { place, round })
    }
}

impl Reactor {
    /// Connections whose time has come are ready to go on, in its order.
    pub(super) fn ring_alarms(&mut self) {
        while let Some(id) = self.alarms.take_due(self.now) {
            self.ready.push_back(id);
        }
    }

    /// A request has to wait for the limits, and its connection with it.
    pub(super) fn hold_back(&mut self, id: ClientId, client: &mut Client, request: Request, left: Duration) {
        client.waiting = Some((request, None, Waits::Quota));
        client.alarm = None;
        self.set_alarm(id, client, left);
    }

    /// A connection that waits for the limits looks whether it still has to; if not, its request can be begun. Nobody has
    /// to when the server closes.
    pub(super) fn look_at_limits(&mut self, id: ClientId, client: &mut Client) {
        let Some((_, _, waits @ Waits::Quota)) = &mut client.waiting else { return };
        if self.closing.load(Ordering::SeqCst) {
            client.tally.waive();
            *waits = Waits::Room;
            return;
        }
        match client.tally.ask_again() {
            None => *waits = Waits::Room,
            Some(left) => self.set_alarm(id, client, left),
        }
    }

    /// Keeps one alarm for a connection, unless an earlier one is needed.
    fn set_alarm(&mut self, id: ClientId, client: &mut Client, left: Duration) {
        let when = self.now + left.min(LONGEST);
        if client.alarm.is_none_or(|set| set <= self.now || when < set) {
            client.alarm = Some(when);
            self.alarms.set(when, id);
        }
    }
}
