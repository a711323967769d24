//! The only door to io_uring: operations that own what they use until the kernel is done with it.
//!
//! What an operation works on is moved in with it and comes back with its completion, whatever that says. A ring that
//! is dropped cancels what is in flight and waits for every completion before any memory goes.

use super::memory::{Arena, Buffer, Heap, PAGE};
use super::message::Parcel;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Operations that are handed to the kernel at once.
const ENTRIES: u32 = 512;

/// Completions that find room.
const COMPLETIONS: u32 = 8192;

/// Files that are registered: those of half as many connections.
const FILES: u32 = 4096;

/// 512 pages.
const ARENA_WORDS: usize = 8;

/// Provided for receives, and how large each is, in bytes. The number is a power of two.
const PROVIDED: u16 = 16;
pub(super) const PROVIDED_SIZE: usize = 64 << 10;

/// The kernel's bit for a completion that has used a provided buffer, and where its number is.
const CQE_BUFFER: u32 = 1;
const CQE_BUFFER_SHIFT: u32 = 16;

/// Who the kernel is told an operation is for, where nobody is.
const NOBODY: u64 = u64::MAX;

/// A file for the ring: registered, or by its descriptor, which must stay open until the operation has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handle {
    Fixed(u32),
    Plain(RawFd),
}

/// What an operation owns while it is in flight.
pub(super) enum Held {
    Nothing,
    Buffer(Buffer),
    Message(Parcel),
}

/// An operation that has ended.
pub(super) struct Done<T> {
    pub(super) task: T,
    /// What the operation has to say: a count, mostly.
    pub(super) result: io::Result<usize>,
    pub(super) held: Held,
    /// The provided buffer that holds what was received; to be given back with [`Ring::recycle`].
    pub(super) provided: Option<u16>,
}

/// See the module. Lives on one thread.
pub(super) struct Ring<T> {
    ring: IoUring,
    flights: Vec<Option<(T, Held)>>,
    vacant: Vec<usize>,
    /// Operations that the kernel did not take.
    failed: Vec<Done<T>>,
    arena: Arc<Arena>,
    provided: Provided,
    fixed_buffers: bool,
    fixed_files: bool,
}

/// Buffers that the kernel takes from when something has been received.
struct Provided {
    entries: Buffer,
    memory: Buffer,
    tail: u16,
}

impl<T> Ring<T> {
    /// # Errors
    /// What the kernel said: it has no io_uring, an old one, or forbids it.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        let arena = Arena::new(ARENA_WORDS);
        let (start, length) = arena.extent();
        let region = libc::iovec { iov_base: start.cast(), iov_len: length };
        // SAFETY: the region lives as long as the arena, which this ring holds and drops only after it.
        let buffers = unsafe { ring.submitter().register_buffers(&[region]) };
        let files = ring.submitter().register_files_sparse(FILES);
        // Both only save time: limits on locked memory or open files do not keep us from serving.
        for refused in [&buffers, &files].into_iter().filter_map(|outcome| outcome.as_ref().err()) {
            tracing::debug!(error = %refused, "the ring goes on without registration");
        }
        let entries = own(usize::from(PROVIDED) * size_of::<BufRingEntry>());
        let memory = own(usize::from(PROVIDED) * PROVIDED_SIZE);
        // SAFETY: page-aligned, zeroed, and held by this ring, which ends before its fields are dropped.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries.as_ptr().addr() as u64, PROVIDED, 0, 0)?;
        }
        let mut this = Self {
            ring,
            flights: Vec::new(),
            vacant: Vec::new(),
            failed: Vec::new(),
            arena,
            provided: Provided { entries, memory, tail: 0 },
            fixed_buffers: buffers.is_ok(),
            fixed_files: files.is_ok(),
        };
        (0..PROVIDED).for_each(|number| this.recycle(number));
        Ok(this)
    }

    /// A buffer for an operation, from the region that the kernel knows if there is room.
    pub(super) fn fixed_buffer(&self, length: usize) -> Option<Buffer> {
        self.arena.take(length)
    }

    /// Registers a file at a place of the table, if there is such a place.
    pub(super) fn register(&self, place: usize, file: BorrowedFd<'_>) -> Handle {
        let place = u32::try_from(place).ok().filter(|place| self.fixed_files && *place < FILES);
        if let Some(place) = place
            && self.ring.submitter().register_files_update(place, &[file.as_raw_fd()]).is_ok()
        {
            return Handle::Fixed(place);
        }
        Handle::Plain(file.as_raw_fd())
    }

    /// Lets a registered file go.
    pub(super) fn unregister(&self, handle: Handle) {
        if let Handle::Fixed(place) = handle
            && let Err(error) = self.ring.submitter().register_files_update(place, &[-1])
        {
            tracing::error!(%error, "a file stays open in the ring");
        }
    }

    /// Receives whatever has come, into a provided buffer.
    pub(super) fn receive(&mut self, task: T, socket: Handle) {
        let flags = squeue::Flags::BUFFER_SELECT;
        let length = PROVIDED_SIZE as u32;
        let entry = match socket {
            Handle::Fixed(place) => opcode::Recv::new(Fixed(place), std::ptr::null_mut(), length).buf_group(0).build(),
            Handle::Plain(fd) => opcode::Recv::new(Fd(fd), std::ptr::null_mut(), length).buf_group(0).build(),
        };
        self.begin(task, Held::Nothing, entry.flags(flags))
    }

    /// Receives `length` bytes, no fewer unless the peer ends, to `start` of a buffer.
    pub(super) fn receive_into(&mut self, task: T, socket: Handle, mut buffer: Buffer, start: usize, length: usize) {
        let Some(target) = buffer.get_mut(start..start.saturating_add(length)).map(<[u8]>::as_mut_ptr) else {
            return self.fail(task, Held::Buffer(buffer), out_of_bounds());
        };
        let length = length as u32;
        let entry = match socket {
            Handle::Fixed(place) => opcode::Recv::new(Fixed(place), target, length).flags(libc::MSG_WAITALL).build(),
            Handle::Plain(fd) => opcode::Recv::new(Fd(fd), target, length).flags(libc::MSG_WAITALL).build(),
        };
        self.begin(task, Held::Buffer(buffer), entry)
    }

    /// Sends all of a message.
    pub(super) fn send(&mut self, task: T, socket: Handle, mut message: Parcel) {
        let header = message.prepare();
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let entry = match socket {
            Handle::Fixed(place) => opcode::SendMsg::new(Fixed(place), header).flags(flags).build(),
            Handle::Plain(fd) => opcode::SendMsg::new(Fd(fd), header).flags(flags).build(),
        };
        self.begin(task, Held::Message(message), entry)
    }

    /// Reads `length` bytes at `offset` into the beginning of a buffer.
    pub(super) fn read(&mut self, task: T, file: Handle, mut buffer: Buffer, length: usize, offset: u64) {
        let fixed = buffer.is_fixed() && self.fixed_buffers;
        let Some(target) = buffer.get_mut(..length).map(<[u8]>::as_mut_ptr) else {
            return self.fail(task, Held::Buffer(buffer), out_of_bounds());
        };
        let length = length as u32;
        let entry = match (file, fixed) {
            (Handle::Fixed(at), true) => opcode::ReadFixed::new(Fixed(at), target, length, 0).offset(offset).build(),
            (Handle::Plain(fd), true) => opcode::ReadFixed::new(Fd(fd), target, length, 0).offset(offset).build(),
            (Handle::Fixed(at), false) => opcode::Read::new(Fixed(at), target, length).offset(offset).build(),
            (Handle::Plain(fd), false) => opcode::Read::new(Fd(fd), target, length).offset(offset).build(),
        };
        self.begin(task, Held::Buffer(buffer), entry)
    }

    /// Writes the first `length` bytes of a buffer at `offset`; with `durable` they are on the medium when it is done.
    pub(super) fn write(&mut self, task: T, file: Handle, buffer: Buffer, length: usize, offset: u64, durable: bool) {
        let fixed = buffer.is_fixed() && self.fixed_buffers;
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let Some(from) = buffer.get(..length).map(<[u8]>::as_ptr) else {
            return self.fail(task, Held::Buffer(buffer), out_of_bounds());
        };
        let length = length as u32;
        let entry = match (file, fixed) {
            (Handle::Fixed(at), true) => {
                opcode::WriteFixed::new(Fixed(at), from, length, 0).offset(offset).rw_flags(flags).build()
            }
            (Handle::Plain(fd), true) => {
                opcode::WriteFixed::new(Fd(fd), from, length, 0).offset(offset).rw_flags(flags).build()
            }
            (Handle::Fixed(at), false) => {
                opcode::Write::new(Fixed(at), from, length).offset(offset).rw_flags(flags).build()
            }
            (Handle::Plain(fd), false) => {
                opcode::Write::new(Fd(fd), from, length).offset(offset).rw_flags(flags).build()
            }
        };
        self.begin(task, Held::Buffer(buffer), entry)
    }

    /// Completes when one of the events has come, or the peer or anyone here has ended the connection.
    pub(super) fn watch(&mut self, task: T, file: Handle, events: i16) {
        let events = u32::from(events.cast_unsigned());
        let entry = match file {
            Handle::Fixed(place) => opcode::PollAdd::new(Fixed(place), events).build(),
            Handle::Plain(fd) => opcode::PollAdd::new(Fd(fd), events).build(),
        };
        self.begin(task, Held::Nothing, entry)
    }

    /// Ends every operation on a socket early. Each still completes: cancelled, or with what it has done so far.
    pub(super) fn cancel(&mut self, socket: Handle) -> io::Result<()> {
        let which = match socket {
            Handle::Fixed(place) => CancelBuilder::fd(Fixed(place)),
            Handle::Plain(fd) => CancelBuilder::fd(Fd(fd)),
        };
        self.push(opcode::AsyncCancel2::new(which.all()).build().user_data(NOBODY))
    }

    /// What was received into a provided buffer.
    pub(super) fn provided(&self, number: u16) -> &[u8] {
        let start = usize::from(number) * PROVIDED_SIZE;
        self.provided.memory.get(start..start + PROVIDED_SIZE).unwrap_or_default()
    }

    /// Provides a buffer anew.
    pub(super) fn recycle(&mut self, number: u16) {
        let Provided { entries, memory, tail } = &mut self.provided;
        let Some(target) = memory.get(usize::from(number) * PROVIDED_SIZE..) else { return };
        let address = target.as_ptr().addr() as u64;
        let place = usize::from(*tail % PROVIDED);
        let base = entries.as_mut_ptr().cast::<BufRingEntry>();
        // SAFETY: the place lies within the page of entries, which are plain numbers, and which the kernel only reads
        // below the tail that is published next.
        unsafe {
            let entry = &mut *base.add(place);
            entry.set_addr(address);
            entry.set_len(PROVIDED_SIZE as u32);
            entry.set_bid(number);
        }
        *tail = tail.wrapping_add(1);
        // SAFETY: the base of the entries, page-aligned and initialised; the tail is a number that only we write.
        let published = unsafe { &*BufRingEntry::tail(base).cast::<AtomicU16>() };
        published.store(*tail, Ordering::Release);
    }

    /// Hands over what has begun, waits for so many completions, or for as long as there is patience, and takes those
    /// that are there.
    pub(super) fn turn(&mut self, wait: usize, patience: Option<Duration>, done: &mut Vec<Done<T>>) -> io::Result<()> {
        let wait = if self.failed.is_empty() { wait } else { 0 };
        done.append(&mut self.failed);
        let submitted = match patience.filter(|_| wait > 0) {
            None => self.ring.submit_and_wait(wait),
            Some(patience) => {
                let patience = Timespec::from(patience);
                self.ring.submitter().submit_with_args(wait, &SubmitArgs::new().timespec(&patience))
            }
        };
        match submitted {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
            // Completions must be taken before more can begin, or a signal has come.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        for completion in self.ring.completion() {
            let Some(index) = usize::try_from(completion.user_data()).ok() else { continue };
            let Some((task, held)) = self.flights.get_mut(index).and_then(Option::take) else { continue };
            self.vacant.push(index);
            done.push(Done { task, result: result(&completion), held, provided: provided(&completion) });
        }
        Ok(())
    }

    fn begin(&mut self, task: T, held: Held, entry: squeue::Entry) {
        let index = self.vacant.pop().unwrap_or(self.flights.len());
        if index == self.flights.len() {
            self.flights.push(None);
        }
        if let Some(place) = self.flights.get_mut(index) {
            *place = Some((task, held));
        }
        if let Err(error) = self.push(entry.user_data(index as u64))
            && let Some((task, held)) = self.flights.get_mut(index).and_then(Option::take)
        {
            self.vacant.push(index);
            self.fail(task, held, error);
        }
    }

    /// Whatever was to begin comes back, so that nobody waits for it in vain.
    fn fail(&mut self, task: T, held: Held, error: io::Error) {
        self.failed.push(Done { task, result: Err(error), held, provided: None });
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to is in `flights` and stays there until its completion; files are
            // registered or kept open by the connection that the operation belongs to.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn in_flight(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY);
        let mut outcome = self.push(cancel);
        let mut done = Vec::new();
        while outcome.is_ok() && self.in_flight() {
            outcome = self.turn(1, None, &mut done);
            done.clear();
        }
        if let Err(error) = outcome {
            // The kernel may still write to it: memory that is lost is better than memory that is not ours.
            tracing::error!(%error, "a ring does not end; its memory is given up");
            std::mem::forget(std::mem::take(&mut self.flights));
            let nothing = Provided { entries: own(PAGE), memory: own(PAGE), tail: 0 };
            std::mem::forget(std::mem::replace(&mut self.provided, nothing));
            std::mem::forget(Arc::clone(&self.arena));
        }
    }
}

/// Zeroed memory of the ring itself.
fn own(length: usize) -> Buffer {
    Arc::new(Heap::default()).take(length)
}

fn out_of_bounds() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the operation reaches beyond its buffer")
}

fn result(completion: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(completion.result()).map_err(|_| io::Error::from_raw_os_error(completion.result().wrapping_neg()))
}

fn provided(completion: &cqueue::Entry) -> Option<u16> {
    let flags = completion.flags();
    (flags & CQE_BUFFER != 0).then_some((flags >> CQE_BUFFER_SHIFT) as u16)
}
