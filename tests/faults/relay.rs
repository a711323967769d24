//! A relay beside a server: it can take its time, and it can hang up in the middle of anything.
//!
//! Slowness holds every byte back for a while and keeps their order, as a long line does. Hanging up is how loss looks
//! to those who speak over TCP: they learn of it by a connection that breaks, with what was under way on it.

use crate::stage::Host;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes that go at once, and how many such pieces may be under way in one direction.
const PIECE: usize = 16 << 10;
const PIECES: usize = 64;
/// Of so many pieces one ends its connection, while a relay hangs up.
const ONE_OF: u32 = 30;

/// What is wrong with the relays of a host.
#[derive(Debug, Default)]
pub struct Trouble {
    /// Milliseconds that every byte is held back for.
    delay: AtomicU64,
    /// Zero, or one of so many pieces is a connection's last.
    hangs_up: AtomicU64,
}

impl Trouble {
    pub fn delay(&self, milliseconds: u64) {
        self.delay.store(milliseconds, Ordering::Relaxed);
    }

    pub fn hang_up(&self, does: bool) {
        self.hangs_up.store(does.into(), Ordering::Relaxed);
    }
}

/// Ports of one host behind other ports of the same one.
pub struct Relays {
    pub trouble: Arc<Trouble>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relays {
    /// Each pair is the port that is dialled and the one that it stands for. Returns once all are listened on.
    pub fn start(host: &Host, ports: &[(u16, u16)]) -> Self {
        let trouble = Arc::new(Trouble::default());
        let (stop, stopped) = oneshot::channel();
        let (told, listening) = std::sync::mpsc::channel();
        let (theirs, place, ports) = (Arc::clone(&trouble), host.clone(), ports.to_vec());
        let thread = std::thread::spawn(move || {
            // The sockets are of the host that this thread is on.
            place.enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut listeners = JoinSet::new();
                for (from, to) in ports {
                    let address = |port| -> SocketAddr { format!("{}:{port}", place.address).parse().expect("one") };
                    let listener = TcpListener::bind(address(from)).await.expect("a free port");
                    listeners.spawn(serve(listener, address(to), Arc::clone(&theirs)));
                }
                told.send(()).expect("somebody waits");
                // Dropped without a word, or told: the end is the same.
                drop(stopped.await);
            });
        });
        listening.recv().expect("relays that listen");
        Self { trouble, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(!matches!(ended, Some(Err(_))) || std::thread::panicking(), "a relay panicked");
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, trouble: Arc<Trouble>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        if let Ok((near, _)) = accepted {
            let trouble = Arc::clone(&trouble);
            // Whichever end breaks, both are closed; what it broke of is for those who use them.
            connections.spawn(async move { drop(relay(near, to, &trouble).await) });
        }
    }
}

async fn relay(near: TcpStream, to: SocketAddr, trouble: &Trouble) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::try_join!(pass(near_in, far_out, trouble), pass(far_in, near_out, trouble))?;
    Ok(())
}

/// One direction, to its end.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, trouble: &Trouble) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let take = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = from.read(&mut buffer).await?;
            if trouble.hangs_up.load(Ordering::Relaxed) != 0 && fastrand::u32(..ONE_OF) == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let due = Instant::now() + Duration::from_millis(trouble.delay.load(Ordering::Relaxed));
            let piece = buffer[..count].to_vec();
            if sender.send((due, piece)).await.is_err() || count == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = pieces.recv().await {
            // This is what a relay that is slow is for.
            tokio::time::sleep_until(due).await;
            match piece.is_empty() {
                true => to.shutdown().await?,
                false => to.write_all(&piece).await?,
            }
        }
        io::Result::Ok(())
    };
    tokio::try_join!(take, give)?;
    Ok(())
}
