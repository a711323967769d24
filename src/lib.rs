//! symphony.
pub mod backend;
pub mod io;
pub mod model;
pub mod proto { tonic::include_proto!("symphony.v1"); }
pub mod runtime;
pub mod session;
pub mod store;
