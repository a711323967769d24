//! Putting files out of the way without losing them.

use super::directory::FileError;
use super::files::sync_dir;
use std::path::{Path, PathBuf};

/// Renames `name.json` to a free `name.<why>[.n].json` beside it, durably; the new path. Another extension, or that of
/// a directory, which has none, is kept likewise.
///
/// # Errors
/// If the rename fails; the file is then where it was.
pub fn put_aside(path: &Path, why: &str) -> Result<PathBuf, FileError> {
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let end = path.extension().map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
    let first = std::iter::once(format!("{stem}.{why}{end}"));
    let names = first.chain((2u32..).map(|number| format!("{stem}.{why}.{number}{end}")));
    let free = names.map(|name| path.with_file_name(name)).find(|candidate| !candidate.exists());
    let free = free.unwrap_or_else(|| path.with_extension("aside"));
    std::fs::rename(path, &free).map_err(|error| FileError::new("put aside", path, error))?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(free)
}

/// Undoes [`put_aside`]: `aside` goes back to `path`. What came to be there meanwhile is removed.
///
/// # Errors
/// If a step fails; `aside` is whole at the one place or the other.
pub fn take_back(aside: &Path, path: &Path) -> Result<(), FileError> {
    // A file is replaced by the rename itself.
    if path.is_dir() {
        std::fs::remove_dir_all(path).map_err(|error| FileError::new("remove", path, error))?;
    }
    std::fs::rename(aside, path).map_err(|error| FileError::new("take back", path, error))?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_put_aside_before_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        for content in ["one", "two", "three"] {
            std::fs::write(&path, content).unwrap();
            let aside = put_aside(&path, "damaged").unwrap();
            assert_eq!(std::fs::read_to_string(aside).unwrap(), content);
            assert!(!path.exists());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_was_put_aside_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (file, tree) = (dir.path().join("identity.json"), dir.path().join("tls"));
        std::fs::write(&file, "old").unwrap();
        std::fs::create_dir(&tree).unwrap();
        let (aside_file, aside_tree) = (put_aside(&file, "refused").unwrap(), put_aside(&tree, "refused").unwrap());
        std::fs::write(&file, "new").unwrap();
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("key.pem"), "new").unwrap();
        take_back(&aside_file, &file).unwrap();
        take_back(&aside_tree, &tree).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_was_put_aside_keeps_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        for (name, aside) in [("cert.pem", "cert.damaged.pem"), ("tls", "tls.damaged"), ("tls", "tls.damaged.2")] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            assert_eq!(put_aside(&dir.path().join(name), "damaged").unwrap(), dir.path().join(aside));
        }
    }
}
