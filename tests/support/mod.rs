//! What tests of the whole program need around it.

pub mod etcd;
pub mod loops;
pub mod mounted;
pub mod ports;
pub mod process;
