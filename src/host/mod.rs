//! The host: the only door to the operating system. Files and directories that survive power cuts, the config
//! directory, block devices, other programs, who is at the other end of a connection, and what one process leaves to the next.
//!
//! Never here: what the files mean, gRPC, the store. Every call blocks for as long as the disk does, none longer.
//!
//! Limitations: Linux only. Durability is as good as the file system's `fsync`, and file names are UTF-8.

mod aside;
pub mod block_device;
pub mod config_dir;
pub mod device_mapper;
pub mod devices;
pub mod directory;
pub mod disk;
pub mod document;
pub mod external;
pub mod files;
mod identity;
mod inheritance;
mod limits;
pub mod lock;
pub mod patience;
pub mod peer;
mod proc_state;
mod program;
mod sealed;
mod supervisor;
pub mod unix_socket;

pub use aside::{put_aside, take_back};
pub use config_dir::{ConfigDir, ConfigDirError};
pub use document::{Document, DocumentError, decode_document, encode_document, load_document, save_document};
pub use inheritance::Inheritance;
pub use limits::raise_open_files;
pub use peer::{LocalUser, PeerRefused, is_local_peer, tcp_peer, unix_peer};
pub use program::{Program, ProgramError};
pub use sealed::{seal, unseal};
pub use supervisor::Supervisor;
pub use unix_socket::SocketError;

/// The host's name as the kernel has it; a name that is not UTF-8 keeps its readable part.
pub fn host_name() -> std::io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_host_has_a_name() {
        assert!(!super::host_name().unwrap().is_empty());
    }
}
