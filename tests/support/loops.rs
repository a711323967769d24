//! Disks of a test's own: loop devices, which any Linux with root rights has.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Loop devices over files that lie in memory or on disk; gone when dropped.
pub struct Loops {
    pub devices: Vec<PathBuf>,
    _files: TempDir,
}

impl Loops {
    /// None, with a word, where loop devices cannot be had.
    pub fn new(count: usize) -> Option<Self> {
        let files = tempfile::tempdir().unwrap();
        let mut loops = Self { devices: Vec::new(), _files: files };
        for number in 0..count {
            let path = loops._files.path().join(number.to_string());
            File::create(&path).unwrap().set_len(256 << 20).unwrap();
            match Command::new("losetup").args(["--find", "--show"]).arg(&path).output() {
                Ok(done) if done.status.success() => {
                    loops.devices.push(String::from_utf8(done.stdout).unwrap().trim().into());
                }
                other => {
                    eprintln!("skipped: loop devices cannot be had here: {other:?}");
                    return None;
                }
            }
        }
        Some(loops)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.devices {
            if let Err(error) = Command::new("losetup").arg("--detach").arg(device).status() {
                eprintln!("{} is left behind: {error}", device.display());
            }
        }
    }
}
