//! File systems of a test's own, in a file of the directory that it works in.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, gone with its last user.
pub struct Mounted {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Mounted {
    /// An empty XFS file system, whose files can share blocks.
    ///
    /// # Errors
    /// Why this machine does not let us have one.
    pub fn xfs() -> Result<Self, String> {
        // The smallest that mkfs.xfs makes.
        Self::xfs_of(320 << 20)
    }

    /// The same, of so many bytes; it occupies what is written to it.
    ///
    /// # Errors
    /// Why this machine does not let us have one.
    pub fn xfs_of(bytes: u64) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, path) = (directory.path().join("image"), directory.path().join("mounted"));
        let file = std::fs::File::create(&image).and_then(|file| file.set_len(bytes));
        file.and_then(|()| std::fs::create_dir(&path)).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path))?;
        Ok(Self { path, _directory: directory })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: processes of a test that failed may still be in there.
        let removed = run(Command::new("umount").arg("-l").arg(&self.path));
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
