//! The finer points of the specification, judged by what others have written: libnbd's shell, qemu-io and qemu-img, fio,
//! and nbd's own tester.

use super::*;
use std::path::Path;

fn libnbd_lists_describes_and_leaves_while_options_are_haggled_over(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let address = bench.server.tcp_address().expect("a TCP address");
    let script = format!(
        r#"
def fresh(structured=True):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_request_structured_replies(structured)
    h.connect_tcp("127.0.0.1", "{port}")
    return h

h = fresh()
assert h.get_protocol() == "newstyle-fixed"
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert ("disk", "volume disk") in names and len(names) == 3, names
for name, there in (("disk", True), ("rom", True), ("nothing", False), ("", False), ("x" * 4096, False)):
    h.set_export_name(name)
    try:
        h.opt_info()
        assert there, name
        assert h.is_read_only() == (name == "rom") and h.get_size() == {SIZE}
    except nbd.Error:
        assert not there, name
h.opt_abort()

# Contexts: all, by wildcard, by name, of strangers; and chosen for one export they do not hold for another.
h = fresh()
h.set_export_name("disk")
def listed(*queries):
    seen = []
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    h.opt_list_meta_context(seen.append)
    return sorted(seen)
both = ["base:allocation", "qemu:allocation-depth"]
assert listed() == both, listed()
assert listed("base:") == both[:1] and listed("qemu:") == both[1:]
assert listed("base:allocation", "x-strange:", "base:nothing") == both[:1]
assert listed("x-strange:thing") == []
h.clear_meta_contexts()
h.add_meta_context("qemu:allocation-depth")
h.add_meta_context("base:allocation")
h.opt_go()
assert all(h.can_meta_context(name) for name in both)
chunks = {{}}
def extent(name, offset, entries, error):
    chunks.setdefault(name, []).extend(entries)
h.pwrite(b"x" * 65536, 65536)
h.block_status(196608, 0, extent)
assert chunks["base:allocation"][:6] == [65536, 3, 65536, 0, 65536, 3], chunks
assert chunks["qemu:allocation-depth"][:4] == [65536, 0, 65536, 1], chunks
chunks.clear()
h.block_status(100, 65536 + 50, extent, nbd.CMD_FLAG_REQ_ONE)
assert chunks == {{"base:allocation": [100, 0], "qemu:allocation-depth": [100, 1]}}, chunks
h.shutdown()

# Without structured replies there are no contexts, and everything else works.
h = fresh(structured=False)
h.set_export_name("disk")
h.add_meta_context("base:allocation")
h.opt_go()
assert not h.can_meta_context("base:allocation") and not h.can_df()
assert h.pread(2, 65535) == b"\0x"
h.shutdown()

# TLS is not to be had here: the wish is declined, and who insists goes.
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
try:
    h.connect_tcp("127.0.0.1", "{port}")
    raise AssertionError("TLS without a certificate")
except nbd.Error:
    pass
"#,
        port = address.port()
    );
    nbdsh(&bench.tcp("disk"), &script);
}

fn what_one_connection_flushes_all_have_flushed_and_all_see(engine: EngineChoice) {
    let bench = Bench::new(engine);
    nbdsh(
        &bench.tcp("disk"),
        r#"
handles = [nbd.NBD() for _ in range(4)]
for handle in handles:
    handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    assert handle.can_multi_conn() and handle.can_fua() and handle.can_fast_zero()
for turn in range(64):
    writer, reader, flusher = (handles[(turn + k) % 4] for k in range(3))
    # Sectors, blocks, and neither.
    offset, length = turn * 70001, (1, 511, 512, 4096, 65536, 100000)[turn % 6]
    data = bytes([turn + 1]) * length
    writer.pwrite(data, offset, nbd.CMD_FLAG_FUA if turn % 3 == 0 else 0)
    assert reader.pread(length, offset) == data
    flusher.flush()
    if turn % 4 == 1:
        writer.zero(length, offset, nbd.CMD_FLAG_FUA | (nbd.CMD_FLAG_NO_HOLE if turn % 8 == 1 else 0))
    elif turn % 4 == 2:
        writer.trim(length, offset, nbd.CMD_FLAG_FUA)
    else:
        continue
    assert reader.pread(length, offset) == bytes(length), turn

# Many in flight at once, answered in whatever order.
h = handles[0]
buffers = [nbd.Buffer.from_bytearray(bytearray([k + 1]) * 8192) for k in range(100)]
cookies = [handles[k % 4].aio_pwrite(buffers[k], k * 8192) for k in range(100)]
for k, cookie in enumerate(cookies):
    while not handles[k % 4].aio_command_completed(cookie):
        handles[k % 4].poll(-1)
handles[3].flush()
for k in range(100):
    assert handles[(k + 1) % 4].pread(8192, k * 8192) == bytes([k + 1]) * 8192

# Zeros that are not holes, fast zeros, and zeros of the whole export in one request.
h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE)
entries = []
h.block_status(65536, 0, lambda name, offset, seen, error: entries.extend(seen))
assert entries[1] & nbd.STATE_HOLE == 0 or entries[0] >= 65536, entries
h.zero(h.get_size(), 0, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1 << 20, 0) == bytes(1 << 20)
for handle in handles:
    handle.shutdown()
"#,
    );
}

fn extended_headers_are_spoken_with_libraries_that_know_them(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let said = output(
        "python3-libnbd",
        "nbdsh",
        &[
            "-c",
            &format!("uri = {:?}", bench.tcp("disk")),
            "-c",
            r#"
if not hasattr(h, "get_extended_headers_negotiated"):
    print("skipped: libnbd", h.get_version(), "knows no extended headers")
else:
    h.add_meta_context("base:allocation")
    h.add_meta_context("qemu:allocation-depth")
    h.connect_uri(uri)
    assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
    h.pwrite(b"x" * 65536, 0, nbd.CMD_FLAG_FUA)
    assert h.pread(65536, 0) == b"x" * 65536
    seen = {}
    def extent(name, offset, entries, error):
        seen[name] = entries
    h.block_status_64(h.get_size(), 0, extent)
    assert set(seen) == {"base:allocation", "qemu:allocation-depth"}, seen
    assert seen["base:allocation"][0] == (65536, 0), seen
    seen.clear()
    h.block_status_filter(h.get_size(), 0, ["qemu:allocation-depth"], extent)
    assert set(seen) == {"qemu:allocation-depth"}, seen
    h.zero(h.get_size(), 0, nbd.CMD_FLAG_FUA)
    h.flush()
    h.shutdown()
"#,
        ],
    );
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    eprint!("{}", String::from_utf8_lossy(&said.stdout));
}

fn qemu_io_writes_what_is_not_aligned_and_zeroes_fast(engine: EngineChoice) {
    let bench = Bench::new(engine);
    for uri in [bench.tcp("disk"), bench.unix("disk")] {
        let said = qemu_io(
            &uri,
            &[
                "write -P 0x11 0 1M",
                "write -P 0x22 13 1000",
                "write -f -P 0x33 4095 2",
                "aio_write -P 0x44 65535 65538",
                "aio_write -P 0x55 200001 333",
                "aio_flush",
                "write -z 300001 5000",
                "write -z -u 400000 10001",
                "write -z -n 512k 64k",
                "discard 700001 9999",
                "flush",
                "read -P 0x11 0 13",
                "read -P 0x22 13 1000",
                "read -P 0x11 1013 3082",
                "read -P 0x33 4095 2",
                "read -P 0x11 4097 61438",
                "read -P 0x44 65535 65538",
                "read -P 0x55 200001 333",
                "read -P 0x11 300000 1",
                "read -P 0 300001 5000",
                "read -P 0x11 305001 1",
                "read -P 0 400000 10001",
                "read -P 0x11 410001 1",
                "read -P 0 512k 64k",
            ],
        );
        let wrong = ["failed", "Pattern verification", "error"];
        assert!(!wrong.iter().any(|word| said.contains(word)), "{said}");
    }
}

fn qemu_img_maps_measures_and_keeps_holes(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let image = bench.image("image.raw");
    let uri = bench.tcp("disk");
    qemu_img(&["convert", "-n", "-W", "-m", "16", "-S", "4k", "-f", "raw", "-O", "raw", text(&image), &uri]);
    assert!(bench.content() == std::fs::read(&image).expect("the image"));
    let map: serde_json::Value =
        serde_json::from_str(&qemu_img(&["map", "--output=json", "-f", "raw", &uri])).expect("JSON from qemu-img");
    let runs = map.as_array().expect("runs");
    let number = |run: &serde_json::Value, key: &str| run[key].as_u64().expect("a number");
    let mut position = 0;
    let content = bench.content();
    for run in runs {
        assert_eq!(number(run, "start"), position, "{run}");
        let end = position + number(run, "length");
        if run["zero"] == true {
            assert!(content[position as usize..end as usize].iter().all(|byte| *byte == 0), "{run}");
        }
        position = end;
    }
    assert_eq!(position, SIZE);
    assert!(runs.iter().any(|run| run["data"] == false), "the holes are seen");
    qemu_img(&[
        "bench",
        "-w",
        "-c",
        "2000",
        "-d",
        "32",
        "-s",
        "1000",
        "-S",
        "1777",
        "--flush-interval=64",
        "-f",
        "raw",
        &uri,
    ]);
}

fn fio_verifies_over_several_connections_with_trims_and_odd_sizes(engine: EngineChoice) {
    let bench = Bench::new(engine);
    let uri = format!("--uri={}", bench.tcp("disk"));
    for (name, options) in [
        ("connections", &["--rw=randwrite", "--bs=4k", "--numjobs=4", "--size=8m", "--offset_increment=16m"][..]),
        ("odd", &["--rw=randwrite", "--bsrange=1001-70000", "--bs_unaligned=1", "--size=16m"]),
        // Each block is trimmed and then written, which only one request at a time keeps in this order.
        ("trims", &["--rw=randtrimwrite", "--bs=64k", "--size=16m", "--iodepth=1"]),
    ] {
        let name = format!("--name={name}");
        let common = ["--iodepth=16", "--verify_state_save=0", "--verify=crc32c", "--verify_fatal=1", "--fsync=50"];
        let first = [name.as_str(), "--ioengine=nbd", uri.as_str(), "--output-format=json"];
        let arguments: Vec<&str> = first.into_iter().chain(common).chain(options.iter().copied()).collect();
        let said = run("fio", "fio", &arguments);
        let said = said.find('{').and_then(|start| said.get(start..)).unwrap_or_default();
        let report: serde_json::Value = serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"));
        for job in report["jobs"].as_array().expect("jobs") {
            assert_eq!(job["error"], 0, "{job}");
            assert!(job["write"]["total_ios"].as_u64() > Some(0), "{name}: nothing was written");
        }
    }
}

/// Built by `tests/tools/nbd-tester-client`, which `make test` runs; it needs sources that not every machine can fetch.
fn nbd_s_own_tester_finds_nothing(engine: EngineChoice) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let (tester, share) = (tools.join("bin/nbd-tester-client"), tools.join("share"));
    if !tester.exists() {
        let why = std::fs::read_to_string(tools.join("nbd-tester-client.why"));
        eprintln!("skipped: {}", why.as_deref().unwrap_or("run tests/tools/nbd-tester-client first"));
        return;
    }
    // Its other log, "integrityhuge", has requests of more than the 32 MiB that we take and advertise.
    let log = share.join("integrity-test.tr");
    let log = text(&log);
    for (export, over_tcp, options) in [
        ("disk", true, &[][..]),
        ("disk", false, &["-w"]),
        ("disk", true, &["-w", "-f"]),
        ("disk", true, &["-o"]),
        ("disk", false, &["-h"]),
        ("disk", true, &["-i", "-t", log]),
        ("disk", false, &["-i", "-t", log]),
        // A write to what can only be read must fail.
        ("rom", true, &["-w", "-F"]),
    ] {
        // Some expect a blank export.
        let bench = Bench::new(engine);
        let port = bench.server.tcp_address().expect("a TCP address").port().to_string();
        let socket = bench.server.unix_path().expect("a socket").to_owned();
        let place = if over_tcp { ["127.0.0.1", &port] } else { ["-u", text(&socket)] };
        run("nbd's sources", text(&tester), &[options, &["-N", export], &place].concat());
    }
}

on_both_engines! {
    libnbd_lists_describes_and_leaves_while_options_are_haggled_over,
    what_one_connection_flushes_all_have_flushed_and_all_see,
    extended_headers_are_spoken_with_libraries_that_know_them,
    qemu_io_writes_what_is_not_aligned_and_zeroes_fast,
    qemu_img_maps_measures_and_keeps_holes,
    fio_verifies_over_several_connections_with_trims_and_odd_sizes,
    nbd_s_own_tester_finds_nothing,
}
