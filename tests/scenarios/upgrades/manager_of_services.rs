//! Restarts by a service manager that keeps descriptors, as systemd does with `FileDescriptorStoreMax=`: one of our own
//! stands in for it, since systemd cannot be had in a test. It speaks sd_notify(3) and sd_listen_fds(3).

use super::{assert_clean, fio, is_running};
use crate::stage::{Backing, Cluster, Daemon, client, path_text, until};
use crate::support::process::mortal;
use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Kept {
    descriptors: Vec<(String, OwnedFd)>,
    told: Vec<String>,
}

/// Keeps what a service gives it, until it has handed that out and is told to forget it.
#[derive(Clone)]
struct Stand {
    address: PathBuf,
    kept: Arc<Mutex<Kept>>,
}

impl Stand {
    fn open(directory: &Path) -> Self {
        let address = directory.join("notify.sock");
        let socket = UnixDatagram::bind(&address).expect("a socket");
        let this = Self { address, kept: Arc::default() };
        let kept = this.kept.clone();
        std::thread::spawn(move || {
            loop {
                let (words, descriptors) = hear(&socket);
                kept.lock().expect("no panic").take(&words, descriptors);
            }
        });
        this
    }

    /// The service, started with all that is kept from the third descriptor on.
    fn command(&self) -> Command {
        let kept = self.kept.lock().expect("no panic");
        let numbers: Vec<i32> = kept.descriptors.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
        let names: Vec<&str> = kept.descriptors.iter().map(|(name, _)| name.as_str()).collect();
        // Moved out of the way first: each number may be where another one goes.
        let aside = |(at, from): (usize, &i32)| format!("exec {}<&{from}; ", 1000 + at);
        let place = |at: usize| format!("exec {}<&{1}-; ", 3 + at, 1000 + at);
        let moves: String = numbers.iter().enumerate().map(aside).collect();
        let places: String = (0..numbers.len()).map(place).collect();
        let listen = if numbers.is_empty() { "" } else { "LISTEN_PID=$$ " };
        let mut command = mortal("bash");
        command.args(["-c", &format!("{moves}{places}{listen}exec \"$@\""), "bash", env!("CARGO_BIN_EXE_symphony")]);
        command.env("NOTIFY_SOCKET", &self.address).env("FDSTORE", "100");
        command.env("LISTEN_FDS", numbers.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let inherit = move || {
            for number in &numbers {
                // SAFETY: open in the parent, and so in this child of it.
                let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(*number) };
                fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: fcntl is async-signal-safe, and nothing is allocated.
        unsafe { command.pre_exec(inherit) };
        command
    }

    fn count(&self) -> usize {
        self.kept.lock().expect("no panic").descriptors.len()
    }

    fn was_told(&self, words: &str) -> bool {
        self.kept.lock().expect("no panic").told.iter().any(|told| told == words)
    }
}

impl Kept {
    fn take(&mut self, words: &str, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| words.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        if words.starts_with("FDSTORE=1") {
            let name = value("FDNAME=").expect("a name");
            self.descriptors.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
        } else if words.starts_with("FDSTOREREMOVE=1") {
            let name = value("FDNAME=").expect("a name");
            self.descriptors.retain(|(kept, _)| *kept != name);
        }
        // What came with a barrier is closed here, which is the answer.
        self.told.push(words.to_owned());
    }
}

fn hear(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let (mut words, mut space) = ([0; 4096], cmsg_space!([i32; 4]));
    let mut parts = [IoSliceMut::new(&mut words)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let heard = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).expect("a message");
    let mut descriptors = Vec::new();
    for message in heard.cmsgs().expect("room") {
        let ControlMessageOwned::ScmRights(numbers) = message else { continue };
        // SAFETY: the kernel has just made these descriptors for this process.
        descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
    }
    let length = heard.bytes;
    (String::from_utf8_lossy(&words[..length]).into_owned(), descriptors)
}

/// A cluster whose block service is the stand's.
fn served_by_a_stand() -> (Cluster, Stand) {
    let mut cluster = Cluster::bare(Backing::Embedded);
    let stand = Stand::open(cluster.path());
    let (directory, its) = (cluster.block_dir(), stand.clone());
    let arguments = ["block", "run", "--listen-port", "0", "--nbd-port", "0", "--config-dir", path_text(&directory)];
    cluster.block = Daemon::of("block", cluster.path(), move || its.command(), &arguments);
    cluster.manager.start_serving(&cluster.ctl().socket);
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.init_manager("");
    cluster.init_block();
    cluster.ctl().ok(&format!("pool create main --path {}", path_text(&cluster.pool())));
    cluster.ctl().ok("volume create db --size 64M");
    (cluster, stand)
}

#[test]
fn a_running_fio_notices_nothing_of_restarts_by_a_service_manager() {
    let (mut cluster, stand) = served_by_a_stand();
    until("the service to say that it is ready", || stand.was_told("READY=1").then_some(()));
    let uri = cluster.ctl().uri("db", "nbd");
    let mut fio = fio(cluster.path(), &uri);
    let mut idle = client(&uri).expect("a client");
    for _ in 0..3 {
        assert!(is_running(&mut fio), "fio ends too early");
        assert!(cluster.block.stop().success());
        assert!(stand.was_told("STOPPING=1"));
        // The document, four listeners, and two clients at least.
        assert!(stand.count() >= 6, "{} descriptors", stand.count());
        cluster.block.start();
        idle.flush().expect("the same connection");
        assert_eq!(stand.count(), 0, "all is forgotten before anybody is served");
    }
    assert_clean(fio, cluster.path());
    cluster.ctl().check_when_settled();
}

#[test]
fn a_service_manager_with_too_little_room_is_not_bothered() {
    let (mut cluster, stand) = served_by_a_stand();
    let uri = cluster.ctl().uri("db", "nbd");
    let clients: Vec<_> = (0..100).map(|_| client(&uri).expect("a client")).collect();
    assert!(cluster.block.stop().success());
    assert_eq!(stand.count(), 0);
    assert!(cluster.block.log().contains("FileDescriptorStoreMax="), "{}", cluster.block.log());
    assert!(clients.into_iter().all(|mut client| client.flush().is_err()));
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.ctl().check_when_settled();
}

#[test]
fn what_is_kept_is_not_served_twice_when_the_next_process_is_killed() {
    let (mut cluster, stand) = served_by_a_stand();
    let mut client = client(&cluster.ctl().uri("db", "nbd")).expect("a client");
    assert!(cluster.block.stop().success());
    cluster.block.start();
    client.flush().expect("the same connection");
    cluster.block.kill();
    assert_eq!(stand.count(), 0);
    assert!(client.flush().is_err());
    cluster.block.start_serving(&cluster.block_ctl().socket);
    cluster.ctl().check_when_settled();
}
