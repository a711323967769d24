//! Requests to managers, and the history of what was asked and answered under each name.

use super::heights::Heights;
use super::linear::volume::{Answer, Call, Facts, NamedVolume, Origin};
use super::linear::{Operation, explain};
use crate::stage::{Control, wait};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use symphony::model::{Object, Volume};
use symphony::rpc::proto::control_client::ControlClient;
use symphony::rpc::{Fault, FaultKind, STALE_SINCE, dial_socket, proto};
use tonic::transport::Channel;
use tonic::{Response, Status};

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(8);

/// The image that volumes are made of.
pub const IMAGE: &str = "base";

/// The name of the snapshot of a number.
pub fn snapshot(number: u64) -> String {
    format!("copy-{number}")
}

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
    pub heights: Heights,
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
        Call::Create(size, from) => {
            use proto::create_volume_request::Source;
            let source = match from {
                Origin::Nothing => None,
                Origin::Image => Some(Source::Image(IMAGE.into())),
                Origin::Snapshot(number) => Some(Source::FromSnapshot(snapshot(number))),
            };
            client.create_volume(proto::CreateVolumeRequest { name, size, pool: String::new(), source }).await
        }
        Call::Grow(size) | Call::Cut(size) => {
            let allow_shrink = matches!(call, Call::Cut(_));
            client.resize_volume(proto::ResizeVolumeRequest { reference: name, size, allow_shrink }).await
        }
        Call::Revert(number) => {
            let request = proto::RevertVolumeRequest { volume: name, snapshot: snapshot(number) };
            client.revert_volume(request).await
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

/// The manager says that it may be showing what was.
fn is_behind<T>(response: &Response<T>) -> bool {
    response.metadata().contains_key(STALE_SINCE)
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

fn judge(call: Call, told: Told) -> Outcome {
    let refusal = match told {
        Ok(response) => match Object::try_from(response.into_inner()) {
            Ok(Object::Volume(volume)) => return Outcome::Answered(Answer::Is(facts(&volume)), Some(volume.into())),
            other => panic!("a volume was asked for, and this came: {other:?}"),
        },
        Err(status) => Fault::from(status),
    };
    let answer = match refusal.kind {
        // It is the snapshot or the image that this view does not show yet, or any more.
        FaultKind::NotFound if matches!(call, Call::Create(..) | Call::Revert(_)) => Answer::Refused,
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
        if call == Call::Remove {
            self.heights.may_go(name);
        }
        let (began, floor) = (self.now(), self.heights.floor(manager));
        let told = wait(async { in_time(send(client, name.to_owned(), call)).await });
        let behind = call == Call::Look && matches!(&told, Some(Ok(response)) if is_behind(response));
        let outcome = told.map_or(Outcome::Lost, |told| judge(call, told));
        if let Outcome::Answered(_, Some(volume)) = &outcome
            && !behind
        {
            self.heights.rise(manager, &floor, &Object::Volume((**volume).clone()));
        }
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

    /// Lists everything of a kind through a manager: nothing that it has shown before may be gone, or be older, unless it
    /// says itself that it is behind.
    pub fn list(&self, managers: &[Control], manager: usize, kind: proto::Kind) {
        let socket = managers[manager].socket.clone();
        let floor = self.heights.floor(manager);
        let pages = async {
            let mut client = ControlClient::new(dial_socket(&socket).await.ok()?);
            let (mut found, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = proto::ListRequest { kind: kind.into(), page_token, ..Default::default() };
                let response = client.list(request).await.ok()?;
                if is_behind(&response) {
                    return None;
                }
                let page = response.into_inner();
                found.extend(page.objects);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Some(found);
                }
            }
        };
        let Some(Some(found)) = wait(in_time(pages)) else { return };
        let found: Vec<Object> = found.into_iter().map(|it| it.try_into().expect("an object")).collect();
        self.heights.see_all(manager, &floor, kind, &found);
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

/// The history with answers from views stretched back to what their manager may still have shown. Each is judged by itself:
/// a view that goes back is for [`Heights`] to find.
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
        let create = entry(0, 10, Call::Create(1, Origin::Nothing), made);
        let missing = |manager, at| entry(manager, at, Call::Look, Answer::Missing);
        assert!(is_explained(&[create.clone(), missing(1, 20), missing(1, 30)]));
        let strict = Entry { lenient: false, ..missing(1, 20) };
        assert!(!is_explained(&[create, strict]));
    }
}
