//! Whether a history of overlapping operations on one object could have been one after the other.
//!
//! Wing and Gong's search for a legal order, with Lowe's memory of what was tried before. An operation whose answer was
//! lost may have taken effect at any time after it began, or never. Known limit: the price grows exponentially with the
//! operations that overlap, and those without an answer overlap everything behind them.

mod oracle;
pub mod volume;

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What the object is and does when it is asked one thing at a time.
pub trait Model {
    type State: Clone + Debug + Eq + Hash;
    type Call: Debug;
    type Answer: Debug;

    fn initial() -> Self::State;

    /// Whether it only asks, and changes no state.
    fn is_question(call: &Self::Call) -> bool;

    /// The state after `call`, if it may be answered so in `state`; without an answer, what it comes to if it happens.
    fn step(state: &Self::State, call: &Self::Call, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// One operation by a clock that all who ask share.
#[derive(Clone, Debug)]
pub struct Operation<C, A> {
    pub began: u64,
    pub call: C,
    /// When the answer came; none if nobody knows whether it happened.
    pub ended: Option<(u64, A)>,
}

impl<C, A> Operation<C, A> {
    fn end(&self) -> u64 {
        self.ended.as_ref().map_or(u64::MAX, |(at, _)| *at)
    }
}

/// No order explains the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inexplicable {
    /// The longest order that could be begun, by the places in the history.
    pub explained: Vec<usize>,
    /// The states in which nothing could follow it.
    pub stuck_in: String,
}

/// Which operations have been put in order.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn none_of(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn has(&self, place: usize) -> bool {
        self.0[place / 64] & (1 << (place % 64)) != 0
    }

    fn flip(&mut self, place: usize) {
        self.0[place / 64] ^= 1 << (place % 64);
    }
}

/// One step of the search: a state, and what could come next in it.
struct Frame<S> {
    state: S,
    next: Vec<usize>,
    /// What led here.
    by: Option<usize>,
}

/// What may come first among what is not done: nothing that is done has to come before it. None if all that was
/// answered is done.
fn candidates<C, A>(history: &[Operation<C, A>], done: &Done) -> Option<Vec<usize>> {
    let open = || history.iter().enumerate().filter(|(place, _)| !done.has(*place));
    let first_end = open().filter(|(_, it)| it.ended.is_some()).map(|(_, it)| it.end()).min()?;
    Some(open().filter(|(_, it)| it.began < first_end).map(|(place, _)| place).collect())
}

/// What is worth trying: the answer to a question that fits may as well come at once, whatever comes later.
fn worth_trying<M: Model>(history: &[Operation<M::Call, M::Answer>], state: &M::State, next: Vec<usize>) -> Vec<usize> {
    let fits = |place: &&usize| {
        let Operation { call, ended, .. } = &history[**place];
        let fits = |answer| M::step(state, call, Some(answer)).as_ref() == Some(state);
        M::is_question(call) && ended.as_ref().is_some_and(|(_, answer)| fits(answer))
    };
    match next.iter().find(fits) {
        Some(free) => vec![*free],
        None => next,
    }
}

/// An order of the history, by places in it, that the model agrees with; what was not answered may be left out.
///
/// # Errors
/// If there is none.
pub fn explain<M: Model>(history: &[Operation<M::Call, M::Answer>]) -> Result<Vec<usize>, Inexplicable> {
    let mut done = Done::none_of(history.len());
    let Some(first) = candidates(history, &done) else { return Ok(Vec::new()) };
    let first = worth_trying::<M>(history, &M::initial(), first);
    let mut stack = vec![Frame { state: M::initial(), next: first, by: None }];
    let mut tried: HashSet<(Done, M::State)> = HashSet::new();
    let mut longest = Inexplicable { explained: Vec::new(), stuck_in: format!("{:?}", M::initial()) };
    let order = |stack: &[Frame<M::State>]| stack.iter().filter_map(|frame| frame.by).collect::<Vec<_>>();
    while let Some(frame) = stack.last_mut() {
        let Some(place) = frame.next.pop() else {
            if let Some(Frame { by: Some(by), .. }) = stack.pop() {
                done.flip(by);
            }
            continue;
        };
        let operation = &history[place];
        let answer = operation.ended.as_ref().map(|(_, answer)| answer);
        let Some(state) = M::step(&frame.state, &operation.call, answer) else { continue };
        // What was lost and would change nothing has no place in an order.
        if answer.is_none() && state == frame.state {
            continue;
        }
        done.flip(place);
        if !tried.insert((done.clone(), state.clone())) {
            done.flip(place);
            continue;
        }
        let next = candidates(history, &done);
        let text = format!("{state:?}");
        let is_last = next.is_none();
        let next = worth_trying::<M>(history, &state, next.unwrap_or_default());
        stack.push(Frame { state, next, by: Some(place) });
        let order = order(&stack);
        if is_last {
            return Ok(order);
        }
        if order.len() > longest.explained.len() {
            longest = Inexplicable { explained: order, stuck_in: text };
        }
    }
    Err(longest)
}
