//! symphony.
pub mod backend;
pub mod io;
pub mod model;
pub mod store;
pub mod proto {
    tonic::include_proto!("symphony.v1");
}
