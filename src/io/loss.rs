//! Lost writes, noted on the file itself: whoever opens it next learns that what had been acknowledged may be gone.
//!
//! The kernel tells of a failed write-back once, to who had the file open then. A client that reconnects after the
//! process has been started anew, and repeats its flush, would be told that all is well. The note is an extended
//! attribute, so that it lasts as long as the file. It is for a person to take away, who has looked at the disk and at
//! what the volume holds: `setfattr -x user.symphony.lost-writes FILE`, before the file is opened again.
//!
//! Limitation: block devices, and file systems without such attributes, keep no note. A host that loses power may lose
//! it too.

use nix::errno::Errno;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The attribute. Its value is the number of the error, in decimal digits.
pub(super) const NOTE: &str = "user.symphony.lost-writes";

/// Notes that acknowledged writes may be lost. Best effort: the medium is failing.
pub(super) fn note(file: &File, error: &io::Error) {
    let number = error.raw_os_error().unwrap_or(Errno::EIO as i32).to_string();
    match fsetxattr(file, NOTE, number.as_bytes(), XattrFlags::empty()) {
        Ok(()) => {
            let path = path(file);
            tracing::error!(path, %error, "writes that had been acknowledged may be lost: flushes fail from now on");
        }
        Err(refused) => tracing::error!(
            path = path(file),
            %error,
            %refused,
            "writes that had been acknowledged may be lost, which cannot be noted on the file: flushes fail until it is \
             opened again"
        ),
    }
}

/// What was noted, as the error that every flush is answered with.
pub(super) fn noted(file: &File) -> Option<io::Error> {
    let mut value = [0; 16];
    let length = match fgetxattr(file, NOTE, &mut value[..]) {
        Ok(length) => length,
        // None, or none of its kind here.
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return None,
        Err(error) => {
            tracing::debug!(path = path(file), %error, "looking for a note of lost writes");
            return None;
        }
    };
    let text = value.get(..length).and_then(|value| std::str::from_utf8(value).ok());
    // A note that somebody has spoilt is a note.
    let number = text.and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(Errno::EIO as i32);
    tracing::error!(
        path = path(file),
        "writes that had been acknowledged were lost here before, so flushes fail; check the disk and what the volume \
         holds, then run `setfattr -x {NOTE}` on the file and start the service again"
    );
    Some(io::Error::from_raw_os_error(number))
}

/// For the log.
fn path(file: &File) -> String {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).map_or(link, |path| path.display().to_string())
}
