//! This process's program, and the one that may take its place: asked first, then run in the same process.

use super::inheritance::{LISTEN, VARIABLE, bequest};
use super::supervisor;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ffi::{CString, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// More than this nobody has to say, in bytes.
const LONGEST_ANSWER: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("{} did not answer within {limit:?}", path.display())]
    Late { path: PathBuf, limit: Duration },
    #[error("{} ended with {status}: {stderr}", path.display())]
    Failed { path: PathBuf, status: String, stderr: String },
    #[error("listening to {}", path.display())]
    Answer { path: PathBuf, source: io::Error },
}

/// An executable and the arguments that this process was started with.
#[derive(Clone, Debug)]
pub struct Program {
    executable: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be asked for early: when the executable has been replaced, the system does not know its path any more.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self { executable: std::env::current_exe()?, arguments: std::env::args_os().collect() })
    }

    /// The same arguments for another executable.
    pub fn at(&self, executable: &Path) -> Self {
        Self { executable: executable.to_owned(), ..self.clone() }
    }

    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Runs it to its end with `question`, `--`, and the arguments of this process; what it says on standard output.
    ///
    /// # Errors
    /// It cannot be run, fails, says too much, or takes too long; nothing of it is left running.
    pub fn ask(&self, question: &[&str], limit: Duration) -> Result<Vec<u8>, ProgramError> {
        let path = || self.executable.clone();
        let mut command = Command::new(&self.executable);
        command.args(question).arg("--").args(self.arguments.iter().skip(1));
        for name in [VARIABLE, supervisor::VARIABLE].iter().chain(&LISTEN) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| ProgramError::Start { path: path(), source })?;
        let said = listen(&mut child, Instant::now() + limit);
        // Who has closed both pipes in order has ended: to that one nothing happens.
        let ended = child.kill().and_then(|()| child.wait());
        let failed = |source| ProgramError::Answer { path: path(), source };
        let (stdout, stderr) = said.map_err(failed)?.ok_or_else(|| ProgramError::Late { path: path(), limit })?;
        let status = ended.map_err(failed)?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(ProgramError::Failed { path: path(), status: status.to_string(), stderr });
        }
        Ok(stdout)
    }

    /// Runs it in this process, with the same arguments and the descriptors under their names. Everything else of this
    /// process is gone then, at once and without a word, like at a kill. `SIGUSR2` is ignored there until it is handled.
    ///
    /// # Errors
    /// It does not return but with the reason why it could not be done; then all is as before, but that child processes
    /// would find the descriptors until they are closed.
    pub fn take_over(&self, left: &[(String, OwnedFd)]) -> io::Error {
        let outcome = left.iter().try_for_each(|(_, descriptor)| {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(io::Error::from)
        });
        let Err(error) = outcome.and_then(|()| self.execute(left));
        error
    }

    fn execute(&self, left: &[(String, OwnedFd)]) -> io::Result<std::convert::Infallible> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
        let path = text(self.executable.as_os_str().as_bytes())?;
        let arguments: Vec<CString> =
            self.arguments.iter().map(|word| text(word.as_bytes())).collect::<io::Result<_>>()?;
        let ours = bequest(left.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_raw_fd())));
        let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE && LISTEN.iter().all(|it| name != it));
        let environment = others.chain([(VARIABLE.into(), ours.into())]);
        let environment: Vec<CString> = environment
            .map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<_>>()?;
        // The default is to end the process, and a second signal may come before the program has settled.
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring a signal runs no code of ours.
        let before = unsafe { sigaction(Signal::SIGUSR2, &ignore) }?;
        let outcome = nix::unistd::execve(&path, &arguments, &environment);
        // SAFETY: what was set before, set again.
        unsafe { sigaction(Signal::SIGUSR2, &before) }?;
        Ok(outcome?)
    }
}

/// All that a child says until it ends; none if that takes longer than to the deadline.
fn listen(child: &mut Child, deadline: Instant) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let (mut speaks, mut complains) = (true, true);
    while speaks || complains {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(left) = PollTimeout::try_from(left).ok().filter(|_| !left.is_zero()) else { return Ok(None) };
        let mut waits = Vec::new();
        if speaks {
            waits.push(PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
        }
        if complains {
            waits.push(PollFd::new(stderr.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut waits, left) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut heard = waits.iter().map(|wait| wait.any().unwrap_or(true));
        let (out, err) = (speaks && heard.next() == Some(true), complains && heard.next() == Some(true));
        drop(heard);
        if out {
            speaks = hear(&mut stdout, &mut said)?;
        }
        if err {
            complains = hear(&mut stderr, &mut complained)?;
        }
    }
    Ok(Some((said, complained)))
}

/// Takes what is there; says whether there may be more.
fn hear(pipe: &mut impl Read, heard: &mut Vec<u8>) -> io::Result<bool> {
    let mut batch = [0; 4096];
    let count = pipe.read(&mut batch)?;
    heard.extend(batch.get(..count).unwrap_or_default());
    if heard.len() > LONGEST_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it says more than anybody has to say"));
    }
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn shell(arguments: &[&str]) -> Program {
        let arguments = std::iter::once("sh").chain(arguments.iter().copied()).map(OsString::from).collect();
        Program { executable: "/bin/sh".into(), arguments }
    }

    #[test]
    fn a_program_is_heard_with_its_arguments() {
        let said = shell(&["a b", "c"]).ask(&["-c", "printf '%s,' \"$0\" \"$@\""], LIMIT).unwrap();
        assert_eq!(said, b"--,a b,c,");
    }

    #[test]
    fn programs_that_fail_hang_or_babble_are_told_apart() {
        let failed = shell(&[]).ask(&["-c", "echo no such luck >&2; exit 3"], LIMIT).unwrap_err().to_string();
        assert!(failed.contains("exit status: 3: no such luck"), "{failed}");
        let late = shell(&[]).ask(&["-c", "exec sleep 1000"], Duration::from_millis(50));
        assert!(matches!(late, Err(ProgramError::Late { .. })), "{late:?}");
        let babble = shell(&[]).ask(&["-c", "exec cat /dev/zero"], LIMIT);
        assert!(matches!(babble, Err(ProgramError::Answer { .. })), "{babble:?}");
        let none = Program { executable: "/nonexistent".into(), ..shell(&[]) }.ask(&[], LIMIT);
        assert!(matches!(none, Err(ProgramError::Start { .. })), "{none:?}");
    }

    #[test]
    fn a_program_that_cannot_be_run_leaves_everything_as_it_is() {
        let kept = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let left = [("kept".to_owned(), kept)];
        let error = Program { executable: "/nonexistent".into(), ..shell(&[]) }.take_over(&left);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        nix::unistd::fsync(&left[0].1).unwrap_err();
    }
}
