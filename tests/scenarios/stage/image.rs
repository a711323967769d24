//! Real file-system images to fill volumes with.

use super::command::path_text;
use super::tools::tool;
use sha2::{Digest, Sha256};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A sparse ext4 file system with files in it.
pub struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    /// Of `mebibytes`, filled to a part with files whose content `seed` decides.
    pub fn new(mebibytes: u64, seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let files = directory.path().join("files/deep/down");
        std::fs::create_dir_all(&files).expect("directories");
        let mut random = fastrand::Rng::with_seed(seed);
        for (number, length) in [1usize, 4096, 70_000, 3_000_000].into_iter().enumerate() {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            std::fs::write(files.join(format!("file-{number}")), bytes).expect("a file");
        }
        let image = Self { directory };
        let (tree, size) = (image.directory.path().join("files"), format!("{mebibytes}M"));
        tool("mkfs.ext4", &["-q", "-d", path_text(&tree), path_text(&image.path()), &size]).succeeds();
        assert!(is_sparse(&image.path()), "the image should have holes");
        image
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image.raw")
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).expect("the image")
    }

    /// Asserts that a file is this image, byte for byte and holes for holes.
    #[track_caller]
    pub fn assert_same(&self, copy: &Path) {
        assert!(self.bytes() == std::fs::read(copy).expect("the copy"), "{} differs", copy.display());
        assert!(is_sparse(copy), "{} has lost its holes", copy.display());
        tool("e2fsck", &["-fn", path_text(copy)]).succeeds();
    }
}

/// Whether a file occupies well less than its length.
fn is_sparse(path: &Path) -> bool {
    let facts = std::fs::metadata(path).expect("the file");
    facts.blocks() * 512 < facts.len() * 3 / 4
}

/// In hexadecimal digits, as people compare them.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
