//! File systems that can be filled, and made to fail as a disk does that is pulled out.
//!
//! That needs no option of the program: XFS can be shut down, whereupon the kernel answers every access with EIO, until
//! it is mounted anew.

use crate::stage::{path_text, tool, until};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A directory in which mounts come and go for everybody: hosts of their own, which other tests make too, would keep
/// copies of them in use for ever.
pub struct Ground {
    path: PathBuf,
}

impl Ground {
    /// None where this system mounts nothing.
    pub fn prepare(path: &Path) -> Option<Self> {
        let text = path_text(path);
        let bound = tool("mount", &["--bind", text, text]);
        if bound.code != Some(0) {
            eprintln!("no file systems of their own: {}", bound.stderr);
            return None;
        }
        tool("mount", &["--make-shared", text]).succeeds();
        Some(Self { path: path.to_owned() })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let removed = tool("umount", &["-l", path_text(&self.path)]);
        assert!(removed.code == Some(0) || std::thread::panicking(), "{removed:?}");
    }
}

/// A mounted file system, gone with its last user.
pub struct Disk {
    path: PathBuf,
    /// What is mounted; none for memory.
    image: Option<PathBuf>,
}

impl Disk {
    /// XFS in a file, on which volumes can be copied without their bytes; none where this system mounts nothing.
    pub fn xfs(path: PathBuf) -> Option<Self> {
        let image = path.with_extension("img");
        // The smallest that mkfs.xfs makes; it occupies what is written to it.
        File::create(&image).and_then(|file| file.set_len(320 << 20)).expect("a file");
        tool("mkfs.xfs", &["-q", "-m", "reflink=1", path_text(&image)]).succeeds();
        Self { path, image: Some(image) }.made()
    }

    /// A file system in memory.
    pub fn memory(path: PathBuf) -> Option<Self> {
        Self { path, image: None }.made()
    }

    fn made(self) -> Option<Self> {
        std::fs::create_dir(&self.path).expect("a directory");
        self.mount().then_some(self)
    }

    fn mount(&self) -> bool {
        let path = path_text(&self.path);
        let mounted = match &self.image {
            Some(image) => tool("mount", &["-o", "loop", path_text(image), path]),
            None => tool("mount", &["-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", path]),
        };
        if mounted.code != Some(0) {
            eprintln!("no file systems of their own: {}", mounted.stderr);
        }
        mounted.code == Some(0)
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let file = File::create(self.ballast()).expect("a file");
        let (mut end, mut more) = (0, 256 << 20);
        while more >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), end, more) {
                Ok(()) => end += more,
                Err(Errno::ENOSPC) => more /= 2,
                Err(error) => panic!("filling {}: {error}", self.path.display()),
            }
        }
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("space again");
    }

    /// From now on every access fails. Without `-f` the kernel itself loses what it has acknowledged: a sync that meets the
    /// shutdown may be told that all is well.
    pub fn shut_down(&self) {
        tool("xfs_io", &["-x", "-c", "shutdown -f", path_text(&self.path)]).succeeds();
    }

    /// As the host finds it when it starts again. Nobody may be using it.
    pub fn remount(&self) {
        // The kernel lets go of the files of a killed process's rings a while after the process.
        until("nobody to be there any more", || {
            (tool("umount", &[path_text(&self.path)]).code == Some(0)).then_some(())
        });
        assert!(self.mount(), "what was mounted once can be mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: processes of a test that failed may still be in there.
        let removed = tool("umount", &["-l", path_text(&self.path)]);
        assert!(removed.code == Some(0) || std::thread::panicking(), "{removed:?}");
    }
}
