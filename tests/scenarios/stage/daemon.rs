//! A role of symphony as a process: started, hurt and brought back at will, gone with the test.

use super::command::{Outcome, finish, symphony};
use super::patience::until;
use crate::support::process::spawn_for_life;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// One process, which may be down for a while.
pub struct Daemon {
    arguments: Vec<String>,
    /// What the arguments are handed to.
    program: Box<dyn Fn() -> Command + Send + Sync>,
    directory: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Prepares `symphony ARGUMENTS…` to be run in `directory`; its output goes to `NAME.log` there.
    pub fn new(name: &str, directory: &Path, arguments: &[&str]) -> Self {
        Self::of(name, directory, || symphony(std::iter::empty::<&str>()), arguments)
    }

    /// The same of another program, or of symphony somewhere else.
    pub fn of(
        name: &str,
        directory: &Path,
        program: impl Fn() -> Command + Send + Sync + 'static,
        arguments: &[&str],
    ) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (directory, log) = (directory.to_owned(), directory.join(format!("{name}.log")));
        Self { arguments, program: Box::new(program), directory, log, child: None }
    }

    fn command(&self) -> Command {
        let mut command = (self.program)();
        command.args(&self.arguments);
        command.current_dir(&self.directory);
        command
    }

    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(spawn_for_life(command));
    }

    /// Starts it and waits until calls are answered on its control socket.
    pub fn start_serving(&mut self, socket: &Path) {
        self.start();
        until("a control socket that answers", || {
            self.assert_alive();
            std::os::unix::net::UnixStream::connect(socket).ok()
        });
    }

    /// Runs it where it must end by itself.
    #[track_caller]
    pub fn run_to_end(&self) -> Outcome {
        finish(self.command())
    }

    /// Adds to the command line of the next start.
    pub fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill a child");
            child.wait().expect("bury a child");
        }
    }

    /// Asks it to end, and waits for that.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().expect("it runs");
        until("an end in order", || child.try_wait().expect("look after a child"))
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().try_into().expect("a pid")), signal).expect("signal a child");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    #[track_caller]
    pub fn assert_alive(&mut self) {
        let ended = self.child.as_mut().expect("it runs").try_wait().expect("look after a child");
        assert_eq!(ended, None, "it ended by itself:\n{}", self.log());
    }

    /// Everything it has said so far, in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        let panics = log.lines().filter(|line| line.contains("panicked at")).collect::<Vec<_>>();
        if std::thread::panicking() {
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            eprintln!("---- {} ----\n{tail}", self.log.display());
        } else {
            assert!(panics.is_empty(), "a process panicked: {panics:?}");
        }
    }
}
