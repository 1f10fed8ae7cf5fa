//! Writes the log to standard error on its own thread. If standard error is full, closed or not read, only lines are
//! lost: no request waits, and nothing panics.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use tracing_subscriber::fmt::MakeWriter;

/// The most queued lines.
const LINES_MAX: usize = 8_192;

/// The most queued bytes.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The total wait of [`Log::flush`].
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How long to wait before retrying a terminal or pipe that is busy, and how often.
const BUSY: (Duration, u32) = (Duration::from_millis(20), 50);

/// How often dropped lines are reported.
const DROPPED_INTERVAL: Duration = Duration::from_secs(1);

/// The log of this process.
static LOG: OnceLock<Log> = OnceLock::new();

/// Queues lines without blocking. Cheap to clone; clones share the queue.
#[derive(Clone)]
pub(super) struct Log {
    queue: SyncSender<Item>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

enum Item {
    Line(Vec<u8>),
    /// Replied to when everything before it has been written.
    Flush(SyncSender<()>),
}

impl Log {
    /// The log of this process, created on first use.
    pub(super) fn of_process() -> &'static Self {
        LOG.get_or_init(|| Self::to(io::stderr()))
    }

    /// The log of this process, if it was created.
    pub(super) fn present() -> Option<&'static Self> {
        LOG.get()
    }

    fn to(target: impl Write + Send + 'static) -> Self {
        let (queue, items) = sync_channel(LINES_MAX);
        let log = Self { queue, waiting: Arc::default(), dropped: Arc::default() };
        let (waiting, dropped) = (Arc::clone(&log.waiting), Arc::clone(&log.dropped));
        let run = move || write_all(target, &items, &waiting, &dropped);
        // Without the thread the queue fills up, and lines are counted as dropped.
        let _ = thread::Builder::new().name("log".to_owned()).spawn(run);
        log
    }

    /// Queues a line; drops and counts it if too much waits.
    pub(super) fn line(&self, line: &[u8]) {
        let waiting = self.waiting.fetch_add(line.len(), Ordering::Relaxed) + line.len();
        if waiting > BYTES_MAX || self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything queued so far is written, a second at most.
    pub(super) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let (done, written) = sync_channel(1);
        while self.queue.try_send(Item::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Writes one event. The formatter passes each event in one piece.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write_all(mut target: impl Write, items: &Receiver<Item>, waiting: &AtomicUsize, dropped: &AtomicU64) {
    let (mut reported, mut reported_at) = (0, None::<Instant>);
    for item in items {
        let line = match item {
            Item::Line(line) => line,
            Item::Flush(done) => {
                let _ = target.flush();
                let _ = done.try_send(());
                continue;
            }
        };
        let outcome = write_line(&mut target, &line);
        waiting.fetch_sub(line.len(), Ordering::Relaxed);
        if outcome.is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let lines = dropped.load(Ordering::Relaxed);
        if lines > reported && reported_at.is_none_or(|at| at.elapsed() > DROPPED_INTERVAL) {
            tracing::warn!(lines, "log lines dropped: standard error was full, closed or not read");
            (reported, reported_at) = (lines, Some(Instant::now()));
        }
    }
}

/// Writes the whole line. Another process on the same terminal or pipe may have made it non-blocking, so it may be busy
/// for a moment.
fn write_line(target: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    let mut tries = 0;
    while !line.is_empty() {
        match target.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < BUSY.1 => {
                tries += 1;
                thread::sleep(BUSY.0);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Accepts writes, fails, or blocks until the test continues.
    #[derive(Clone, Default)]
    struct Target(Arc<Mutex<Vec<u8>>>);

    impl Write for Target {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn lines_arrive_in_order() {
        let target = Target::default();
        let log = Log::to(target.clone());
        (0..100).for_each(|at| log.line(format!("{at}\n").as_bytes()));
        log.flush();
        let expected: String = (0..100).map(|at| format!("{at}\n")).collect();
        assert_eq!(String::from_utf8(target.0.lock().expect("no panic").clone()), Ok(expected));
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_target_that_takes_nothing_costs_lines_and_no_time() {
        let target = Target::default();
        let log = Log::to(target.clone());
        let held = target.0.lock().expect("no panic");
        let began = Instant::now();
        (0..2 * LINES_MAX).for_each(|_| log.line(b"a line\n"));
        assert!(began.elapsed() < Duration::from_secs(5) && log.dropped() >= LINES_MAX as u64 - 1);
        log.flush();
        let dropped = log.dropped();
        (0..10).for_each(|_| log.line(&vec![b'x'; BYTES_MAX + 1]));
        assert_eq!(log.dropped(), dropped + 10, "bytes are bounded too");
        drop(held);
    }

    #[test]
    fn a_target_that_fails_costs_the_line() {
        let log = Log::to(Full);
        log.line(b"a line\n");
        log.flush();
        assert_eq!(log.dropped(), 1);
    }
}
