//! Programs that run to their end, and what is expected of it.

use crate::support::process::mortal;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// The user and group `nobody`: somebody who is neither root nor symphony.
const NOBODY: &str = "65534";

/// How a program ended, and all it said.
#[derive(Debug)]
pub struct Outcome {
    /// What was run, for messages.
    line: String,
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a program that must succeed.
    #[track_caller]
    pub fn succeeds(self) -> String {
        let text = String::from_utf8_lossy(&self.stdout).into_owned();
        assert_eq!(self.code, Some(0), "{}: {}\n{text}", self.line, self.stderr);
        text
    }

    /// Standard error of a program that must end with `code` and use each of `words` to say why.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        let Self { line, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "{line}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{line}: '{word}' is missing in: {stderr}");
        }
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        self.stderr
    }
}

/// The words of a command line; none of them can hold a space.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

/// The program under test, with nothing of the surrounding environment that could change what it does.
pub fn symphony<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    cleaned(mortal(env!("CARGO_BIN_EXE_symphony")), arguments)
}

/// A program run by a user of this host who is neither root nor symphony.
pub fn nobody<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "KILL"]).arg(program);
    cleaned(command, arguments)
}

fn cleaned<A: AsRef<OsStr>>(mut command: Command, arguments: impl IntoIterator<Item = A>) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SYMPHONY_") || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.args(arguments);
    command
}

/// Runs a program to its end, with nothing on its standard input.
#[track_caller]
pub fn finish(command: Command) -> Outcome {
    finish_with(command, Vec::new())
}

/// Runs a program to its end, with `input` on its standard input.
#[track_caller]
pub fn finish_with(mut command: Command, input: Vec<u8>) -> Outcome {
    let line = format!("{:?} {:?}", command.get_program(), command.get_args().collect::<Vec<_>>());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {line}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that does not read to the end is free to.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = gather(child.stdout.take().expect("a pipe"));
    let stderr = gather(child.stderr.take().expect("a pipe"));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("look after a child") {
            break status;
        }
        if began.elapsed() > LIMIT {
            child.kill().expect("kill a child");
            child.wait().expect("bury a child");
            let said = String::from_utf8_lossy(&stderr.join().expect("a reader")).into_owned();
            panic!("{line} does not end: {said}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    writer.join().expect("a writer");
    let stdout = stdout.join().expect("a reader");
    let stderr = String::from_utf8_lossy(&stderr.join().expect("a reader")).into_owned();
    Outcome { line, code: status.code(), stdout, stderr }
}

fn gather(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("read a pipe");
        bytes
    })
}
