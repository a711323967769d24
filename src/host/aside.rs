//! Putting files out of the way without losing them.

use super::directory::FileError;
use super::files::sync_dir;
use std::path::{Path, PathBuf};

/// Renames `name.json` to a free `name.<why>[.n].json` beside it, durably; the new path.
///
/// # Errors
/// If the rename fails; the file is then where it was.
pub fn put_aside(path: &Path, why: &str) -> Result<PathBuf, FileError> {
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let first = std::iter::once(format!("{stem}.{why}.json"));
    let names = first.chain((2u32..).map(|number| format!("{stem}.{why}.{number}.json")));
    let free = names.map(|name| path.with_file_name(name)).find(|candidate| !candidate.exists());
    let free = free.unwrap_or_else(|| path.with_extension("aside"));
    std::fs::rename(path, &free).map_err(|error| FileError::new("put aside", path, error))?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(free)
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
}
