//! What a client may send in transmission. The first byte chooses the terms; what is let through must obey them, and
//! the same must come of the bytes however they are cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use symphony::nbd::{Command, Contexts, Event, Headers, Inbound, Terms};

const SIZE: u64 = 1 << 20;

fn check(command: Command, payload: &[u8], terms: &Terms) {
    let (offset, length, writes) = match command {
        Command::Flush => return,
        Command::Read { offset, length, .. } => (offset, length.into(), false),
        Command::Cache { offset, length } => (offset, length, false),
        Command::BlockStatus { offset, length, only, .. } => {
            let asked = only.unwrap_or(terms.contexts);
            assert!(asked.any() && asked.allocation <= terms.contexts.allocation && asked.depth <= terms.contexts.depth);
            assert!(only.is_none() || terms.headers == Headers::Extended);
            (offset, length, false)
        }
        Command::Write { offset, length, .. } => {
            assert_eq!(payload.len(), length as usize);
            (offset, u64::from(length), true)
        }
        Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => (offset, length, true),
    };
    assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= SIZE));
    assert!(offset % u64::from(terms.minimum_block) == 0 && length % u64::from(terms.minimum_block) == 0);
    assert!(!(writes && terms.read_only));
}

/// Each with its payload.
fn events(mut input: &[u8], piece: usize, terms: &Terms) -> Vec<(String, Vec<u8>)> {
    let mut inbound = Inbound::new(&[]);
    let mut seen = Vec::new();
    loop {
        loop {
            match inbound.next(terms, SIZE) {
                Ok(None) => break,
                Ok(Some(Event::Run(request, payload))) => {
                    check(request.command, payload.bytes(), terms);
                    seen.push((format!("{request:?}"), payload.bytes().to_vec()));
                    inbound.recycle(payload);
                }
                Ok(Some(Event::Part(pieces, payload))) => {
                    check(pieces.next().expect("a piece"), payload.bytes(), terms);
                    seen.push((format!("{pieces:?}"), payload.bytes().to_vec()));
                    inbound.recycle(payload);
                }
                Ok(Some(event)) => seen.push((format!("{event:?}"), Vec::new())),
                Err(error) => {
                    seen.push((error.to_string(), Vec::new()));
                    return seen;
                }
            }
        }
        if input.is_empty() {
            return seen;
        }
        let vacancy = inbound.vacancy();
        let count = piece.min(vacancy.len()).min(input.len());
        assert!(count > 0);
        let (now, later) = input.split_at(count);
        vacancy[..count].copy_from_slice(now);
        inbound.received(count);
        input = later;
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let terms = Terms {
        read_only: choice & 1 != 0,
        headers: match (choice & 2 != 0, choice & 16 != 0) {
            (_, true) => Headers::Extended,
            (true, false) => Headers::Structured,
            (false, false) => Headers::Compact,
        },
        // Without structured replies nobody can choose contexts.
        contexts: Contexts { allocation: choice & 18 != 0 && choice & 4 != 0, depth: choice & 18 != 0 && choice & 32 != 0 },
        minimum_block: if choice & 8 != 0 { 512 } else { 1 },
    };
    assert_eq!(events(input, usize::MAX, &terms), events(input, 1, &terms));
});
