//! Our NBD server against the clients that people use: qemu, libnbd and fio.
//!
//! A program that is missing fails its test with the package that brings it.

/// Every case is run on each engine.
macro_rules! on_both_engines {
    ($($case:ident),* $(,)?) => {
        mod threads {
            $(#[test] fn $case() { super::$case(symphony::export::EngineChoice::Threads); })*
        }
        mod uring {
            $(#[test] fn $case() { super::$case(symphony::export::EngineChoice::Uring); })*
        }
    };
}

mod judges;

use proptest::prelude::any;
use proptest::strategy::{Strategy, ValueTree};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use symphony::export::{
    Account, EngineChoice, EngineError, ExportTable, NbdServer, ServedExport, ServerConfig, ServerError,
};
use symphony::io::{BlockIo, FileIo, MemoryIo};
use symphony::nbd::{Client, Target, Uri};

pub const SIZE: u64 = 64 << 20;

/// A server on TCP and a unix socket with "disk" on a sparse file, "rom" read-only beside it and one odd name.
struct Bench {
    directory: tempfile::TempDir,
    server: NbdServer,
    io: Arc<FileIo>,
}

const ODD: &str = "an odd/name ü?#%";

impl Bench {
    fn new(engine: EngineChoice) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = File::options().read(true).write(true).create_new(true).open(directory.path().join("disk.raw"));
        let file = file.expect("a file");
        file.set_len(SIZE).expect("a sparse file");
        let io = Arc::new(FileIo::new(file).expect("a regular file"));
        let table = ExportTable::new();
        let rom: Arc<dyn BlockIo> = Arc::new(MemoryIo::new(SIZE));
        for (name, io, read_only) in [("disk", io.clone() as _, false), ("rom", rom.clone(), true), (ODD, rom, false)] {
            let description = format!("volume {name}");
            let (id, account) = (uuid::Uuid::nil(), Account::new());
            table
                .publish(ServedExport { name: name.into(), id, description, io, read_only, account })
                .expect("a free name");
        }
        let config = ServerConfig {
            tcp: Some(([127, 0, 0, 1], 0).into()),
            unix: Some(directory.path().join("nbd.sock")),
            engine,
            ..ServerConfig::new()
        };
        let server = match NbdServer::start(config.clone(), table.clone()) {
            Err(ServerError::Engine(EngineError::Uring(error))) => {
                eprintln!("skipped: io_uring cannot be used here: {error}");
                NbdServer::start(ServerConfig { engine: EngineChoice::Threads, ..config }, table)
            }
            started => started,
        };
        let server = server.expect("a server");
        Self { directory, server, io }
    }

    fn tcp(&self, export: &str) -> String {
        let address = self.server.tcp_address().expect("a TCP address");
        let target = Target::Tcp { host: address.ip().to_string(), port: address.port() };
        Uri { target, export: export.into(), tls: None }.to_string()
    }

    fn unix(&self, export: &str) -> String {
        let socket = self.server.unix_path().expect("a socket").to_owned();
        Uri { target: Target::Unix { socket }, export: export.into(), tls: None }.to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of random runs of data and holes, as large as the export.
    fn image(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path(name);
        let file = File::create_new(&path).expect("a file");
        file.set_len(SIZE).expect("a sparse file");
        let mut runner = proptest::test_runner::TestRunner::default();
        let runs = proptest::collection::vec((0..SIZE, any::<u8>(), 1usize..200_000), 40);
        for (offset, byte, length) in runs.new_tree(&mut runner).expect("runs").current() {
            let length = length.min((SIZE - offset) as usize);
            file.write_all_at(&vec![byte; length], offset).expect("a write");
        }
        path
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.io.read(&mut bytes, 0).expect("a read");
        bytes
    }
}

/// Runs a program; a failure shows everything it said.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = output(package, program, arguments);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

pub fn output(package: &str, program: &str, arguments: &[&str]) -> Output {
    // nbdsh takes the first python3, and only the distribution's own has its module.
    let path = format!("/usr/bin:/bin:{}", std::env::var("PATH").unwrap_or_default());
    match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) => output,
        Err(error) => panic!("running {program}: {error}; it comes with the package '{package}': install that"),
    }
}

pub fn qemu_img(arguments: &[&str]) -> String {
    run("qemu-utils", "qemu-img", arguments)
}

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    run("qemu-utils", "qemu-io", &arguments)
}

fn nbdinfo(arguments: &[&str]) -> serde_json::Value {
    let text = run("libnbd-bin", "nbdinfo", arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn nbdsh(uri: &str, script: &str) {
    run("libnbd-bin and python3-libnbd", "nbdsh", &["-c", &format!("uri = {uri:?}"), "-c", script]);
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn qemu_img_sees_the_size_and_copies_both_ways(engine: EngineChoice) {
    let bench = Bench::new(engine);
    for uri in [bench.tcp("disk"), bench.unix("disk")] {
        let info: serde_json::Value =
            serde_json::from_str(&qemu_img(&["info", "--output=json", &uri])).expect("JSON from qemu-img");
        assert_eq!(info["virtual-size"], SIZE);
    }
    let image = bench.image("image.raw");
    let uri = bench.tcp("disk");
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri]);
    assert!(bench.content() == std::fs::read(&image).expect("the image"));
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&image), &bench.unix("disk")]);
    let back = bench.path("back.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &uri, text(&back)]);
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&image), text(&back)]);
}

fn qemu_io_patterns_zeroes_discards_and_flushes(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let said = qemu_io(
        &bench.tcp("disk"),
        &[
            "write -P 0x5a 0 8M",
            "write -f -P 0x11 4096 512",
            "aio_write -P 0x22 1M 1M",
            "aio_flush",
            "write -z 2M 1M",
            "write -z -u 3M 1M",
            "discard 4M 1M",
            "flush",
            "read -P 0x5a 0 4096",
            "read -P 0x11 4096 512",
            "read -P 0x22 1M 1M",
            "read -P 0 2M 2M",
            "read -P 0x5a 5M 3M",
        ],
    );
    assert!(!said.contains("failed"), "{said}");
    let refused = output("qemu-utils", "qemu-io", &["-r", "-f", "raw", "-c", "write 0 512", &bench.tcp("rom")]);
    assert!(!refused.status.success() || String::from_utf8_lossy(&refused.stdout).contains("not permitted"));
}

fn nbdinfo_learns_everything_that_is_advertised(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let info = nbdinfo(&["--json", &bench.tcp("disk")]);
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    for (key, expected) in [
        ("export-size", serde_json::json!(SIZE)),
        ("description", "volume disk".into()),
        ("contexts", serde_json::json!(["base:allocation", "qemu:allocation-depth"])),
        ("is_read_only", false.into()),
        ("can_flush", true.into()),
        ("can_fua", true.into()),
        ("can_multi_conn", true.into()),
        ("can_trim", true.into()),
        ("can_zero", true.into()),
        ("can_df", true.into()),
        ("can_cache", true.into()),
        ("can_fast_zero", true.into()),
        ("block_size_minimum", 1.into()),
        ("block_size_preferred", 4096.into()),
        ("block_size_maximum", (32 << 20).into()),
    ] {
        assert_eq!(export[key], expected, "{key}");
    }
    let rom = nbdinfo(&["--json", &bench.unix("rom")]);
    assert_eq!(rom["exports"][0]["is_read_only"], true);
    assert_eq!(nbdinfo(&["--json", &bench.tcp(ODD)])["exports"][0]["export-name"], ODD);
    let listed = nbdinfo(&["--list", "--json", &bench.tcp("")]);
    assert_eq!(listed["exports"].as_array().map(Vec::len), Some(3));
    assert!(!output("libnbd-bin", "nbdinfo", &[&bench.tcp("nothing")]).status.success());
}

fn nbdinfo_maps_data_and_holes(engine: EngineChoice) {
    let bench = Bench::new(engine);
    bench.io.write(&vec![1; 1 << 20], 1 << 20, true).expect("a write");
    let map = nbdinfo(&["--map", "--json", &bench.tcp("disk")]);
    let runs: Vec<_> =
        map.as_array().expect("runs").iter().map(|run| (run["length"].as_u64(), run["type"].as_u64())).collect();
    let expected = [(1 << 20, 3), (1 << 20, 0), (SIZE - (2 << 20), 3)];
    assert_eq!(runs, expected.map(|(length, kind)| (Some(length), Some(kind))));
}

fn nbdcopy_copies_both_ways_over_many_connections(engine: EngineChoice) {
    let bench = Bench::new(engine);
    // Old data, which zeros of the image must replace.
    bench.io.write(&vec![0xaa; SIZE as usize], 0, false).expect("a write");
    let image = bench.image("image.raw");
    run("libnbd-bin", "nbdcopy", &["--connections=4", "--flush", text(&image), &bench.tcp("disk")]);
    let expected = std::fs::read(&image).expect("the image");
    assert!(bench.content() == expected);
    let back = bench.path("back.raw");
    run("libnbd-bin", "nbdcopy", &["--connections=4", &bench.unix("disk"), text(&back)]);
    assert!(std::fs::read(&back).expect("the copy") == expected);
    run("libnbd-bin", "nbdcopy", &["--synchronous", &bench.tcp("disk"), "null:"]);
}

fn libnbd_is_answered_as_the_specification_says(engine: EngineChoice) {
    let bench = Bench::new(engine);
    nbdsh(
        &bench.tcp("disk"),
        r#"
import errno
h.add_meta_context("base:allocation")
h.connect_uri(uri)
h.set_strict_mode(0)
h.pwrite(b"x" * 1000, 1, nbd.CMD_FLAG_FUA)
assert h.pread(1002, 0) == b"\0" + b"x" * 1000 + b"\0"
h.zero(500, 250, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(1, 749) == b"\0" and h.pread(1, 750) == b"x"
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.flush()

def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number, call)
    else:
        raise AssertionError((call, arguments))

size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, size - 511)
fails(errno.ENOSPC, h.pwrite, b"x" * 512, size - 511)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
h.cache(4096, 0)
h.pwrite(b"y" * 8192, 8192)
h.zero(8192, 8192, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(8192, 8192) == bytes(8192)
fails(errno.EINVAL, h.pread, 0, 0)
runs = []
h.block_status(size, 0, lambda name, offset, entries, error: runs.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(runs) == 2 and runs[0] <= size, runs
chunks = []
h.pread_structured(1 << 20, 0, lambda data, offset, status, error: chunks.append((offset, status)), nbd.CMD_FLAG_DF)
assert len(chunks) == 1, chunks
assert h.pread(512, 512) == bytes(512), "what was trimmed reads as zeros"
h.shutdown()
"#,
    );
    nbdsh(
        &bench.unix("rom"),
        r#"
import errno
h.connect_uri(uri)
h.set_strict_mode(0)
for call in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error.errnum
    else:
        raise AssertionError("a write to a read-only export")
h.flush()
assert h.pread(512, 0) == bytes(512)
h.shutdown()
"#,
    );
}

fn clients_of_the_old_school_are_served(engine: EngineChoice) {
    let bench = Bench::new(engine);
    bench.io.write(&[7; 512], 0, true).expect("a write");
    for flags in ["0", "nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE", "nbd.HANDSHAKE_FLAG_NO_ZEROES"] {
        let script = format!(
            r#"
h.set_handshake_flags({flags})
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert h.pread(512, 0) == b"\7" * 512
h.pwrite(b"\7" * 512, 1024)
try:
    h.set_strict_mode(0)
    h.pread(512, h.get_size())
except nbd.Error as error:
    assert error.errno == "EINVAL", error.errno
else:
    raise AssertionError("a read beyond the end")
assert h.pread(512, 1024) == b"\7" * 512
h.shutdown()
"#
        );
        nbdsh(&bench.tcp("disk"), &script);
    }
}

fn fio_verifies_what_it_wrote_with_many_requests_in_flight(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let common = ["--iodepth=16", "--verify_state_save=0", "--size=32m", "--verify=crc32c", "--verify_fatal=1"];
    for (name, uri, options) in [
        ("small", bench.tcp("disk"), ["--rw=randwrite", "--bs=4k", "--fsync=64"]),
        ("mixed", bench.unix("disk"), ["--rw=randwrite", "--bsrange=512-256k", "--fsync=32"]),
    ] {
        let (name, uri) = (format!("--name={name}"), format!("--uri={uri}"));
        // The engine knows the option for the URI, so it must be named first.
        let first = [name.as_str(), "--ioengine=nbd", uri.as_str(), "--output-format=json"];
        let arguments: Vec<&str> = first.into_iter().chain(common).chain(options).collect();
        let said = run("fio", "fio", &arguments);
        let said = said.find('{').and_then(|start| said.get(start..)).unwrap_or_default().to_owned();
        let report: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{job}");
        assert!(job["read"]["total_ios"].as_u64() > Some(0), "nothing was verified");
    }
}

#[test]
fn our_client_speaks_with_other_servers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.raw");
    let content: Vec<u8> = (0..4u32 << 20).map(|at| (at / 4096 % 3) as u8).collect();
    std::fs::write(&path, &content).expect("a file");
    let socket = directory.path().join("kit.sock");
    // nbdkit has made its socket when it forks into the background.
    let pid = directory.path().join("pid");
    run("nbdkit", "nbdkit", &["-U", text(&socket), "-P", text(&pid), "file", text(&path)]);
    let uri = Uri { target: Target::Unix { socket }, export: String::new(), tls: None };
    let outcome = std::panic::catch_unwind(|| {
        let mut client = Client::dial(&uri).expect("a client of nbdkit");
        assert_eq!(client.size(), content.len() as u64);
        let mut seen = vec![0; content.len()];
        client.read(0, &mut seen).expect("a read");
        assert!(seen == content);
        client.write(4096, &[9; 4096], true).expect("a write");
        client.zero(8192, 4096, false).expect("zeros");
        client.flush().expect("a flush");
        client.disconnect().expect("a farewell");
    });
    let number = std::fs::read_to_string(&pid).expect("nbdkit's process id");
    run("procps", "kill", &[number.trim()]);
    assert!(outcome.is_ok());
    let after = std::fs::read(&path).expect("the file");
    assert!(after[4096..8192] == [9; 4096] && after[8192..12288] == [0; 4096] && after[12288..] == content[12288..]);
}

on_both_engines! {
    qemu_img_sees_the_size_and_copies_both_ways,
    qemu_io_patterns_zeroes_discards_and_flushes,
    nbdinfo_learns_everything_that_is_advertised,
    nbdinfo_maps_data_and_holes,
    nbdcopy_copies_both_ways_over_many_connections,
    libnbd_is_answered_as_the_specification_says,
    clients_of_the_old_school_are_served,
    fio_verifies_what_it_wrote_with_many_requests_in_flight,
}
