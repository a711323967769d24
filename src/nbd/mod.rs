//! The NBD protocol, as in the `doc/proto.md` and `doc/uri.md` of the NetworkBlockDevice project.
//!
//! The server's half is a core without I/O: [`Handshake`] and [`Inbound`] take bytes and tell what they mean, the
//! functions of [`reply`] say what to send. Sockets, threads and clocks are the caller's. The client's half,
//! [`Client`], blocks on any stream that reads and writes; [`copy`] moves whole volumes through it, [`import`] images that it can go
//! on with.
//!
//! TLS is asked for with `NBD_OPT_STARTTLS` and spoken by [`Secure`], over rustls, on the thread that owns the
//! connection; [`tls`] has the client's credentials.
//!
//! Never here: files, devices, tables of exports, who may connect. Limitations: TLS 1.3 only, where the specification
//! also wants 1.2; the client knows neither extended headers nor more than one metadata context.

mod client;
pub mod copy;
mod errno;
mod handshake;
pub mod import;
mod inbound;
mod inquiry;
mod negotiate;
mod pieces;
mod relay;
pub mod reply;
mod request;
mod secure;
mod stream;
pub mod tls;
mod uri;
pub mod wire;

pub use client::{Client, ClientError, Completion, Dialled, Status, Ticket};
pub use errno::NbdErrno;
pub use handshake::{
    Closed, Encryption, ExportDescription, Exports, Handshake, Listed, Negotiated, Policy, Progress, transmission_flags,
};
pub use inbound::{Event, Inbound, Payload};
pub use inquiry::Inquiry;
pub use pieces::{PIECE, Pieces, Setback};
pub use request::{Command, Contexts, Headers, ProtocolError, Refusal, Request, Terms, Verdict, decode_request};
pub use secure::{Line, Secure, Wire};
pub use stream::{Stream, write_both};
pub use uri::{Target, Tls, Uri, UriError};
