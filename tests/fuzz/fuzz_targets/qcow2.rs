//! A whole qcow2 file by somebody who means harm: read from its start as an import reads it, as far as it goes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io;
use symphony::image::qcow2::Disk;
use symphony::image::{Content, PIECE, Part, STRIDE};

/// Parts that are looked at: a small file may speak of a large disk.
const PARTS: usize = 256;

fuzz_target!(|input: &[u8]| {
    let read = |buffer: &mut [u8], offset: u64| {
        let from = usize::try_from(offset).ok().and_then(|offset| input.get(offset..)?.get(..buffer.len()));
        // What lies within the file is all that may be asked for.
        buffer.copy_from_slice(from.expect("a read within the file"));
        io::Result::Ok(())
    };
    let Ok(mut disk) = Disk::open(read, input.len() as u64) else { return };
    let mut seen = 0u64;
    for _ in 0..PARTS {
        match disk.next(u64::MAX) {
            Ok(Some(Part::Data(data))) => {
                assert!((1..=PIECE as usize).contains(&data.len()));
                seen += data.len() as u64;
            }
            Ok(Some(Part::Zeros(length))) => {
                assert!((1..=STRIDE).contains(&length));
                seen += length;
            }
            Ok(None) => {
                assert_eq!(seen, disk.size(), "a content is as long as it says");
                return;
            }
            Err(_) => return,
        }
    }
    assert!(seen <= disk.size());
});
