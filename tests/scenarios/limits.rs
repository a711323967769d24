//! Limits of volumes, and the figures that show what became of them, as an operator sees both.

use crate::stage::{Backing, Cluster, Control, Hosts, client, on_each_store, path_text, symphony, tool, until};
use crate::support::ports::free_ports;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

on_each_store!(limits_are_set_shown_recorded_and_lifted, limits_hold_again_before_a_restarted_service_serves_anybody,);

/// The figures of one volume.
fn figures(ctl: &Control, volume: &str) -> Value {
    let document = ctl.json(&format!("volume stats {volume} --interval 100ms"));
    document.as_array().and_then(|list| list.first()).unwrap_or_else(|| panic!("no figures in {document}")).clone()
}

fn number(document: &Value, pointer: &str) -> f64 {
    let found = document.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number {pointer} in {document}"))
}

fn limits_are_set_shown_recorded_and_lifted(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    assert_eq!(ctl.json("volume get db")["spec"]["limits"], Value::Null, "none is nothing to be said");
    assert!(ctl.ok("volume get db").contains("Limits:"));

    let set = ctl.json("volume set db --iops 500 --bandwidth 100MiB/s --burst 2s");
    let all = json!({"iops": 500, "bandwidth": 100 << 20, "burst_ms": 2000});
    assert_eq!((&set["spec"]["limits"], &set["status"]["phase"]), (&all, &json!("ready")));
    assert_eq!(ctl.json("volume get db")["spec"]["limits"], all);
    for word in ["500 operations/s", "100MiB/s", "bursts of 2s"] {
        assert!(ctl.ok("volume get db").contains(word), "{word}");
    }
    assert_eq!(figures(&ctl, "db")["limits"], all, "in force");

    // What is not named stays, what is the same is no change.
    let less = ctl.json("volume set db --bandwidth none");
    assert_eq!(less["spec"]["limits"], json!({"iops": 500, "burst_ms": 2000}));
    let same = ctl.json("volume set db --iops 500");
    assert_eq!(same["meta"]["generation"], less["meta"]["generation"]);
    let none = ctl.json("volume set db --iops none");
    assert_eq!(none["spec"]["limits"], Value::Null, "the last limit takes its burst along");
    assert_eq!(figures(&ctl, "db")["limits"], json!({}));

    let events = ctl.json("events");
    let events = events.as_array().expect("a list").iter().filter(|event| event["action"] == "volume.set");
    let details: Vec<&str> = events.map(|event| event["detail"].as_str().expect("a detail")).collect();
    assert_eq!(details.len(), 3, "{details:?}");
    assert_eq!(details[2], "limits: none (were: 500 operations/s, bursts of 2s)");

    ctl.run("volume set db").fails(2, &["--iops"]);
    ctl.run("volume set db --iops 0").fails(2, &["--iops none"]);
    ctl.run("volume set db --iops -5").fails(2, &["-5", "none"]);
    ctl.run("volume set db --bandwidth 1k").fails(2, &["4KiB/s is the least"]);
    ctl.run("volume set db --bandwidth 10X").fails(2, &["10X", "none"]);
    ctl.run("volume set db --burst 5s").fails(2, &["--iops or --bandwidth"]);
    ctl.run("volume set db --iops 5 --burst 1ms").fails(2, &["100ms"]);
    ctl.run("volume set nosuch --iops 5").fails(3, &["'nosuch'"]);
    assert_eq!(
        ctl.json("volume get db")["meta"]["generation"],
        none["meta"]["generation"],
        "nothing was changed by that"
    );
    ctl.check();
}

fn limits_hold_again_before_a_restarted_service_serves_anybody(backing: Backing) {
    let mut cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    let id = ctl.text("volume get db", "/meta/id");
    let description = || std::fs::read(cluster.pool().join(format!("volumes/{id}.json"))).expect("what the disk says");
    let before = description();
    let mut connected = client(&cluster.local_uri("db")).expect("a connection");
    connected.write(0, &[7; 4096], true).expect("a write before");
    ctl.ok("volume set db --iops 100 --burst 1m");
    connected.write(0, &[8; 4096], true).expect("a write after, on the same connection");
    assert!(description() == before, "the disk does not know of limits");
    let seen = figures(&ctl, "db");
    assert_eq!(
        (&seen["now"]["connections"], &seen["total"]["operations"]["write"]["operations"]),
        (&json!(1), &json!(2))
    );
    ctl.check();

    // The manager is away: only the ledger can say so.
    cluster.manager.kill();
    cluster.restart_block();
    until("the volume to be served again", || client(&cluster.local_uri("db")).ok());
    let seen = figures(&cluster.block_ctl(), "db");
    assert_eq!(seen["limits"], json!({"iops": 100, "burst_ms": 60_000}));
    cluster.manager.start_serving(&ctl.socket);
    ctl.check_when_settled();
}

#[test]
fn what_fio_does_is_counted_while_it_does_it_and_never_exceeds_the_limit() {
    const IOPS: f64 = 300.0;
    const REQUESTS: f64 = 500.0;
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 16M");
    ctl.ok(&format!("volume set db --iops {IOPS}"));
    let uri = format!("--uri={}", ctl.uri("db", "nbd"));
    let requests = format!("--number_ios={REQUESTS}");
    let job = ["--name=job", "--ioengine=nbd", &uri, "--rw=randrw", "--bs=4k", "--size=16M", "--iodepth=16", &requests];
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| tool("fio", &[&job[..], &["--output=/dev/null"]].concat()).succeeds());
        let mut busiest = 0.0f64;
        loop {
            let over = fio.is_finished();
            let seen = figures(&ctl, "db");
            let done = |kind: &str| number(&seen, &format!("/total/operations/{kind}/operations"));
            let (done, seconds) = (done("read") + done("write"), number(&seen, "/total/seconds"));
            // A tenth of a second's worth may be saved up, and one may make a debt of it.
            assert!(done <= IOPS * (seconds + 0.1) + 1.0, "{seen}");
            busiest = busiest.max(number(&seen, "/interval/queue_depth"));
            if over {
                assert!(done >= REQUESTS, "{seen}");
                break;
            }
        }
        assert!(busiest > 1.0, "requests were seen waiting");
        fio.join().expect("fio");
    });
    let seen = figures(&ctl, "db");
    let (reads, writes) = (&seen["total"]["operations"]["read"], &seen["total"]["operations"]["write"]);
    for kind in [reads, writes] {
        assert_eq!(number(kind, "/bytes"), number(kind, "/operations") * 4096.0, "{seen}");
        let latency = &kind["latency_seconds"];
        assert!(number(latency, "/p50") > 0.0 && number(latency, "/p50") <= number(latency, "/p99"), "{seen}");
    }
    assert!(number(&seen, "/total/throttled") > 0.0 && number(&seen, "/total/all/errors") == 0.0, "{seen}");
    ctl.check();
}

#[test]
fn figures_are_shown_to_people_and_programs_until_the_volume_is_gone() {
    let cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create db --size 1M");
    ctl.ok("volume create idle --size 1M");
    let mut connected = client(&ctl.uri("db", "nbd")).expect("a connection");
    connected.write(0, &[7; 4096], false).expect("a write");
    let table = ctl.ok("volume stats db idle --interval 100ms");
    for word in ["VOLUME", "IOPS", "P99", "DEPTH", "db", "idle", "4KiB"] {
        assert!(table.contains(word) || word == "4KiB" && table.contains("4.00KiB"), "{word} in {table}");
    }
    assert_eq!(ctl.ok("volume stats --interval 100ms -o name"), "db\nidle\n");
    ctl.run("volume stats nosuch").fails(3, &["'nosuch'"]);
    cluster.block_ctl().run("volume stats nosuch").fails(3, &["'nosuch'", "volume get nosuch"]);
    assert_eq!(figures(&cluster.block_ctl(), "db")["volume"]["name"], "db", "asked without a manager");

    let follow = |format: &str| {
        let socket = path_text(&ctl.socket);
        let words =
            ["ctl", "--socket", socket, "volume", "stats", "db", "--follow", "--interval", "100ms", "-o", format];
        let mut command = symphony(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a follower");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        (child, lines)
    };
    let (programs, mut documents) = follow("json");
    let (people, mut lines) = follow("table");
    for _ in 0..3 {
        let document: Value =
            serde_json::from_str(&documents.next().expect("it goes on").expect("a line")).expect("JSON");
        assert_eq!(document["total"]["operations"]["write"]["bytes"], 4096, "{document}");
        assert!(number(&document, "/interval/seconds") > 0.0 && document["interval"]["iops"] == 0.0, "{document}");
    }
    assert!(lines.next().expect("a header").expect("a line").contains("WHEN"));
    assert!(lines.next().expect("a row").expect("a line").contains(" db "));
    ctl.ok("volume remove db");
    for (mut child, rest) in [(programs, documents), (people, lines)] {
        rest.for_each(|line| drop(line.expect("a line")));
        assert!(child.wait().expect("an end").success(), "it ends with its volume, and in order");
    }
    ctl.check();
}

#[test]
fn monitoring_reads_the_same_figures() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let port = free_ports(1)[0];
    let address = format!("127.0.0.1:{port}");
    cluster.block.add_arguments(&["--metrics-listen", &address]);
    cluster.restart_block();
    let ctl = cluster.ctl();
    ctl.check_when_settled();
    ctl.ok("volume create db --size 1M");
    let mut connected = client(&ctl.uri("db", "nbd")).expect("a connection");
    connected.write(0, &[7; 8192], false).expect("a write");
    connected.read(0, &mut [0; 4096]).expect("a read");
    let page = || {
        let mut stream = TcpStream::connect(&address).expect("a listener");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let page = page();
    for line in [
        "symphony_volume_operations_total{volume=\"db\",op=\"write\"} 1",
        "symphony_volume_operations_total{volume=\"db\",op=\"flush\"} 0",
        "symphony_volume_bytes_total{volume=\"db\",op=\"write\"} 8192",
        "symphony_volume_bytes_total{volume=\"db\",op=\"read\"} 4096",
        "symphony_volume_errors_total{volume=\"db\",op=\"write\"} 0",
        "symphony_volume_operation_duration_seconds_count{volume=\"db\",op=\"read\"} 1",
        "symphony_volume_operation_duration_seconds_bucket{le=\"+Inf\",volume=\"db\",op=\"read\"} 1",
        "symphony_volume_queue_depth{volume=\"db\"} 0.0",
        "symphony_volume_connections{volume=\"db\"} 1.0",
        "# TYPE symphony_volume_operation_duration_seconds histogram",
    ] {
        assert!(page.contains(line), "{line} is missing in: {page}");
    }
    ctl.check();
}

#[test]
fn operators_elsewhere_see_figures_with_their_certificates_and_others_do_not() {
    let Some(hosts) = Hosts::start(["block", "client"], "") else { return };
    let block = hosts.joined_block("block");
    let ctl = hosts.ctl();
    ctl.ok("volume create db --size 1M");
    ctl.ok("volume set db --iops 77");
    let (viewer, data) = (hosts.bundle("looker", "viewer"), hosts.bundle("web", "data"));
    let far = |bundle: &std::path::Path, line: &str| {
        hosts.ctl_on("client", &format!("--manager {} --bundle {} {line}", hosts.address("manager"), path_text(bundle)))
    };
    let seen = far(&viewer, "volume stats db --interval 100ms -o json").succeeds();
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(seen[0]["limits"]["iops"], 77, "{seen}");
    far(&viewer, "volume set db --iops none").fails(4, &["SetVolume"]);
    assert_eq!(far(&data, "volume stats db").code, Some(4), "who uses volumes looks at none");
    // In plain text nothing is asked over the network.
    ctl.run("volume stats db").fails(4, &["--bundle"]);
    assert_eq!(figures(&block.control, "db")["limits"]["iops"], 77, "on its own host");
    ctl.check();
}
