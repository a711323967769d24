//! Running `lvm`: the executable, its deadlines, and what its failures mean.

use super::command::{Call, ENVIRONMENT};
use super::report::ReportError;
use crate::backend::BackendError;
use crate::host::external::{Limits, RunError, describe, run};
use crate::host::patience::Stuck;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where distributions put it.
const PLACES: &[&str] = &["/usr/sbin/lvm", "/sbin/lvm", "/usr/local/sbin/lvm", "/usr/bin/lvm", "/bin/lvm"];
/// A report on ten thousand volumes has some ten megabytes.
const LONGEST_OUTPUT: usize = 64 << 20;
/// Lines of its complaints that are passed on.
const SHOWN: usize = 6;

/// LVM's words, in the C locale, for a thin pool that is too full for anything new by LVM's own measure: why, which is a
/// warning to it, and that it is so, in one place or the other.
const SHORT_OF_METADATA: &str = "free space in metadata of thin pool";
const NOTHING_NEW: [&str; 2] = ["reached threshold", "new volumes are not allowed"];

/// Whatever carries out LVM's command lines: the executable, or a model of it.
pub trait Lvm: Send + Sync + 'static {
    /// What the call printed to its standard output.
    fn call(&self, call: &Call) -> Result<Vec<u8>, LvmError>;
}

#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    #[error("the program lvm is not there: install the package lvm2")]
    Absent,
    #[error("'{call}' failed ({end})")]
    Failed { call: String, end: String, complaint: String },
    #[error("'{call}' could not be carried out")]
    Run { call: String, source: RunError },
    #[error("{0}")]
    Stuck(Stuck),
    #[error("'{call}' answered what nobody understands")]
    Odd { call: String, source: ReportError },
}

impl LvmError {
    /// What it means for a pool in the volume group `place`.
    pub fn at(self, place: &str) -> BackendError {
        let action = self.to_string();
        match self {
            LvmError::Absent => BackendError::Absent { program: "the program lvm", remedy: "install the package lvm2" },
            LvmError::Failed { complaint, .. } if complaint.contains(SHORT_OF_METADATA) => {
                BackendError::Refused(format!(
                    "the metadata of the thin pool of {place} are all but full, and LVM makes nothing new in such a pool: remove \
                 snapshots or copies, or add a device ({complaint})"
                ))
            }
            LvmError::Failed { complaint, .. } if NOTHING_NEW.iter().any(|words| complaint.contains(words)) => {
                BackendError::Refused(format!("LVM makes nothing new in the thin pool of {place}: {complaint}"))
            }
            LvmError::Failed { complaint, .. } => BackendError::Io { action, source: io::Error::other(complaint) },
            LvmError::Stuck(stuck) => BackendError::Unreachable { place: place.to_owned(), reason: stuck.to_string() },
            LvmError::Run { call, source: late @ RunError::Late { .. } } => {
                BackendError::Unreachable { place: place.to_owned(), reason: format!("'{call}': {late}") }
            }
            LvmError::Run { source, .. } => BackendError::Io { action, source: io::Error::other(source) },
            LvmError::Odd { source, .. } => BackendError::Io { action, source: io::Error::other(source) },
        }
    }
}

/// The executable.
#[derive(Clone, Debug)]
pub struct Executable {
    program: PathBuf,
    looks: Limits,
    changes: Limits,
}

impl Executable {
    /// The one that is installed.
    ///
    /// # Errors
    /// [`LvmError::Absent`].
    pub fn installed() -> Result<Self, LvmError> {
        let found = PLACES.iter().map(Path::new).find(|place| place.is_file());
        // The check of a large thin pool's metadata, which its activation waits for, takes minutes.
        let (look, change) = (Duration::from_secs(30), Duration::from_secs(300));
        found.map(|program| Self::at(program, look, change)).ok_or(LvmError::Absent)
    }

    /// That program, with other deadlines.
    pub fn at(program: &Path, look: Duration, change: Duration) -> Self {
        let limits = |time| Limits { time, grace: Duration::from_secs(2), output: LONGEST_OUTPUT };
        Self { program: program.to_owned(), looks: limits(look), changes: limits(change) }
    }
}

impl Lvm for Executable {
    fn call(&self, call: &Call) -> Result<Vec<u8>, LvmError> {
        let limits = if call.looks { &self.looks } else { &self.changes };
        tracing::debug!(call = call.shown(), "running");
        let done = match run(&self.program, &call.arguments, ENVIRONMENT, limits) {
            Ok(done) => done,
            Err(RunError::Stuck(stuck)) => return Err(LvmError::Stuck(stuck.under(&format!("'{}':", call.shown())))),
            Err(source) => return Err(LvmError::Run { call: call.shown(), source }),
        };
        if done.status.success() {
            return Ok(done.stdout);
        }
        let complaint = complaint(&String::from_utf8_lossy(&done.stderr));
        Err(LvmError::Failed { call: call.shown(), end: describe(done.status), complaint })
    }
}

/// The lines that say why: the last ones, without warnings if there is anything else, but for the one that is the reason.
fn complaint(stderr: &str) -> String {
    let is_grave = |line: &str| !line.starts_with("WARNING:") || line.contains(SHORT_OF_METADATA);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let grave: Vec<&str> = lines.iter().copied().filter(|line| is_grave(line)).collect();
    let shown = if grave.is_empty() { lines } else { grave };
    match shown.len() {
        0 => "it did not say why".to_owned(),
        count => shown[count.saturating_sub(SHOWN)..].join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    /// An `lvm` that does what the script says.
    fn script(text: &str, time: Duration) -> (TempDir, Executable) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lvm");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        (scratch, Executable::at(&path, time, time))
    }

    fn call() -> Call {
        let arguments = ["vgs", "--config", "secret { }", "--devices", "/dev/vda", "group"];
        Call { arguments: arguments.map(String::from).to_vec(), looks: true }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_it_prints_comes_back_without_its_warnings() {
        let (_scratch, lvm) = script("echo WARNING: odd >&2; echo \"$1 $6 $LC_ALL\"", LONG);
        assert_eq!(lvm.call(&call()).unwrap(), b"vgs group C\n");
    }

    #[test]
    fn a_failure_names_the_call_its_exit_code_and_lvm_s_own_words() {
        let (_scratch, lvm) = script("echo '  WARNING: odd' >&2; echo '  no such group' >&2; exit 5", LONG);
        let error = lvm.call(&call()).unwrap_err().at("fast");
        assert_eq!(error.to_string(), "'lvm vgs --devices /dev/vda group' failed (exit code 5)");
        assert!(matches!(&error, BackendError::Io { source, .. } if source.to_string() == "no such group"));
        let (_scratch, lvm) = script("exit 1", LONG);
        let error = lvm.call(&call()).unwrap_err();
        assert!(matches!(error, LvmError::Failed { complaint, .. } if complaint.contains("did not say")));
    }

    #[test]
    fn a_pool_that_is_too_full_for_lvm_is_a_refusal_and_no_fault_of_the_disks() {
        let said = "echo '  WARNING: Sum of all thin volume sizes exceeds the size of thin pool.' >&2
            echo '  WARNING: Remaining free space in metadata of thin pool g/thin-pool is too low (75.10% >= 75.00%). Resize is recommended.' >&2
            echo '  Cannot create new thin volume, free space in thin pool g/thin-pool reached threshold.' >&2; exit 5";
        let (_scratch, lvm) = script(said, LONG);
        let error = lvm.call(&call()).unwrap_err().at("fast");
        assert!(matches!(&error, BackendError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("the metadata of the thin pool of fast are all but full"), "{text}");
        assert!(text.contains("75.10%") && !text.contains("Sum of all"), "{text}");
        for words in [
            "Cannot create new thin volume, free space in thin pool g/thin-pool reached threshold.",
            "Free space in pool g/thin-pool is above threshold, new volumes are not allowed.",
        ] {
            let (_scratch, lvm) = script(&format!("echo '  {words}' >&2; exit 5"), LONG);
            let error = lvm.call(&call()).unwrap_err().at("fast");
            assert!(matches!(&error, BackendError::Refused(text) if text.contains(words)), "{error:?}");
        }
    }

    #[test]
    fn one_that_hangs_makes_the_pool_unreachable_and_says_which_call_it_was() {
        let (_scratch, lvm) = script("sleep 1000", Duration::from_millis(200));
        let error = lvm.call(&call()).unwrap_err().at("fast");
        assert!(matches!(error, BackendError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("lvm vgs") && error.to_string().contains("200ms"), "{error}");
    }

    #[test]
    fn a_missing_program_says_what_to_install() {
        let lvm = Executable::at(Path::new("/no/such/lvm"), LONG, LONG);
        assert!(matches!(lvm.call(&call()), Err(LvmError::Run { .. })));
        assert!(LvmError::Absent.at("fast").to_string().contains("lvm2"));
    }
}
