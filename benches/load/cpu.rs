//! The processor time of other processes, from `/proc`.

use std::fs;
use std::time::Duration;

/// The kernel's unit in `/proc`: `USER_HZ` is 100 on every architecture that Linux runs on.
const TICKS_PER_SECOND: u64 = 100;

/// The processor time, in user and kernel, of a process with all its threads.
pub(crate) fn of_process(pid: u32) -> Duration {
    stat(pid).map_or(Duration::ZERO, |stat| ticks(stat.own))
}

/// The processor time of a process and all children that it has or had, such as Postgres's backends.
///
/// A child that ends between two readings moves from its own line to its parent's count, so nothing is lost.
pub(crate) fn with_children(pid: u32) -> Duration {
    let parent = stat(pid).map_or(0, |stat| stat.own + stat.ended_children);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children: u64 = pids.filter_map(stat).filter(|stat| stat.parent == pid).map(|stat| stat.own).sum();
    ticks(parent + children)
}

struct Stat {
    parent: u32,
    own: u64,
    ended_children: u64,
}

/// Reads `/proc/PID/stat` (proc(5)).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, even parentheses.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // The first of them is field 3 of the manual.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: number(4)?.try_into().ok()?,
        own: number(14)? + number(15)?,
        ended_children: number(16)? + number(17)?,
    })
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1_000 / TICKS_PER_SECOND)
}
