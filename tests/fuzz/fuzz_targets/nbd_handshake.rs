//! What a client may send before transmission. However the bytes are cut, the talk must come to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use symphony::nbd::{ExportDescription, Exports, Handshake, Listed, Policy, Progress};

struct OneDisk;

impl Exports for OneDisk {
    type Opened = ();

    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "disk".into(), description: "a disk".into() }]
    }

    fn open(&self, name: &str) -> Option<(ExportDescription, ())> {
        let description = || ExportDescription {
            name: "disk".into(),
            description: "a disk".into(),
            size: 1 << 20,
            read_only: false,
            minimum_block: 1,
        };
        (name == "disk").then(|| (description(), ()))
    }
}

fn converse(input: &[u8], piece: usize) -> (Vec<u8>, String) {
    let mut output = Vec::new();
    let mut handshake = Handshake::new(Policy::Admit, &mut output);
    let mut buffer = Vec::new();
    for bytes in input.chunks(piece) {
        buffer.extend(bytes);
        loop {
            let (used, progress) = handshake.receive(&buffer, &OneDisk, &mut output);
            assert!(used <= buffer.len() || matches!(progress, Progress::Close));
            buffer.drain(..used.min(buffer.len()));
            match progress {
                Progress::Continue => {}
                Progress::More => break,
                end => return (output, format!("{end:?}")),
            }
        }
    }
    (output, String::new())
}

fuzz_target!(|input: &[u8]| {
    if !input.is_empty() {
        assert_eq!(converse(input, usize::MAX), converse(input, 1));
    }
});
