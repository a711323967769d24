//! Requests to managers, and the history of what was asked and answered under each name.

use super::linear::volume::{Answer, Call, Facts, NamedVolume};
use super::linear::{Operation, explain};
use crate::stage::{Control, wait};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use symphony::model::{Object, Volume};
use symphony::rpc::proto::control_client::ControlClient;
use symphony::rpc::{Fault, FaultKind, dial_socket, proto};
use tonic::transport::Channel;
use tonic::{Response, Status};

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(8);

/// One request, who was asked, and whether its answer may come from a view that is behind.
#[derive(Clone, Debug)]
struct Entry {
    manager: usize,
    operation: Operation<Call, Answer>,
    lenient: bool,
}

impl Entry {
    fn ended_before(&self, moment: u64) -> bool {
        self.operation.ended.as_ref().is_some_and(|(at, _)| *at < moment)
    }
}

/// Everything that was asked so far, by name.
#[derive(Debug, Default)]
pub struct Record {
    clock: AtomicU64,
    entries: Mutex<BTreeMap<String, Vec<Entry>>>,
}

/// What a request came to.
#[derive(Debug)]
pub enum Outcome {
    Answered(Answer, Option<Box<Volume>>),
    /// Nobody knows whether it happened.
    Lost,
    /// It never left.
    Unsent,
}

type Told = Result<Response<proto::Object>, Status>;

async fn send(mut client: ControlClient<Channel>, name: String, call: Call) -> Told {
    match call {
        Call::Create(size) => {
            let request = proto::CreateVolumeRequest { name, size, pool: String::new(), source: None };
            client.create_volume(request).await
        }
        Call::Grow(size) => {
            let request = proto::ResizeVolumeRequest { reference: name, size, allow_shrink: false };
            client.resize_volume(request).await
        }
        Call::Limit(iops) => {
            let iops = Some(proto::LimitChange { to: Some(iops) });
            client.set_volume(proto::SetVolumeRequest { reference: name, iops, ..Default::default() }).await
        }
        Call::Remove => client.remove_volume(proto::RemoveVolumeRequest { reference: name, wipe: None }).await,
        Call::Look => {
            let kind = proto::Kind::Volume.into();
            client.get(proto::GetRequest { kind, reference: name }).await
        }
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(PATIENCE, future).await.ok()
}

fn facts(volume: &Volume) -> Facts {
    Facts {
        id: volume.meta.id.to_string(),
        generation: volume.meta.generation.as_u64(),
        size: volume.spec.size.as_u64(),
        iops: volume.spec.limits.iops.unwrap_or_default(),
        removed: volume.meta.is_removed(),
    }
}

fn judge(told: Told) -> Outcome {
    let refusal = match told {
        Ok(response) => match Object::try_from(response.into_inner()) {
            Ok(Object::Volume(volume)) => return Outcome::Answered(Answer::Is(facts(&volume)), Some(volume.into())),
            other => panic!("a volume was asked for, and this came: {other:?}"),
        },
        Err(status) => Fault::from(status),
    };
    let answer = match refusal.kind {
        FaultKind::NotFound => Answer::Missing,
        FaultKind::AlreadyExists => Answer::Taken,
        FaultKind::Precondition | FaultKind::Exhausted | FaultKind::Busy => Answer::Refused,
        FaultKind::Unavailable => return Outcome::Lost,
        kind @ (FaultKind::Invalid | FaultKind::Denied | FaultKind::Unsupported | FaultKind::Internal) => {
            // Growth that another has overtaken would be a shrink.
            let overtaken = kind == FaultKind::Invalid && refusal.message.contains("--allow-shrink");
            assert!(overtaken, "no fault of ours makes a manager say this: {refusal:?}");
            Answer::Refused
        }
    };
    Outcome::Answered(answer, None)
}

impl Record {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Asks a manager, and writes down what came of it.
    pub fn ask(&self, managers: &[Control], manager: usize, name: &str, call: Call) -> Outcome {
        self.ask_as(managers, manager, name, call, true)
    }

    /// As [`Self::ask`], once every view has caught up: the answer counts for what it is.
    pub fn ask_strictly(&self, managers: &[Control], manager: usize, name: &str, call: Call) -> Outcome {
        self.ask_as(managers, manager, name, call, false)
    }

    fn ask_as(&self, managers: &[Control], manager: usize, name: &str, call: Call, lenient: bool) -> Outcome {
        let socket = managers[manager].socket.clone();
        let Some(Ok(channel)) = wait(async { in_time(dial_socket(&socket)).await }) else { return Outcome::Unsent };
        let client = ControlClient::new(channel);
        let began = self.now();
        let told = wait(async { in_time(send(client, name.to_owned(), call)).await });
        let outcome = told.map_or(Outcome::Lost, judge);
        let ended = match &outcome {
            Outcome::Answered(answer, _) => Some((self.now(), answer.clone())),
            Outcome::Lost | Outcome::Unsent => None,
        };
        if ended.is_some() || call != Call::Look {
            let entry = Entry { manager, operation: Operation { began, call, ended }, lenient };
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).entry(name.into()).or_default().push(entry);
        }
        outcome
    }

    /// How many answers under this name were lost, and how many requests there were.
    pub fn losses(&self, name: &str) -> (usize, usize) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let held = entries.get(name).map(Vec::as_slice).unwrap_or_default();
        (held.iter().filter(|entry| entry.operation.ended.is_none()).count(), held.len())
    }

    /// All names that something was asked of.
    pub fn names(&self) -> Vec<String> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Panics unless each name's history could have been one request after the other. Managers answer from views, so that
    /// a look, and a refusal, may be older than what another manager has told.
    pub fn verify(&self) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, held) in &*entries {
            let told = weakened(held);
            if let Err(stuck) = explain::<NamedVolume>(&history(&told)) {
                let line =
                    |(place, it): (usize, &Entry)| format!("{place}: manager {}: {:?}", it.manager, it.operation);
                let lines: Vec<String> = told.iter().enumerate().map(line).collect();
                panic!("the history of '{name}' has no order: {stuck:?}\n{}", lines.join("\n"));
            }
        }
    }
}

/// The history with answers from views stretched back to what their manager may still have shown.
///
/// Known limit: each is judged by itself, so that a view that goes back is not found.
fn weakened(held: &[Entry]) -> Vec<Entry> {
    let mut told: Vec<Entry> = held.to_vec();
    told.sort_by_key(|entry| entry.operation.ended.as_ref().map_or(u64::MAX, |(at, _)| *at));
    for place in 0..told.len() {
        let Entry { manager, operation, lenient } = &told[place];
        let Some((_, answer)) = &operation.ended else { continue };
        if *lenient && answer.is_of_the_view(operation.call) {
            let before = told[..place].iter().filter(|other| other.manager == *manager);
            let before = before.filter(|other| other.ended_before(operation.began));
            told[place].operation.began = before.map(|other| other.operation.began).max().unwrap_or(0);
        }
    }
    told
}

fn history(told: &[Entry]) -> Vec<Operation<Call, Answer>> {
    told.iter().map(|entry| entry.operation.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: usize, began: u64, call: Call, answer: Answer) -> Entry {
        Entry { manager, operation: Operation { began, call, ended: Some((began + 1, answer)) }, lenient: true }
    }

    fn is_explained(held: &[Entry]) -> bool {
        explain::<NamedVolume>(&history(&weakened(held))).is_ok()
    }

    #[test]
    fn an_answer_from_a_view_may_be_old_and_a_strict_one_may_not() {
        let made = Answer::Is(Facts { id: "a".into(), generation: 1, size: 1, iops: 0, removed: false });
        let create = entry(0, 10, Call::Create(1), made);
        let missing = |manager, at| entry(manager, at, Call::Look, Answer::Missing);
        assert!(is_explained(&[create.clone(), missing(1, 20), missing(1, 30)]));
        let strict = Entry { lenient: false, ..missing(1, 20) };
        assert!(!is_explained(&[create, strict]));
    }
}
