//! kill -9 of the block service under load: a pause for clients that connect again, and never a lie.

use crate::stage::{Backing, Cluster, Image, compare, path_text, until};
use crate::support::process::{mortal, spawn_for_life};
use crate::upgrades::{assert_clean, fio};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;

fn with_volume() -> (Cluster, String) {
    let cluster = Cluster::start(Backing::Embedded);
    cluster.ctl().ok("volume create db --size 64M");
    let uri = cluster.local_uri("db");
    (cluster, uri)
}

/// A program that is asked line by line, and whatever it says.
struct Talk {
    child: Child,
    asks: ChildStdin,
    says: mpsc::Receiver<String>,
}

impl Talk {
    fn start(mut command: std::process::Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn_for_life(command);
        let (asks, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (told, says) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, asks, says }
    }

    fn ask(&mut self, line: &str) {
        writeln!(self.asks, "{line}").expect("it listens");
    }

    /// Waits for a line with these words, and for none that tells of a failure.
    fn hear(&self, words: &str) {
        until(words, || {
            let line = self.says.recv_timeout(std::time::Duration::from_millis(20)).ok()?;
            assert!(!line.contains("error") && !line.contains("failed"), "{line}");
            line.contains(words).then_some(())
        });
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.child.kill().is_ok() {
            self.child.wait().expect("bury a child");
        }
    }
}

#[test]
fn qemu_that_may_reconnect_keeps_its_guest_waiting_and_loses_nothing() {
    let (mut cluster, _) = with_volume();
    let socket = cluster.block_dir().join("nbd.sock");
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=db,reconnect-delay=60,open-timeout=60",
        path_text(&socket)
    );
    // Into a pipe it would keep for itself what it has to say.
    let mut command = mortal("stdbuf");
    command.args(["-oL", "qemu-io", "--image-opts", &image]);
    let mut qemu = Talk::start(command);
    // One line at a time: it does not look for a second one that came along with the first.
    for round in 1..=4u64 {
        let [first, second] = [0, 1].map(|slot| format!("{}k 64k", (round * 10 + slot) * 64));
        qemu.ask(&format!("write -P {round} {first}"));
        qemu.hear("wrote 65536/65536");
        cluster.block.kill();
        qemu.ask(&format!("write -P {} {second}", round + 50));
        cluster.block.start_serving(&cluster.block_ctl().socket);
        qemu.hear("wrote 65536/65536");
        for (byte, place) in [(round, &first), (round + 50, &second)] {
            qemu.ask(&format!("read -P {byte} {place}"));
            qemu.hear("read 65536/65536");
        }
    }
    cluster.ctl().check_when_settled();
}

#[test]
fn fio_behind_a_client_that_connects_again_finds_every_byte() {
    let (mut cluster, uri) = with_volume();
    let socket = cluster.path().join("nbdkit.sock");
    let mut command = mortal("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--filter=retry", "--unix", path_text(&socket), "nbd"]);
    command.args([&uri, "retry=30", "retries=60", "retry-delay=1", "retry-exponential=no"]);
    command.stdin(Stdio::null());
    let mut nbdkit = spawn_for_life(command);
    until("nbdkit to listen", || std::os::unix::net::UnixStream::connect(&socket).ok());
    let mut fio = fio(cluster.path(), &format!("nbd+unix:///?socket={}", path_text(&socket)));
    for _ in 0..3 {
        let written = std::fs::metadata(cluster.path().join("fio.log")).expect("fio's log").len();
        assert!(fio.try_wait().expect("look after fio").is_none(), "fio ended early, having said {written} bytes");
        cluster.restart_block();
        cluster.ctl().check_when_settled();
    }
    assert_clean(fio, cluster.path());
    nbdkit.kill().and_then(|()| nbdkit.wait()).expect("end nbdkit");
    cluster.ctl().check_when_settled();
}

#[test]
fn a_copy_that_is_begun_again_after_each_kill_is_whole_in_the_end() {
    let (mut cluster, uri) = with_volume();
    let image = Image::new(64, 5);
    for _ in 0..3 {
        let mut command = mortal("nbdcopy");
        command.args(["--flush", path_text(&image.path()), &uri]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut copying = spawn_for_life(command);
        cluster.restart_block();
        // Cut off in the midst of it, or done before; either way the next one is as good.
        until("the copy to end", || copying.try_wait().expect("look after nbdcopy"));
        cluster.ctl().check_when_settled();
    }
    until("a copy to succeed", || {
        let copied = crate::stage::tool("nbdcopy", &["--flush", path_text(&image.path()), &uri]);
        (copied.code == Some(0)).then_some(())
    });
    compare(&image.path(), &uri);
    cluster.ctl().check_when_settled();
}
