//! Clients that mean harm, on real sockets of the real executable: its memory stays bounded, it says what the
//! specification has an answer for, and whoever behaves is served meanwhile and finds the bytes it wrote.

use super::nbd::text;
use super::support::process::mortal;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use symphony::nbd::wire::*;
use symphony::nbd::{Client, Dialled, NbdErrno, Target, Uri};

const SIZE: u64 = 64 << 20;

/// `symphony dev` with a volume "disk", on one of the engines.
struct Server {
    directory: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start(engine: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let log = File::create(directory.path().join("log")).expect("a log");
        let ports = ["--listen-port", "0", "--block-port", "0", "--nbd-port", "0", "--nbd-engine", engine];
        let mut command = mortal(env!("CARGO_BIN_EXE_symphony"));
        command.args(["dev", "--config-dir", text(directory.path())]).args(ports).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("start a process through setpriv (util-linux)");
        let mut this = Self { directory, child };
        let began = Instant::now();
        while !this.log().contains("symphony is ready") {
            assert!(began.elapsed() < Duration::from_secs(30), "never ready: {}", this.log());
            assert!(this.child.try_wait().expect("a child").is_none(), "{}", this.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let socket = this.path("manager/control.sock");
        let mut create = Command::new(env!("CARGO_BIN_EXE_symphony"));
        create.args(["ctl", "--socket", text(&socket), "volume", "create", "disk", "--size", "64MiB"]);
        let created = create.output().expect("symphony");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).expect("a log")
    }

    fn socket(&self) -> UnixStream {
        UnixStream::connect(self.path("block/nbd.sock")).expect("a connection")
    }

    fn client(&self) -> Dialled {
        let target = Target::Unix { socket: self.path("block/nbd.sock") };
        Client::dial(&Uri { target, export: "disk".into(), tls: None }).expect("the export")
    }

    /// What the process occupies, in bytes.
    fn memory(&self) -> u64 {
        // setpriv has become the program it started.
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// In transmission on "disk", with compact headers.
    fn enter(&self) -> UnixStream {
        let mut stream = self.socket();
        let option = [&IHAVEOPT.to_be_bytes()[..], &NBD_OPT_EXPORT_NAME.to_be_bytes(), &[0, 0, 0, 4], b"disk"].concat();
        stream.write_all(&[&3u32.to_be_bytes()[..], &option].concat()).expect("the handshake");
        assert_eq!(take(&mut stream, 28)[..8], NBDMAGIC.to_be_bytes());
        stream
    }

    /// A client that behaves, until the others are through: what it wrote it reads, at every step.
    fn serves_well_while<T: Send>(&self, meanwhile: impl FnOnce() -> T + Send) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let good = scope.spawn(|| {
                let mut client = self.client();
                let mut rounds = 0u64;
                while rounds < 50 || !over.load(Ordering::SeqCst) {
                    let (offset, length) = (rounds * 4096 % (SIZE / 2), 4096 << (rounds % 5));
                    let data: Vec<u8> = (0..length).map(|at: u64| (at / 64) as u8 ^ rounds as u8).collect();
                    client.write(offset, &data, rounds.is_multiple_of(16)).expect("a write");
                    let mut seen = vec![0; data.len()];
                    client.read(offset, &mut seen).expect("a read");
                    assert!(seen == data, "round {rounds}");
                    rounds += 1;
                }
                client.flush().expect("a flush");
                client.disconnect().expect("a farewell");
            });
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            over.store(true, Ordering::SeqCst);
            good.join().expect("whoever behaves is served");
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let log = self.log();
        self.child.kill().and_then(|()| self.child.wait()).expect("a child");
        if !std::thread::panicking() {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

fn take(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes
}

/// Whether the connection ends without a word.
fn is_cut(stream: &mut UnixStream) -> bool {
    !matches!(stream.read(&mut [0; 64]), Ok(count) if count > 0)
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = [&NBD_REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

fn option(kind: u32, length: u32) -> Vec<u8> {
    [IHAVEOPT.to_be_bytes().to_vec(), [kind, length].map(u32::to_be_bytes).concat()].concat()
}

/// Room for a thousand sockets in this process.
fn raise_the_limit_on_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("its own hard limit");
}

fn those_who_never_take_their_replies_cost_a_bounded_amount_of_memory(engine: &str) {
    let server = Server::start(engine);
    server.client().write(0, &vec![7; SIZE as usize], false).expect("a write");
    let before = server.memory();
    let (stuck, most) = server.serves_well_while(|| {
        let mut stuck = Vec::new();
        for number in 0..12 {
            let mut stream = server.enter();
            let length = [32 << 20, 1 << 20, 4096][number % 3];
            let burst: Vec<u8> = (0..64).flat_map(|cookie| request(0, NBD_CMD_READ, cookie, 0, length)).collect();
            stream.write_all(&burst).expect("the buffer of a socket takes them");
            if number == 0 {
                // The first bytes of an answer: it has begun.
                take(&mut stream, 4);
            }
            stuck.push(stream);
        }
        let most = (0..200).map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            server.memory()
        });
        (stuck, most.max().unwrap_or_default())
    });
    let grown = most.saturating_sub(before);
    eprintln!("{engine}: {} MiB more at most, for 8 GiB of replies that nobody takes", grown >> 20);
    // Twelve connections with one largest request each would already hold 384 MiB.
    assert!(grown < 400 << 20, "{} MiB", grown >> 20);
    drop(stuck);
    server.client().flush().expect("a flush");
}

fn a_million_tiny_requests_leave_nothing_behind(engine: &str) {
    let server = Server::start(engine);
    let before = server.memory();
    const EACH: u64 = 250_000;
    server.serves_well_while(|| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut stream = server.enter();
                let mut sending = stream.try_clone().expect("a handle");
                scope.spawn(move || {
                    for first in (0..EACH).step_by(1000) {
                        let burst: Vec<u8> = (first..first + 1000)
                            .flat_map(|cookie| request(0, NBD_CMD_READ, cookie, SIZE - 1, 1))
                            .collect();
                        sending.write_all(&burst).expect("requests");
                    }
                });
                scope.spawn(move || {
                    let mut sum = 0;
                    for _ in 0..EACH / 1000 {
                        for reply in take(&mut stream, 17 * 1000).chunks_exact(17) {
                            assert_eq!(reply[..8], [&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 4]].concat());
                            sum += u64::from_be_bytes(reply[8..16].try_into().expect("eight bytes"));
                        }
                    }
                    assert_eq!(sum, EACH * (EACH - 1) / 2, "every request was answered once");
                });
            }
        });
    });
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
}

fn a_thousand_connections_ask_at_once_and_all_are_answered(engine: &str) {
    raise_the_limit_on_files();
    let server = Server::start(engine);
    let before = server.memory();
    let (grown, sockets) = server.serves_well_while(|| {
        let mut sockets: Vec<UnixStream> = (0..1000).map(|_| server.enter()).collect();
        for stream in &mut sockets {
            stream.write_all(&request(0, NBD_CMD_READ, 7, SIZE - 4096, 4096)).expect("a request");
        }
        for stream in &mut sockets {
            assert_eq!(take(stream, 16 + 4096)[4..16], [&[0; 4][..], &7u64.to_be_bytes()].concat());
        }
        (server.memory().saturating_sub(before), sockets)
    });
    eprintln!("{engine}: {} KiB a connection", (grown >> 10) / 1000);
    assert!(grown < 300 << 20, "{} MiB", grown >> 20);
    drop(sockets);
    server.client().flush().expect("a flush");
}

fn half_talks_garbage_and_floods_end_where_they_began(engine: &str) {
    let server = Server::start(engine);
    let before = server.memory();
    let silent = server.serves_well_while(|| {
        let mut silent = Vec::new();
        for number in 0..40usize {
            // Half a header, a header with half its payload, half an option; then silence.
            let mut half = server.enter();
            half.write_all(&request(0, NBD_CMD_READ, 1, 0, 512)[..1 + number % 27]).expect("half a request");
            let mut write = server.enter();
            let payload = vec![1; 1 << number.min(19)];
            write
                .write_all(&[request(0, NBD_CMD_WRITE, 1, SIZE / 2, 1 << 20), payload].concat())
                .expect("half a write");
            let mut mute = server.socket();
            mute.write_all(&[&3u32.to_be_bytes()[..], &option(NBD_OPT_GO, 100)].concat()).expect("half an option");
            // An oldstyle client waits for a size and sends nothing.
            let oldstyle = server.socket();
            silent.extend([half, write, mute, oldstyle]);

            // What has lost its meaning is cut.
            let mut garbage = server.enter();
            garbage.write_all(&vec![number as u8 ^ 0xa5; 5000]).expect("garbage");
            assert!(is_cut(&mut garbage));
            let mut wrong = server.enter();
            let good = request(0, NBD_CMD_FLUSH, 1, 0, 0);
            wrong.write_all(&[&good[..], &0x1256_0953u32.to_be_bytes(), &good[4..]].concat()).expect("requests");
            // What came before it may still be answered.
            let mut said = Vec::new();
            // However the connection ends.
            if let Err(error) = wrong.read_to_end(&mut said) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            }
            assert!([0, 16].contains(&said.len()), "a magic number of thirty years ago: {} bytes", said.len());
            let mut flags = server.socket();
            take(&mut flags, 18);
            flags.write_all(&0x8000_0003u32.to_be_bytes()).expect("flags");
            assert!(is_cut(&mut flags), "unknown flags");
        }
        silent
    });
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 200 << 20, "{} MiB", grown >> 20);
    drop(silent);
    server.client().flush().expect("a flush");
}

fn options_without_end_are_answered_up_to_a_point(engine: &str) {
    let server = Server::start(engine);
    let before = server.memory();
    server.serves_well_while(|| {
        for (kind, length, answers) in [(NBD_OPT_LIST, 0u32, 2), (4711, 0, 1), (4711, 100_000, 1)] {
            let mut flood = server.socket();
            take(&mut flood, 18);
            let mut sending = flood.try_clone().expect("a handle");
            let counting = std::thread::spawn(move || {
                let mut replies = 0;
                let mut header = [0; 20];
                while flood.read_exact(&mut header).is_ok() {
                    let length = u32::from_be_bytes(header[16..].try_into().expect("four bytes"));
                    take(&mut flood, length as usize);
                    replies += 1;
                }
                replies
            });
            let one = [option(kind, length), vec![0; length as usize]].concat();
            let burst = one.repeat(if length == 0 { 5000 } else { 20 });
            let sent = sending.write_all(&3u32.to_be_bytes()).and_then(|()| sending.write_all(&burst));
            if length == 0 {
                // Nobody needs so many: the server hangs up, perhaps before it has taken them all.
                drop(sent);
            } else {
                sent.expect("what is too long to keep is skipped");
                sending.shutdown(std::net::Shutdown::Write).expect("the end");
            }
            let replies = counting.join().expect("replies that can be read");
            assert!(replies >= answers * if length == 0 { 4096 } else { 20 }, "{kind}: {replies}");
            assert!(replies <= answers * 4096, "{kind}: {replies}");
        }
        // A length that no option has.
        let mut endless = server.socket();
        take(&mut endless, 18);
        endless.write_all(&[&3u32.to_be_bytes()[..], &option(NBD_OPT_INFO, u32::MAX)].concat()).expect("an option");
        assert!(is_cut(&mut endless));
    });
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
}

fn lengths_and_offsets_that_make_no_sense_have_their_errors_and_end_nothing(engine: &str) {
    let server = Server::start(engine);
    server.serves_well_while(|| {
        let mut stream = server.enter();
        let mut ask = |kind: u16, offset: u64, length: u32, payload: usize| {
            let header = request(0, kind, 9, offset, length);
            stream.write_all(&[header, vec![0; payload]].concat()).expect("a request");
            let reply = take(&mut stream, 16);
            assert_eq!(reply[8..], 9u64.to_be_bytes());
            NbdErrno::from_number(u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")))
        };
        for (offset, length) in
            [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 4095, 4096), (0, 0), (1 << 63, 512)]
        {
            for kind in [NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_CACHE] {
                assert_eq!(ask(kind, offset, length, 0), Some(NbdErrno::Inval), "{kind}: {length} at {offset}");
            }
            let full = if length == 0 { NbdErrno::Inval } else { NbdErrno::NoSpc };
            assert_eq!(ask(NBD_CMD_WRITE_ZEROES, offset, length, 0), Some(full), "{length} at {offset}");
            assert_eq!(ask(NBD_CMD_WRITE, offset, length, length as usize), Some(full), "{length} at {offset}");
        }
        for kind in [NBD_CMD_READ, NBD_CMD_BLOCK_STATUS, NBD_CMD_RESIZE, 99, u16::MAX] {
            assert_eq!(ask(kind, 0, u32::MAX, 0), Some(NbdErrno::Inval), "{kind}");
        }
        let large = MAX_PAYLOAD + 1;
        assert_eq!(ask(NBD_CMD_WRITE, 0, large, large as usize), Some(NbdErrno::Inval), "dropped whole, then refused");
        assert_eq!(ask(NBD_CMD_FLUSH, 0, 0, 0), None, "the connection goes on");
    });
}

/// Every case is run on each engine.
macro_rules! on_both_engines {
    ($($case:ident),* $(,)?) => {
        mod threads {
            $(#[test] fn $case() { super::$case("threads"); })*
        }
        mod uring {
            $(#[test] fn $case() { super::$case("auto"); })*
        }
    };
}

on_both_engines! {
    those_who_never_take_their_replies_cost_a_bounded_amount_of_memory,
    a_million_tiny_requests_leave_nothing_behind,
    a_thousand_connections_ask_at_once_and_all_are_answered,
    half_talks_garbage_and_floods_end_where_they_began,
    options_without_end_are_answered_up_to_a_point,
    lengths_and_offsets_that_make_no_sense_have_their_errors_and_end_nothing,
}
