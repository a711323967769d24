//! The record of changes: who did what, to which object, from where.

use super::{EventId, Kind, Timestamp};
use serde::{Deserialize, Serialize};

/// One entry, under `/event/<id>`, written in the transaction of the change it tells of. Never changed; the oldest go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Sorts by time, as far as the managers' clocks agree; the order of events is that of their commits.
    pub id: EventId,
    pub at: Timestamp,
    pub author: Author,
    /// As `volume.create`.
    pub action: String,
    /// Absent: the cluster itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    pub object: String,
    pub name: String,
    /// A sentence, where the action's name does not say all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// As `local root`, `admin client 'ops'`, `block service <id>`, `the leader`.
    pub who: String,
    /// An address, or the control socket.
    pub origin: String,
}

/// How many events are kept; the leader removes older ones.
pub const EVENTS_KEPT: usize = 10_000;

impl Event {
    /// The most bytes of an author's two texts, of an action, an object's id and its name, each.
    pub const MAX_TEXT: usize = 256;
    /// The most bytes of a detail.
    pub const MAX_DETAIL: usize = 1024;

    /// Cuts every text to its bound, so that no request makes an entry large, and takes out what would let one entry look
    /// like several: what is written here stays for long and is believed.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let texts = [&mut self.author.who, &mut self.author.origin, &mut self.action, &mut self.object, &mut self.name];
        texts.into_iter().for_each(|text| cut(text, Self::MAX_TEXT));
        if let Some(detail) = &mut self.detail {
            cut(detail, Self::MAX_DETAIL);
        }
        self
    }
}

/// Cuts a text to at most `most` bytes and shows that something is missing; no control character stays.
fn cut(text: &mut String, most: usize) {
    const MISSING: &str = "…";
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, "?");
    }
    if text.len() <= most {
        return;
    }
    let room = most.saturating_sub(MISSING.len());
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text.push_str(MISSING);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_pretend_to_be_another_entry() {
        let mut text = "/srv\n2026-01-31 local root\u{1b}[2K\u{9b}1m".to_owned();
        cut(&mut text, Event::MAX_TEXT);
        assert_eq!(text, "/srv?2026-01-31 local root?[2K?1m");
    }

    #[test]
    fn an_event_is_never_larger_than_its_bounds_whatever_it_is_told() {
        let long = "ä".repeat(5000);
        let event = Event {
            id: EventId::from_bytes([1; 16]),
            at: Timestamp::EPOCH,
            author: Author { who: long.clone(), origin: long.clone() },
            action: long.clone(),
            kind: Some(Kind::Volume),
            object: long.clone(),
            name: long.clone(),
            detail: Some(long),
        };
        let event = event.bounded();
        for text in [&event.author.who, &event.author.origin, &event.action, &event.object, &event.name] {
            assert!(text.len() <= Event::MAX_TEXT && text.ends_with('…'), "{}", text.len());
        }
        let detail = event.detail.clone().unwrap();
        assert!(detail.len() <= Event::MAX_DETAIL && detail.starts_with("ää"));
        assert_eq!(event.clone().bounded(), event, "once is enough");
    }
}
