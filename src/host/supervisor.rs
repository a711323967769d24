//! The service manager that runs this process, spoken to as sd_notify(3) says; systemd is one.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

/// Where it listens: a path, or an abstract name behind `@`.
pub(super) const VARIABLE: &str = "NOTIFY_SOCKET";

/// How many descriptors it keeps; newer ones say so.
const ROOM: &str = "FDSTORE";

/// One that does not listen for so long is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    address: UnixAddr,
    room: Option<usize>,
}

impl Supervisor {
    /// The one that the environment names, if one is there.
    pub fn from_environment() -> Option<Self> {
        let address = std::env::var(VARIABLE).ok()?;
        let room = std::env::var(ROOM).ok().and_then(|room| room.parse().ok());
        Self::at(&address, room).inspect_err(|error| tracing::warn!(address, %error, "no service manager")).ok()
    }

    fn at(address: &str, room: Option<usize>) -> io::Result<Self> {
        let address = match address.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(Path::new(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, address, room })
    }

    /// How many descriptors it keeps for this service, if it says.
    pub fn room(&self) -> Option<usize> {
        self.room
    }

    /// The service answers calls.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, words: &str) {
        if let Err(error) = self.say(words, None) {
            tracing::warn!(words, %error, "the service manager does not hear");
        }
    }

    /// Has it keep a descriptor for the next process of this service.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.say(&format!("FDSTORE=1\nFDNAME={name}"), Some(descriptor))
    }

    /// Has it close what it keeps under a name.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    /// Returns when it has dealt with everything that it was told; see sd_notify_barrier(3).
    pub fn wait_until_heard(&self) -> io::Result<()> {
        let (ours, theirs) = io::pipe()?;
        self.say("BARRIER=1", Some(theirs.as_fd()))?;
        drop(theirs);
        let mut waits = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        let patience = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut waits, patience)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn say(&self, words: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let numbers: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights };
        let words = [IoSlice::new(words.as_bytes())];
        sendmsg(self.socket.as_raw_fd(), &words, rights, MsgFlags::MSG_NOSIGNAL, Some(&self.address))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::{IoSliceMut, Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};

    fn hear(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let (mut words, mut space) = ([0; 256], nix::cmsg_space!([i32; 4]));
        let mut parts = [IoSliceMut::new(&mut words)];
        let heard = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let mut descriptors = Vec::new();
        for message in heard.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(numbers) = message else { continue };
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
        let length = heard.bytes;
        (String::from_utf8(words[..length].to_vec()).unwrap(), descriptors)
    }

    #[test]
    fn it_is_told_and_given_what_the_protocol_says() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        let supervisor = Supervisor::at(path.to_str().unwrap(), Some(7)).unwrap();
        assert_eq!(supervisor.room(), Some(7));
        supervisor.ready();
        assert_eq!(hear(&ear).0, "READY=1");
        let (mut reader, writer) = io::pipe().unwrap();
        supervisor.keep("nbd", writer.as_fd()).unwrap();
        drop(writer);
        let (words, mut kept) = hear(&ear);
        assert_eq!(words, "FDSTORE=1\nFDNAME=nbd");
        std::fs::File::from(kept.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        supervisor.forget("nbd").unwrap();
        assert_eq!(hear(&ear).0, "FDSTOREREMOVE=1\nFDNAME=nbd");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| supervisor.wait_until_heard());
            let (words, pipes) = hear(&ear);
            assert_eq!((words.as_str(), pipes.len()), ("BARRIER=1", 1));
            drop(pipes);
            waiting.join().unwrap().unwrap();
        });
        drop(ear);
        supervisor.stopping();
        supervisor.forget("nbd").unwrap_err();
    }
}
