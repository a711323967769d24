//! Waiting for conditions, never for time.

use std::future::Future;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How long a condition may take to come true before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer; `what` says what was waited for in vain.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a future to its end.
pub fn wait<F: Future>(future: F) -> F::Output {
    static EXECUTOR: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("an executor"));
    EXECUTOR.block_on(future)
}
