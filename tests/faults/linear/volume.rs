//! One volume's name as operators see it, one request at a time.
//!
//! A name outlives what is removed until the block service has let go of it, so that a volume with a tombstone may be
//! gone at any time without anybody asking.

use super::Model;

/// What requests of one name amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Of so many bytes.
    Create(u64, Origin),
    /// To so many bytes, which are more than there were.
    Grow(u64),
    /// To so many bytes, whatever is lost.
    Cut(u64),
    /// To what it was when a snapshot was taken.
    Revert(u64),
    /// To so many operations a second.
    Limit(u64),
    Remove,
    Look,
}

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    Nothing,
    Image,
    /// By its number.
    Snapshot(u64),
}

/// What an answer says of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    pub id: String,
    pub generation: u64,
    pub size: u64,
    pub iops: u64,
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This is how it stands after the request.
    Is(Facts),
    /// There is no volume of that name.
    Missing,
    /// There is one already.
    Taken,
    /// For another reason, which tells nothing of the volume.
    Refused,
}

impl Answer {
    /// Whether a manager may give it by what its view shows, which is not older than what the same manager has told before.
    pub fn is_of_the_view(&self, call: Call) -> bool {
        !matches!(
            (self, call),
            (
                Answer::Is(_),
                Call::Create(..) | Call::Grow(_) | Call::Cut(_) | Call::Limit(_) | Call::Revert(_) | Call::Remove
            )
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Absent,
    /// `id` is unknown of one whose creation nobody heard of.
    There {
        id: Option<String>,
        generation: u64,
        size: u64,
        iops: u64,
        removed: bool,
    },
}

impl State {
    fn may_be_absent(&self) -> bool {
        matches!(self, State::Absent | State::There { removed: true, .. })
    }

    fn of(facts: &Facts) -> Self {
        let Facts { id, generation, size, iops, removed } = facts.clone();
        State::There { id: Some(id), generation, size, iops, removed }
    }

    fn new(id: Option<String>, size: u64) -> Self {
        State::There { id, generation: 1, size, iops: 0, removed: false }
    }

    /// The state as `facts` have it, if they say the same.
    fn agreed(&self, facts: &Facts) -> Option<Self> {
        let State::There { id, generation, size, iops, removed } = self else { return None };
        let same = id.as_ref().is_none_or(|id| *id == facts.id)
            && (*generation, *size, *iops, *removed) == (facts.generation, facts.size, facts.iops, facts.removed);
        same.then(|| Self::of(facts))
    }

    /// What a request that changes something makes of it; none where it changes nothing.
    fn after(&self, call: Call) -> Option<Self> {
        let State::There { id, generation, size, iops, removed: false } = self.clone() else { return None };
        let generation = generation + 1;
        match call {
            Call::Grow(to) if to > size => Some(State::There { id, generation, size: to, iops, removed: false }),
            Call::Cut(to) if to != size => Some(State::There { id, generation, size: to, iops, removed: false }),
            Call::Revert(_) => Some(State::There { id, generation, size, iops, removed: false }),
            Call::Limit(to) if to != iops => Some(State::There { id, generation, size, iops: to, removed: false }),
            Call::Remove => Some(State::There { id, generation, size, iops, removed: true }),
            Call::Create(..) | Call::Grow(_) | Call::Cut(_) | Call::Limit(_) | Call::Look => None,
        }
    }
}

/// See the module.
pub struct NamedVolume;

impl Model for NamedVolume {
    type State = State;
    type Call = Call;
    type Answer = Answer;

    fn initial() -> State {
        State::Absent
    }

    fn is_question(call: &Call) -> bool {
        matches!(call, Call::Look)
    }

    fn step(state: &State, call: &Call, answer: Option<&Answer>) -> Option<State> {
        match (*call, answer) {
            (Call::Create(size, _), None) => {
                Some(if state.may_be_absent() { State::new(None, size) } else { state.clone() })
            }
            (_, None) => Some(state.after(*call).unwrap_or_else(|| state.clone())),
            (Call::Create(size, _), Some(Answer::Is(facts))) => {
                let made = State::new(Some(facts.id.clone()), size);
                state.may_be_absent().then_some(made)?.agreed(facts)
            }
            (call, Some(Answer::Is(facts))) => state.after(call).unwrap_or_else(|| state.clone()).agreed(facts),
            (Call::Create(..), Some(Answer::Taken)) => matches!(state, State::There { .. }).then(|| state.clone()),
            (_, Some(Answer::Missing)) => state.may_be_absent().then_some(State::Absent),
            (_, Some(Answer::Taken)) => None,
            (_, Some(Answer::Refused)) => Some(state.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Operation, explain};
    use super::*;

    fn facts(id: &str, generation: u64, iops: u64, removed: bool) -> Answer {
        Answer::Is(Facts { id: id.into(), generation, size: 1, iops, removed })
    }

    /// One after the other, with the answers; none was lost.
    fn in_turn(entries: &[(Call, Option<Answer>)]) -> bool {
        let entry = |(number, (call, answer)): (usize, &(Call, Option<Answer>))| {
            let began = 2 * number as u64;
            Operation { began, call: *call, ended: answer.clone().map(|answer| (began + 1, answer)) }
        };
        let history: Vec<_> = entries.iter().enumerate().map(entry).collect();
        explain::<NamedVolume>(&history).is_ok()
    }

    #[test]
    fn a_life_from_creation_to_the_name_s_next_bearer_is_legal() {
        assert!(in_turn(&[
            (Call::Look, Some(Answer::Missing)),
            (Call::Create(1, Origin::Nothing), Some(facts("a", 1, 0, false))),
            (Call::Create(1, Origin::Nothing), Some(Answer::Taken)),
            (Call::Limit(5), Some(facts("a", 2, 5, false))),
            (Call::Limit(5), Some(facts("a", 2, 5, false))),
            (Call::Remove, Some(facts("a", 3, 5, true))),
            (Call::Create(1, Origin::Nothing), Some(Answer::Taken)),
            (Call::Create(1, Origin::Nothing), Some(facts("b", 1, 0, false))),
        ]));
    }

    #[test]
    fn a_change_that_is_lost_a_volume_that_comes_back_and_two_of_one_name_are_not() {
        let made = (Call::Create(1, Origin::Nothing), Some(facts("a", 1, 0, false)));
        assert!(!in_turn(&[made.clone(), (Call::Create(1, Origin::Nothing), Some(facts("b", 1, 0, false)))]));
        assert!(!in_turn(&[made.clone(), (Call::Look, Some(Answer::Missing))]));
        assert!(!in_turn(&[made.clone(), (Call::Limit(5), Some(facts("a", 3, 5, false)))]));
        let removed = (Call::Remove, Some(facts("a", 2, 0, true)));
        assert!(!in_turn(&[made.clone(), removed.clone(), (Call::Look, Some(facts("a", 1, 0, false)))]));
        assert!(!in_turn(&[
            made,
            removed,
            (Call::Look, Some(Answer::Missing)),
            (Call::Look, Some(facts("a", 2, 0, true)))
        ]));
    }

    #[test]
    fn what_is_cut_or_put_back_has_a_generation_more() {
        let of = |generation, size| Answer::Is(Facts { id: "a".into(), generation, size, iops: 0, removed: false });
        let made = (Call::Create(4, Origin::Nothing), Some(of(1, 4)));
        assert!(in_turn(&[
            made.clone(),
            (Call::Cut(4), Some(of(1, 4))),
            (Call::Cut(2), Some(of(2, 2))),
            (Call::Revert(1), Some(of(3, 2))),
            (Call::Revert(1), None),
            (Call::Look, Some(of(3, 2))),
            (Call::Grow(5), Some(of(5, 5))),
        ]));
        assert!(!in_turn(&[made.clone(), (Call::Revert(1), Some(of(1, 4)))]));
        assert!(!in_turn(&[made, (Call::Cut(2), Some(of(2, 2))), (Call::Look, Some(of(1, 4)))]));
    }

    #[test]
    fn a_lost_creation_may_show_later_under_any_id_and_only_once() {
        let lost = (Call::Create(1, Origin::Nothing), None);
        let seen = (Call::Look, Some(facts("x", 1, 0, false)));
        assert!(in_turn(&[lost.clone(), (Call::Look, Some(Answer::Missing)), seen.clone()]));
        let other = (Call::Look, Some(facts("y", 1, 0, false)));
        assert!(!in_turn(&[lost, seen, other]));
    }
}
