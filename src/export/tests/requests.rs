//! What clients ask for is what happens to the medium, and what the medium says reaches them.

use super::*;
use crate::io::{Fault, Operation};
use crate::nbd::{Completion, NbdErrno};
use nix::errno::Errno;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8, bool),
    Zero(bool),
    Trim,
    Flush,
    Status,
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize, u64, u64)>> {
    let step = prop_oneof![
        Just(Step::Read),
        (1u8.., any::<bool>()).prop_map(|(byte, fua)| Step::Write(byte, fua)),
        any::<bool>().prop_map(Step::Zero),
        Just(Step::Trim),
        Just(Step::Flush),
        Just(Step::Status),
    ];
    let range =
        prop_oneof![(0..SIZE, 1u64..300_000), (0..SIZE / 4096, 1u64..70).prop_map(|(o, l)| (o * 4096, l * 4096))];
    let range = range.prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    proptest::collection::vec((step, 0usize..2, range).prop_map(|(s, c, (o, l))| (s, c, o, l)), 1..25)
}

/// Two connections take turns; whatever one was told is done, the other sees.
fn agree_with_an_array(clients: &mut [Dialled; 2], steps: &[(Step, usize, u64, u64)]) -> Result<(), ClientError> {
    let mut naive = vec![0u8; SIZE as usize];
    for (step, which, offset, length) in steps {
        let (offset, length) = (*offset, *length);
        let client = &mut clients[*which];
        let expected = &mut naive[offset as usize..][..length as usize];
        match step {
            Step::Read => {
                let mut seen = vec![0xee; length as usize];
                client.read(offset, &mut seen)?;
                assert!(seen == *expected);
            }
            Step::Write(byte, fua) => {
                expected.fill(*byte);
                client.write(offset, expected, *fua)?;
            }
            Step::Zero(may_punch) => {
                expected.fill(0);
                client.zero(offset, length, *may_punch)?;
            }
            Step::Trim => {
                expected.fill(0);
                client.trim(offset, length)?;
            }
            Step::Flush => client.flush()?,
            Step::Status => {
                let runs = client.block_status(offset, length)?;
                let mut position = offset;
                for run in runs {
                    assert!(run.offset == position && run.length > 0);
                    let bytes = &naive[position as usize..][..run.length as usize];
                    assert!(!run.zero || bytes.iter().all(|byte| *byte == 0));
                    position += run.length;
                }
                assert_eq!(position, offset + length);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_export_holds_what_a_plain_array_would(steps in steps()) {
        let bench = bench();
        let outcome = agree_with_an_array(&mut [bench.client(), bench.client()], &steps);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
    }
}

#[test]
fn fua_and_flush_reach_the_medium() {
    let bench = bench();
    let mut client = bench.client();
    client.write(0, &[1; 512], true).expect("a write");
    client.write(512, &[1; 512], false).expect("a write");
    client.flush().expect("a flush");
    client.zero(0, 4096, false).expect("zeros");
    client.disconnect().expect("a farewell");
    let seen: Vec<_> = bench.io.performed().iter().map(|done| (done.operation, done.fua)).collect();
    let expected =
        [(Operation::Write, true), (Operation::Write, false), (Operation::Flush, false), (Operation::Zero, false)];
    assert_eq!(seen, expected);
}

#[test]
fn errors_of_the_medium_come_with_number_and_reason_and_end_nothing() {
    let bench = bench();
    let mut client = bench.client();
    bench.io.inject(Fault::every(Operation::Write, Errno::ENOSPC as i32));
    bench.io.inject(Fault::every(Operation::Flush, Errno::EIO as i32));
    bench.io.inject(Fault::every(Operation::Read, Errno::EIO as i32));
    let full = client.write(0, &[1; 4096], false);
    assert!(matches!(&full, Err(ClientError::Remote { errno: NbdErrno::NoSpc, reason, .. }) if !reason.is_empty()));
    assert!(matches!(client.flush(), Err(ClientError::Remote { errno: NbdErrno::Io, .. })));
    for length in [512, 200_000] {
        let failed = client.read(0, &mut vec![0; length]);
        assert!(matches!(failed, Err(ClientError::Remote { errno: NbdErrno::Io, .. })));
    }
    bench.io.heal();
    client.write(0, &[1; 4096], false).expect("a write after the trouble");
    client.disconnect().expect("a farewell");
}

#[test]
fn a_read_only_export_can_only_be_read() {
    let bench = bench();
    let io = Arc::new(MemoryIo::new(SIZE));
    bench.table.publish(ServedExport { read_only: true, ..served("rom", io) }).expect("a free name");
    let mut client = bench.dial("rom").expect("an export called rom");
    assert!(client.is_read_only());
    client.read(0, &mut [0; 512]).expect("a read");
    let refused = client.write(0, &[1; 512], false);
    assert!(matches!(refused, Err(ClientError::Remote { errno: NbdErrno::Perm, .. })), "{refused:?}");
    client.read(0, &mut [0; 512]).expect("a read behind the refused write's payload");
}

#[test]
fn many_requests_in_flight_are_all_answered_whatever_order_they_are_asked_for_in() {
    let bench = bench_with(local(all_local()), 64 << 20);
    let mut client = bench.client();
    let piece = 1 << 20;
    let mut tickets = Vec::new();
    for number in 0..64u64 {
        let data = vec![number as u8; piece];
        tickets.push((client.submit_write(number << 20, &data, false).expect("a write"), number, data));
    }
    let mut reads = Vec::new();
    // A read finds what was written when its write has been answered; until then either order is right.
    for (write, number, data) in tickets.into_iter().rev() {
        assert_eq!(client.wait(write).expect("a write"), Completion::Done);
        assert!(matches!(client.wait(write), Err(ClientError::NoSuchTicket)));
        reads.push((client.submit_read(number << 20, piece as u32).expect("a read"), data));
    }
    for (read, data) in reads.into_iter().rev() {
        assert!(matches!(client.wait(read).expect("a read"), Completion::Data(seen) if seen == data));
    }
}

#[test]
fn a_volume_that_has_grown_is_larger_for_the_next_client() {
    let bench = bench();
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(SIZE).expect("a sparse file");
    let io = Arc::new(crate::io::FileIo::new(file).expect("a regular file"));
    bench.table.publish(served("file", io.clone())).expect("a free name");
    let mut before = bench.dial("file").expect("the export");
    io.grow(2 * SIZE).expect("room");
    let mut after = bench.dial("file").expect("the export");
    assert_eq!((before.size(), after.size()), (SIZE, 2 * SIZE));
    after.write(SIZE, &[7; 512], true).expect("a write into the new part");
    assert!(matches!(before.read(SIZE, &mut [0; 512]), Err(ClientError::Range { .. })));
    before.read(SIZE - 512, &mut [0; 512]).expect("the old client goes on");
}
