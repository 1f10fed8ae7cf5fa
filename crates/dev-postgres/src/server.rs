use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;

use crate::error::Error;
use crate::options::Mode;
use crate::watchdog::IMMEDIATE;
use crate::watchdog::READY;
use crate::watchdog::WATCHDOG_COMMAND;
use crate::watchdog::WatchdogArgs;

/// How long a start may take. Crash recovery replays what was written since the last checkpoint, at most five minutes
/// ago.
const START_MAX: Duration = Duration::from_secs(120);

/// How long a stop may take: longer than the watchdog waits before it kills Postgres.
const STOP_MAX: Duration = Duration::from_secs(30);

/// How many lines of the log are shown after a failed start.
const TAIL_LINES: usize = 12;

/// A running Postgres, as seen by its owner: a handle to its watchdog.
///
/// Dropping it stops Postgres, because it closes the watchdog's standard input.
#[derive(Debug)]
pub(crate) struct Server {
    stdin: ChildStdin,
    state: watch::Receiver<State>,
    log: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    Gone,
}

impl Server {
    /// Starts the watchdog, which starts Postgres.
    pub(crate) fn spawn(watchdog: &Path, args: &WatchdogArgs) -> Result<Self, Error> {
        let log = args.place.log();
        let log_file = File::create(&log).map_err(Error::file("create", &log))?;
        let mut command = Command::new(watchdog);
        command.arg(WATCHDOG_COMMAND).args(args.to_args());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        // In its own process group, so that a Ctrl-C in the terminal stops us first and the database last.
        command.process_group(0);
        let mut child = command.spawn().map_err(Error::run(watchdog))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::run(watchdog)(io::Error::other("its pipes are missing")));
        };

        // A thread and not a task, so that the watchdog is awaited and reaped even without a runtime.
        let (sender, state) = watch::channel(State::Starting);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line == READY {
                    sender.send_replace(State::Ready);
                }
            }
            let _ = child.wait();
            sender.send_replace(State::Gone);
        });
        Ok(Self { stdin, state, log })
    }

    /// Waits until Postgres accepts connections.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| *state != State::Starting);
        match time::timeout(START_MAX, settled).await {
            Err(_) => Err(Error::TooSlow { action: "start", seconds: START_MAX.as_secs(), log: self.log.clone() }),
            Ok(Ok(state)) if *state == State::Ready => Ok(()),
            Ok(Ok(_) | Err(_)) => Err(Error::Exited { log: self.log.clone(), tail: tail(&self.log) }),
        }
    }

    /// Waits until Postgres or its watchdog has exited.
    pub(crate) async fn gone(&self) {
        // An error means that the thread has ended, and with it the watchdog.
        let _ = self.state.clone().wait_for(|state| *state == State::Gone).await;
    }

    /// Stops Postgres and waits until its processes are gone.
    pub(crate) async fn stop(self, mode: Mode) -> Result<(), Error> {
        let Self { mut stdin, mut state, log } = self;
        if mode == Mode::Immediate {
            // If the watchdog cannot be written to, it has exited.
            let _ = writeln!(stdin, "{IMMEDIATE}");
        }
        drop(stdin);
        match time::timeout(STOP_MAX, state.wait_for(|state| *state == State::Gone)).await {
            Ok(Ok(_) | Err(_)) => Ok(()),
            Err(_) => Err(Error::TooSlow { action: "stop", seconds: STOP_MAX.as_secs(), log }),
        }
    }
}

/// Renames the log of the last run, so that there are at most two.
pub(crate) fn rotate(log: &Path) -> Result<(), Error> {
    let previous = log.with_extension("log.1");
    match fs::rename(log, &previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("rename", log)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
