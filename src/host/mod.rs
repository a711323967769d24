//! The host: the only door to the operating system. Files and directories that survive power cuts, the config
//! directory, facts about disks, and who is at the other end of a connection.
//!
//! Never here: what the files mean, gRPC, the store. Every call blocks for as long as the disk does, none longer.
//!
//! Limitations: Linux only. Durability is as good as the file system's `fsync`, and file names are UTF-8.

mod aside;
pub mod config_dir;
pub mod directory;
pub mod disk;
pub mod document;
pub mod files;
mod identity;
mod limits;
pub mod lock;
pub mod peer;
pub mod unix_socket;

pub use aside::{put_aside, take_back};
pub use config_dir::{ConfigDir, ConfigDirError};
pub use document::{Document, DocumentError, load_document, save_document};
pub use limits::raise_open_files;
pub use peer::{LocalUser, PeerRefused, is_local_peer, tcp_peer, unix_peer};
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
