//! An accepted connection, and all the ways in which this side ends it.

use super::caller::{Caller, Peer};
use super::limits::Limits;
use super::seats::Seat;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// What carries the bytes: TCP, TLS over TCP, or a unix socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An accepted connection. It ends by itself when its peer never asks anything, when its seat is wanted back, when its
/// certificate is void, and, for peers who have proven nothing, when it is old.
pub struct Connection {
    stream: Box<dyn Stream>,
    peer: Peer,
    ending: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    ended: Option<&'static str>,
    /// Given back when the connection ends.
    _seat: Seat,
}

impl Connection {
    pub(super) fn new(stream: impl Stream + 'static, peer: Peer, seat: Seat, limits: &Limits) -> Self {
        let age = match peer.caller() {
            Caller::Local { .. } | Caller::Certified(_) => None,
            Caller::Anonymous | Caller::Refused(_) => Some(limits.guest_age),
        };
        let ending = ending(seat.evicted().clone(), peer.heard().clone(), limits.first_request, age);
        Self { stream: Box::new(stream), peer, ending: Box::pin(ending), ended: None, _seat: seat }
    }

    /// Fails once the connection is at its end; till then the task that asks is woken by that.
    fn poll_alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended.is_none()
            && let Poll::Ready(why) = self.ending.as_mut().poll(cx)
        {
            tracing::debug!(peer = %self.peer.peer, caller = %self.peer.caller(), why, "ending a connection");
            self.ended = Some(why);
        }
        match self.ended {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
        }
    }
}

/// Completes when the connection has to end, with the reason.
async fn ending(
    evicted: CancellationToken,
    heard: CancellationToken,
    first_request: Duration,
    age: Option<Duration>,
) -> &'static str {
    let mute = async {
        if tokio::time::timeout(first_request, heard.cancelled()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let old = async {
        match age {
            Some(age) => tokio::time::sleep(age).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = evicted.cancelled() => "its seat was taken back",
        () = mute => "no request came in time",
        () = old => "its time is up",
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_alive(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

/// Writing and flushing ask too: while a peer that does not read holds these up, nobody may be reading.
impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_alive(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_alive(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_alive(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
