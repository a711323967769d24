//! What a client may send before transmission. However the bytes are cut, the talk must come to the same, whatever
//! the server thinks of TLS, before it and after it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use symphony::nbd::{Closed, Encryption, ExportDescription, Exports, Handshake, Listed, Policy, Progress};

struct OneDisk;

impl Exports for OneDisk {
    type Opened = ();

    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "disk".into(), description: "a disk".into() }]
    }

    fn open(&self, name: &str) -> Result<(ExportDescription, ()), Closed> {
        let description = || ExportDescription {
            name: "disk".into(),
            description: "a disk".into(),
            size: 1 << 20,
            read_only: false,
            minimum_block: 1,
        };
        if name == "disk" { Ok((description(), ())) } else { Err(Closed::Unknown) }
    }
}

/// Length of the reply that consents to TLS, in bytes.
const CONSENT: usize = 20;

/// The talk up to its end, or to where TLS would begin: `upgraded` says that it has begun already.
fn converse(input: &[u8], piece: usize, encryption: Encryption, upgraded: bool) -> (Vec<u8>, String) {
    let mut output = Vec::new();
    let mut handshake = Handshake::new(Policy::Admit, encryption, &mut output);
    let mut buffer = Vec::new();
    let mut secure = !upgraded;
    for (number, bytes) in input.chunks(piece).enumerate() {
        buffer.extend(bytes);
        loop {
            let (used, progress) = handshake.receive(&buffer, &OneDisk, &mut output);
            assert!(used <= buffer.len() || matches!(progress, Progress::Close));
            buffer.drain(..used.min(buffer.len()));
            if !secure && matches!(progress, Progress::Continue) {
                secure = true;
                handshake.secured(Policy::Admit);
            }
            match progress {
                Progress::Continue => {}
                Progress::More => break,
                // Bytes behind the wish end the talk, at once if they are here already.
                Progress::StartTls if piece.saturating_mul(number + 1) < input.len() || !buffer.is_empty() => {
                    assert_eq!(handshake.receive(b"anything", &OneDisk, &mut output).1, Progress::Close);
                    output.truncate(output.len() - CONSENT);
                    return (output, format!("{:?}", Progress::<()>::Close));
                }
                end => return (output, format!("{end:?}")),
            }
        }
    }
    (output, String::new())
}

fuzz_target!(|input: &[u8]| {
    if input.is_empty() {
        return;
    }
    for encryption in
        [Encryption::Refused("no".into()), Encryption::Offered, Encryption::Demanded("strangers need it".into())]
    {
        for upgraded in [false, true] {
            let whole = converse(input, usize::MAX, encryption.clone(), upgraded);
            assert_eq!(whole, converse(input, 1, encryption.clone(), upgraded));
        }
    }
});
