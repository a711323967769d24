//! Where a process or thread is stuck, as far as `/proc` says.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Lines of a kernel stack that are worth showing.
const SHOWN: usize = 4;

/// A sentence's end on the task whose directory in `/proc` this is: "is in state D, waits in io_schedule (…)".
/// What cannot be read is left out: only root reads stacks, and the task may be gone.
pub fn whereabouts(task: &Path) -> String {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    describe(&read("stat"), &read("wchan"), &read("stack"))
}

fn describe(stat: &str, wchan: &str, stack: &str) -> String {
    // The second field is a name in parentheses that may hold anything, parentheses too.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let mut text = match state {
        Some('D') => "is in state D (uninterruptible)".to_owned(),
        Some(state) => format!("is in state {state}"),
        None => "does not end".to_owned(),
    };
    let place = wchan.trim();
    if !place.is_empty() && place != "0" {
        // Writing into a String cannot fail.
        write!(text, ", waits in {place}").unwrap_or_default();
    }
    let frames: Vec<&str> = stack.lines().filter_map(frame).take(SHOWN).collect();
    if !frames.is_empty() {
        write!(text, " ({})", frames.join(" < ")).unwrap_or_default();
    }
    text
}

/// `[<0>] io_schedule+0x46/0x70` without its address and offset.
fn frame(line: &str) -> Option<&str> {
    let name = line.split_once("] ").map_or(line, |(_, name)| name);
    name.split('+').next().map(str::trim).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_in_the_kernel_is_described_by_its_state_and_stack() {
        let stat = "77 (a) b (c) D 1 77 77 0 -1";
        let stack = "[<0>] io_schedule+0x46/0x70\n[<0>] __blkdev_direct_IO+0x1/0x2\n";
        assert_eq!(
            describe(stat, "io_schedule", stack),
            "is in state D (uninterruptible), waits in io_schedule (io_schedule < __blkdev_direct_IO)"
        );
        assert_eq!(describe(stat, "0", ""), "is in state D (uninterruptible)");
        assert_eq!(describe("", "", ""), "does not end");
        assert_eq!(describe("nonsense", "\n", "\n\n"), "does not end");
    }

    #[test]
    fn this_very_thread_runs_and_a_task_that_is_gone_is_no_error() {
        assert!(whereabouts(Path::new("/proc/thread-self")).contains("state R"));
        assert_eq!(whereabouts(Path::new("/proc/none")), "does not end");
    }
}
