//! Descriptors that were left to this process: by the program that it was before (exec keeps the process), or by a
//! service manager that has kept them for its service (sd_listen_fds(3)).
//!
//! Both name them by number in the environment, together with the process that they are meant for. What is not taken is
//! closed when the inheritance is dropped.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `PID NAME=FD NAME=FD …`, from one program to the next in one process.
pub(super) const VARIABLE: &str = "SYMPHONY_INHERITED";

/// Numbers of the protocol of service managers.
pub(super) const LISTEN: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// The first descriptor that is not a standard one; service managers count from here.
const FIRST: RawFd = 3;

/// More descriptors than this are nobody's.
const MOST: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Inheritance {
    left: BTreeMap<String, OwnedFd>,
    names: Vec<String>,
    from_supervisor: bool,
}

impl Inheritance {
    /// What the environment names; nothing the second time.
    pub fn take_from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Self::default();
        }
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let own = own(&variable(VARIABLE), std::process::id());
        let [pid, count, names, _] = LISTEN.map(variable);
        let (named, from_supervisor) = match own {
            Some(named) => (named, false),
            None => (supervised(&pid, &count, &names, std::process::id()).unwrap_or_default(), true),
        };
        let left: BTreeMap<String, OwnedFd> =
            named.into_iter().filter_map(|(name, number)| Some((name, adopt(number)?))).collect();
        Self { names: left.keys().cloned().collect(), left, from_supervisor }
    }

    /// All that was left, whether it has been taken or not.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a service manager may still have its own copies.
    pub fn is_from_supervisor(&self) -> bool {
        self.from_supervisor
    }

    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.left.remove(name)
    }
}

/// Makes an inherited number ours: closed when dropped, and not left to anybody by accident.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: a question about a number; one that is not open is an error and nothing else.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        tracing::warn!(number, "an inherited descriptor is not open");
        return None;
    }
    // SAFETY: it is open, named once, and nobody else in this process knows of it: it was there before the program was.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        tracing::warn!(number, %error, "an inherited descriptor is left to child processes too");
    }
    Some(descriptor)
}

/// What [`VARIABLE`] says, if it speaks to the process `pid`.
fn own(text: &str, pid: u32) -> Option<BTreeMap<String, RawFd>> {
    let mut words = text.split_ascii_whitespace();
    if words.next()?.parse() != Ok(pid) {
        return None;
    }
    let pairs = words.map(|word| {
        let (name, number) = word.split_once('=')?;
        Some((name.to_owned(), number.parse().ok()?))
    });
    distinct(pairs.take(MOST).collect::<Option<Vec<_>>>()?)
}

/// What a service manager says, if it speaks to the process `pid`. Descriptors without a name of their own are left
/// alone: they are not from us.
fn supervised(pid: &str, count: &str, names: &str, ours: u32) -> Option<BTreeMap<String, RawFd>> {
    if pid.parse() != Ok(ours) {
        return None;
    }
    let count: RawFd = count.parse().ok().filter(|count| (1..=MOST as RawFd).contains(count))?;
    distinct(names.split(':').map(str::to_owned).zip(FIRST..FIRST + count).collect())
}

/// None if a number is a standard stream's or comes twice. Of several with one name, one is taken.
fn distinct(pairs: Vec<(String, RawFd)>) -> Option<BTreeMap<String, RawFd>> {
    let mut numbers: Vec<RawFd> = pairs.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    let count = numbers.len();
    numbers.dedup();
    let fine = numbers.len() == count && numbers.first().is_none_or(|first| *first >= FIRST);
    fine.then(|| pairs.into_iter().collect())
}

/// The text of [`VARIABLE`] for descriptors that the next program of this process is to find.
pub(super) fn bequest<'n>(left: impl IntoIterator<Item = (&'n str, RawFd)>) -> String {
    let pairs = left.into_iter().map(|(name, number)| format!(" {name}={number}"));
    std::iter::once(std::process::id().to_string()).chain(pairs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_left_is_found_by_its_name_and_by_nobody_else() {
        let text = bequest([("state", 7), ("nbd", 9)]);
        let expected = BTreeMap::from([("state".to_owned(), 7), ("nbd".to_owned(), 9)]);
        assert_eq!(own(&text, std::process::id()), Some(expected.clone()));
        assert_eq!(own(&text, std::process::id() + 1), None);
        let expected = BTreeMap::from([("state".to_owned(), 3), ("nbd".to_owned(), 4)]);
        assert_eq!(supervised("5", "2", "state:nbd", 5), Some(expected));
        assert_eq!(supervised("5", "2", "state:nbd", 6), None);
        assert_eq!(supervised("5", "3", "state:nbd", 5).map(|it| it.len()), Some(2), "one has no name");
    }

    #[test]
    fn garbled_words_leave_nothing() {
        for text in ["", "x", "5", "5 a", "5 a=", "5 a=x", "5 a=2", "5 a=-1", "5 a=7 b=7", "5 a=99999999999"] {
            assert!(own(text, 5).is_none_or(|left| left.is_empty()), "{text}");
        }
        for count in ["", "0", "-1", "x", "99999999999", "70000"] {
            assert_eq!(supervised("5", count, "a:b", 5), None, "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_read_without_a_panic(text in ".{0,80}", count in "[0-9]{0,6}") {
            own(&format!("5 {text}"), 5);
            supervised("5", &count, &text, 5);
        }
    }

    #[test]
    fn a_number_that_is_not_open_is_nothing() {
        assert!(adopt(1_000_000).is_none());
        let number = std::os::fd::IntoRawFd::into_raw_fd(std::fs::File::open("/dev/null").unwrap());
        assert!(adopt(number).is_some());
    }
}
