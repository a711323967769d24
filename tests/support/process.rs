//! Child processes that never outlive the tests, however these end.

use std::ffi::OsStr;
use std::process::{Child, Command};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};

/// A command that the kernel kills with the thread that starts it.
pub fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Starts a process from a thread that lives as long as this process does: a test's own thread ends with the test,
/// and would take along what other tests still use.
pub fn spawn_for_life(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static NURSERY: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in queue {
                reply.send(command.spawn()).expect("somebody waits for the child");
            }
        });
        Mutex::new(orders)
    });
    let (reply, child) = mpsc::channel();
    NURSERY.lock().unwrap_or_else(PoisonError::into_inner).send((command, reply)).expect("the nursery lives");
    child.recv().expect("the nursery answers").expect("start a process through setpriv (util-linux)")
}
