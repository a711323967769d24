//! Bytes in memory that a descriptor stands for and nobody changes any more: what one process tells the next.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL
}

/// Puts bytes into memory of their own; the name is for people who look at processes.
pub fn seal(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    parts.iter().try_for_each(|part| file.write_all(part))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(file.into())
}

/// All the bytes, if there are no more than `most`.
///
/// # Errors
/// `InvalidData` if it is no memory of this kind, or is too large.
pub fn unseal(descriptor: OwnedFd, most: u64) -> io::Result<Vec<u8>> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let found = fcntl(&descriptor, FcntlArg::F_GET_SEALS).map_err(|_| wrong("it is no sealed memory"))?;
    if !SealFlag::from_bits_retain(found).contains(seals()) {
        return Err(wrong("it can still be changed"));
    }
    let file = File::from(descriptor);
    let length = file.metadata()?.len();
    let length = usize::try_from(length).ok().filter(|_| length <= most).ok_or_else(|| wrong("it is too large"))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_come_back_and_cannot_be_changed() {
        let sealed = seal("test", &[b"some ", b"bytes"]).unwrap();
        let copy = File::from(sealed.try_clone().unwrap());
        (&copy).write_all(b"more").unwrap_err();
        assert_eq!(unseal(sealed.try_clone().unwrap(), 10).unwrap(), b"some bytes");
        assert!(unseal(sealed, 9).unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn other_descriptors_are_refused() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert_eq!(unseal(file, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let unsealed = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(unseal(unsealed, 10).unwrap_err().to_string().contains("changed"));
    }
}
