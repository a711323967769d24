//! What a server may send to our client: the handshake, then replies to requests of every kind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};
use symphony::model::ByteSize;
use symphony::nbd::Client;
use symphony::nbd::copy::{Sink, download};

/// Sends what the fuzzer made up, and hears nothing.
struct Deaf<'a>(&'a [u8]);

impl Read for Deaf<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Deaf<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(mut client) = Client::connect(Deaf(input), "disk") else { return };
    let size = client.size();
    let mut buffer = [0xee; 64];
    // Errors are as good as answers here; only panics, hangs and floods are not.
    let mut answered = 0;
    answered += usize::from(client.read(0, &mut buffer).is_ok());
    answered += usize::from(client.block_status(0, size.min(1 << 20)).is_ok());
    answered += usize::from(client.write(0, &buffer, false).is_ok());
    answered += usize::from(client.zero(0, size.min(4096), true).is_ok());
    answered += usize::from(client.flush().is_ok());
    assert!(answered <= 5);
    let length = ByteSize::bytes(size.min(4096));
    let mut content = Vec::new();
    if let Ok(copied) = download(&mut client, Sink::Stream(&mut content), Some(length), &mut |_| {}) {
        assert_eq!(copied.bytes.as_u64(), content.len() as u64);
    }
});
