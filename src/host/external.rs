//! The one door to other programs: bounded in time and in what they may say, and never waited for once they hang.
//!
//! A program runs in a process group of its own with nothing on its standard input and nothing of our environment.
//! When its time is over the whole group is killed. What then still does not end hangs in the kernel: it is left to the
//! thread that reaps it, and the caller is told where it hangs.

use super::patience::Stuck;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How much of each is granted to a program.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub time: Duration,
    /// After the kill, before it counts as stuck.
    pub grace: Duration,
    /// For each of its two outputs, in bytes.
    pub output: usize,
}

/// What a program that ended by itself left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot run {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot read what it says")]
    Read(#[source] io::Error),
    #[error("it said more than {limit} bytes and was killed")]
    TooMuch { limit: usize },
    #[error("it did not end within {} and was killed", humantime::format_duration(*time))]
    Late { time: Duration },
    #[error("{0}")]
    Stuck(Stuck),
}

/// Runs a program to its end. It sees the environment given and no other.
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    environment: &[(&str, &str)],
    limits: &Limits,
) -> Result<Finished, RunError> {
    let end = Instant::now() + limits.time;
    let start = |source| RunError::Start { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(start)?;
    let pipes = (child.stdout.take(), child.stderr.take());
    let running = Running::watch(child).map_err(start)?;
    let (Some(stdout), Some(stderr)) = pipes else { return Err(start(io::ErrorKind::BrokenPipe.into())) };
    let mut outputs = [OwnedFd::from(stdout), OwnedFd::from(stderr)].map(Output::new);
    match collect(&mut outputs, &running.ended, end, limits.output) {
        Ok(true) => {}
        Ok(false) => return Err(running.kill(limits, RunError::Late { time: limits.time })),
        Err(error) => return Err(running.kill(limits, error)),
    }
    // Reaped: that is what closed the pipe `ended`.
    match running.status.recv() {
        Ok(Ok(status)) => {
            let [stdout, stderr] = outputs.map(|output| output.said);
            Ok(Finished { status, stdout, stderr })
        }
        Ok(Err(error)) => Err(RunError::Read(error)),
        Err(_) => Err(RunError::Read(io::ErrorKind::BrokenPipe.into())),
    }
}

/// Says how a program ended, for people.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

/// A child and the thread that reaps it.
struct Running {
    group: Pid,
    status: Receiver<io::Result<ExitStatus>>,
    /// Its other end closes when the child has been reaped.
    ended: PipeReader,
    life: Weak<()>,
}

impl Running {
    fn watch(mut child: Child) -> io::Result<Self> {
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?);
        let (ended, ending) = io::pipe()?;
        let (sender, status) = mpsc::channel();
        let life = Arc::new(());
        let alive = Arc::downgrade(&life);
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
            let status = child.wait();
            drop(life);
            // Whoever gave up on the child does not listen.
            drop(sender.send(status));
            drop(ending);
        })?;
        Ok(Self { group, status, ended, life: alive })
    }

    /// Kills the group; `error`, unless the child does not even die of that.
    fn kill(self, limits: &Limits, error: RunError) -> RunError {
        match killpg(self.group, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => tracing::warn!(group = %self.group, %errno, "a program cannot be killed"),
        }
        if self.status.recv_timeout(limits.grace).is_ok() {
            return error;
        }
        let task = PathBuf::from(format!("/proc/{}", self.group));
        RunError::Stuck(Stuck::new(format!("its process {}, killed,", self.group), &task, self.life))
    }
}

/// One of the two outputs: closed once all was read.
struct Output {
    open: Option<File>,
    said: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> Self {
        Self { open: Some(File::from(pipe)), said: Vec::new() }
    }

    fn read(&mut self, limit: usize) -> Result<(), RunError> {
        let Some(pipe) = &mut self.open else { return Ok(()) };
        let mut piece = [0; 16 << 10];
        match pipe.read(&mut piece) {
            Ok(0) => self.open = None,
            Ok(count) => self.said.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RunError::Read(error)),
        }
        if self.said.len() > limit { Err(RunError::TooMuch { limit }) } else { Ok(()) }
    }
}

/// Reads until the child has been reaped and all it said is read; `Ok(false)` if `end` comes first. What others that
/// inherited its outputs say after its end is not waited for.
fn collect(outputs: &mut [Output; 2], ended: &PipeReader, end: Instant, limit: usize) -> Result<bool, RunError> {
    let mut over = false;
    loop {
        let patience = if over { Duration::ZERO } else { end.saturating_duration_since(Instant::now()) };
        let (reaped, spoken) = wait(outputs, ended, patience)?;
        for (output, _) in outputs.iter_mut().zip(spoken).filter(|(_, spoken)| *spoken) {
            output.read(limit)?;
        }
        if over && spoken == [false; 2] {
            return Ok(true);
        }
        over |= reaped;
        if !over && Instant::now() >= end {
            return Ok(false);
        }
    }
}

/// Waits until one of the three has something to read; says which: the end, and the outputs.
fn wait(outputs: &[Output; 2], ended: &PipeReader, patience: Duration) -> Result<(bool, [bool; 2]), RunError> {
    let timeout = PollTimeout::try_from(patience.as_millis()).unwrap_or(PollTimeout::MAX);
    // A pipe that is closed would end every wait at once, so it is left out.
    let open = outputs.iter().filter_map(|output| output.open.as_ref()).map(File::as_fd);
    let mut polled: Vec<PollFd> =
        std::iter::once(ended.as_fd()).chain(open).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok((false, [false; 2])),
        Err(errno) => return Err(RunError::Read(errno.into())),
    }
    let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(true));
    let reaped = ready.next().unwrap_or(false);
    Ok((reaped, [0, 1].map(|which: usize| outputs[which].open.is_some() && ready.next().unwrap_or(false))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(60), grace: Duration::from_secs(60), output: 1 << 20 };

    fn shell(script: &str, limits: &Limits) -> Result<Finished, RunError> {
        run(Path::new("/bin/sh"), &["-c", script], &[("WORD", "one")], limits)
    }

    #[test]
    fn both_outputs_and_the_exit_code_come_back_apart() {
        let done = shell("echo $WORD; echo two >&2; exit 3", &LIMITS).unwrap();
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"one\n"[..], &b"two\n"[..]));
        assert_eq!((done.status.code(), describe(done.status)), (Some(3), "exit code 3".to_owned()));
    }

    #[test]
    fn a_program_sees_nothing_of_our_environment_and_gets_no_input() {
        let done = shell("cat; echo ${CARGO_MANIFEST_DIR-unset}", &LIMITS).unwrap();
        assert_eq!(done.stdout, b"unset\n");
    }

    #[test]
    fn more_than_a_pipe_holds_is_read_whole() {
        let done = shell("head -c 500000 /dev/zero; head -c 500000 /dev/zero >&2", &LIMITS).unwrap();
        assert_eq!((done.stdout.len(), done.stderr.len()), (500_000, 500_000));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let limits = Limits { time: Duration::from_millis(300), ..LIMITS };
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("children");
        let error = shell(&format!("sleep 1000 & echo $! >{}; wait", file.display()), &limits).unwrap_err();
        assert!(matches!(error, RunError::Late { .. }), "{error}");
        let child = std::fs::read_to_string(&file).unwrap();
        let gone = || match std::fs::read_to_string(format!("/proc/{}/stat", child.trim())) {
            // Killed, and waiting for an init that reaps it.
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !gone() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_that_floods_is_killed() {
        let error = shell("cat /dev/zero", &Limits { output: 1000, ..LIMITS }).unwrap_err();
        assert!(matches!(error, RunError::TooMuch { limit: 1000 }), "{error}");
        let error = shell("cat /dev/zero >&2", &Limits { output: 1000, ..LIMITS }).unwrap_err();
        assert!(matches!(error, RunError::TooMuch { .. }), "{error}");
    }

    #[test]
    fn one_that_leaves_a_child_with_its_outputs_open_has_ended_all_the_same() {
        let done = shell("sleep 1000 & echo $!", &LIMITS).unwrap();
        let left: i32 = String::from_utf8(done.stdout).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_program_that_closes_its_outputs_is_still_waited_for() {
        let done = shell("exec >&- 2>&-; sleep 0.2; exit 5", &LIMITS).unwrap();
        assert_eq!(done.status.code(), Some(5));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(Path::new("/no/such/program"), &[""; 0], &[], &LIMITS).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
