//! What a peer may send on gRPC, where our code parses it: session messages through both cores, objects and drivers
//! through their conversions. The input is a chain of frames: a kind, a length, and so many bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use std::time::{Duration, Instant};
use symphony::model::{Addresses, AssignmentSet, ClusterId, Driver, Object, ServiceId, SessionId};
use symphony::rpc::{Joiner, proto};
use symphony::session::{
    Downward, Greeting, ManagerAction, ManagerEvent, ManagerSide, ServiceAction, ServiceEvent, ServiceSide, Upward,
    Welcome,
};

fn greeting() -> Greeting {
    Greeting {
        service: ServiceId::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        host_name: "host".into(),
        addresses: Addresses::default(),
        version: "0".into(),
    }
}

fn welcome() -> Welcome {
    let (heartbeat, lease) = (Duration::from_secs(1), Duration::from_secs(4));
    Welcome { session: SessionId::from_bytes([3; 16]), heartbeat, lease, managers: Vec::new() }
}

/// A manager's end that admits everybody and commits everything at once.
fn tell_manager(manager: &mut ManagerSide, message: Upward, now: Instant) {
    for action in manager.handle(ManagerEvent::Received(message), now) {
        let next = match action {
            ManagerAction::Admit(_) => {
                ManagerEvent::Admitted { welcome: welcome(), assignments: AssignmentSet::default(), partial: false }
            }
            ManagerAction::Commit { sequence, .. } => ManagerEvent::Committed { sequence },
            _ => continue,
        };
        manager.handle(next, now);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut now = Instant::now();
    let mut manager = ManagerSide::new(now);
    let (mut service, _) = ServiceSide::begin(greeting(), now);
    let mut held = AssignmentSet::default();
    let mut rest = input;
    while let [kind, length, tail @ ..] = rest {
        let (frame, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        match kind % 6 {
            0 => {
                let message = proto::ServiceMessage::decode(frame).ok().and_then(|it| Upward::try_from(it).ok());
                if let Some(message) = message {
                    // What was understood once is understood again.
                    assert_eq!(Upward::try_from(proto::ServiceMessage::from(message.clone())), Ok(message.clone()));
                    tell_manager(&mut manager, message, now);
                }
            }
            1 => {
                let message = proto::ManagerMessage::decode(frame).ok().and_then(|it| Downward::try_from(it).ok());
                if let Some(message) = message {
                    assert_eq!(Downward::try_from(proto::ManagerMessage::from(message.clone())), Ok(message.clone()));
                    for action in service.handle(ServiceEvent::Received(message), now) {
                        match action {
                            ServiceAction::Replace(set) => drop(held.replace(set)),
                            ServiceAction::Apply(changes) => drop(held.apply(changes)),
                            _ => {}
                        }
                    }
                }
            }
            2 => {
                if let Ok(object) = proto::Object::decode(frame).map_err(|_| ()).and_then(|it| Object::try_from(it).map_err(|_| ())) {
                    assert_eq!(Object::try_from(proto::Object::from(&object)), Ok(object));
                }
            }
            3 => {
                // Refused or taken, but never with a text that the store would have to hold without a limit.
                if let Ok(Ok(joiner)) = proto::JoinRequest::decode(frame).map(Joiner::try_from) {
                    assert!(joiner.host_name.len() <= 253 && joiner.version.len() <= 64);
                }
            }
            4 => {
                if let Ok(Ok(driver)) = proto::Driver::decode(frame).map(Driver::try_from) {
                    assert_eq!(Driver::try_from(proto::Driver::from(&driver)), Ok(driver));
                }
            }
            _ => {
                now += Duration::from_millis(u64::from(*length) * 10);
                manager.handle(ManagerEvent::Tick, now);
                service.handle(ServiceEvent::Tick, now);
            }
        }
    }
});
