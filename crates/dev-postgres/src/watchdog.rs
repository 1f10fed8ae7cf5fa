use std::ffi::OsString;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;

use crate::lock::Lock;
use crate::place::Place;
use crate::place::User;

/// The hidden command that runs the watchdog: the first argument of the process.
pub const WATCHDOG_COMMAND: &str = "postgres-watchdog";

/// The line that the watchdog prints once Postgres accepts connections.
pub(crate) const READY: &str = "ready";

/// What it reads from standard input before the end, if Postgres is to stop without a checkpoint.
pub(crate) const IMMEDIATE: &str = "immediate";

/// How long a fast shutdown may take. It writes a checkpoint, so it depends on the disk.
const FAST_STOP_MAX: Duration = Duration::from_secs(15);

/// How long an immediate shutdown may take. It only ends processes, for which Postgres itself allows five seconds.
const IMMEDIATE_STOP_MAX: Duration = Duration::from_secs(7);

/// How often to check whether a starting server is ready, and a stopping one gone.
const POLL: Duration = Duration::from_millis(5);

/// How often to check a running server.
const POLL_RUNNING: Duration = Duration::from_millis(200);

/// The arguments of the watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchdogArgs {
    /// The directory of the server's programs.
    pub(crate) binaries: PathBuf,
    pub(crate) place: Place,
    /// The data directory of a disposable cluster, to delete at the end.
    pub(crate) discard: Option<PathBuf>,
    /// The command line of `postgres`.
    pub(crate) postgres: Vec<OsString>,
}

impl WatchdogArgs {
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        option("--binaries", self.binaries.clone().into());
        option("--home", self.place.home.clone().into());
        option("--socket-dir", self.place.socket_dir.clone().into());
        if let Some(user) = self.place.user {
            option("--user", format!("{}:{}", user.uid, user.gid).into());
        }
        if let Some(dir) = &self.discard {
            option("--discard", dir.clone().into());
        }
        args.push("--".into());
        args.extend(self.postgres.iter().cloned());
        args
    }

    fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut binaries, mut home, mut socket_dir, mut user, mut discard) = (None, None, None, None, None);
        loop {
            let name = args.next()?;
            match name.to_str()? {
                "--" => break,
                "--binaries" => binaries = Some(PathBuf::from(args.next()?)),
                "--home" => home = Some(PathBuf::from(args.next()?)),
                "--socket-dir" => socket_dir = Some(PathBuf::from(args.next()?)),
                "--discard" => discard = Some(PathBuf::from(args.next()?)),
                "--user" => {
                    let ids = args.next()?.into_string().ok()?;
                    let (uid, gid) = ids.split_once(':')?;
                    user = Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? });
                }
                _ => return None,
            }
        }
        let place = Place { home: home?, socket_dir: socket_dir?, user };
        Some(Self { binaries: binaries?, place, discard, postgres: args.collect() })
    }
}

/// Runs Postgres until standard input closes, at the latest when the process at its other end exits.
///
/// `args` are those after [`WATCHDOG_COMMAND`]. Nothing else survives a `kill -9` of the parent: the kernel closes a
/// dead process' pipes on every system.
pub fn watchdog_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(args) = WatchdogArgs::from_args(args) else {
        log_error("this command is sessiond's own; it is not meant to be typed");
        return ExitCode::FAILURE;
    };
    let mut postgres = match start(&args) {
        Ok(postgres) => postgres,
        Err(error) => {
            log_error(&format!("cannot run postgres: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = match watch(&args, &mut postgres) {
        Some(signal) => stop(&args, &mut postgres, signal),
        None => postgres.wait().map(|_| ()),
    };
    if let Some(dir) = &args.discard {
        discard(&args.place, dir);
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log_error(&format!("cannot wait for postgres: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Standard error is the server's log, which is shown if the start fails.
fn log_error(message: &str) {
    // Keep the server running even if the log cannot be written.
    let _ = writeln!(io::stderr(), "sessiond {WATCHDOG_COMMAND}: {message}");
}

fn start(args: &WatchdogArgs) -> io::Result<Child> {
    let mut command = args.place.command(&args.binaries.join("postgres"));
    // Standard output is the pipe to the parent. Postgres must not inherit it, or the parent could not notice our exit.
    command.args(&args.postgres).stdout(io::stderr()).stderr(io::stderr()).spawn()
}

/// Waits for the order to stop, and returns the signal to send; `None` if Postgres exits by itself.
fn watch(args: &WatchdogArgs, postgres: &mut Child) -> Option<&'static str> {
    let (sender, closed) = mpsc::channel();
    thread::spawn(move || {
        let mut order = String::new();
        // An unreadable pipe is treated like a closed one: the parent is gone.
        let _ = io::stdin().read_to_string(&mut order);
        let _ = sender.send(if order.trim() == IMMEDIATE { "QUIT" } else { "INT" });
    });

    let pid = postgres.id().to_string();
    let mut ready = false;
    loop {
        if !ready && is_ready(&args.place, &pid) {
            ready = true;
            // If the parent no longer reads, it is about to close our standard input.
            let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
        }
        match closed.recv_timeout(if ready { POLL_RUNNING } else { POLL }) {
            Ok(signal) => return Some(signal),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Some("INT"),
        }
        match postgres.try_wait() {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return None,
        }
    }
}

/// Postgres writes its state to the eighth line of its pid file. A dead predecessor's file may say `ready` too, hence
/// the process id.
fn is_ready(place: &Place, pid: &str) -> bool {
    let lines = place.pid_file().unwrap_or_default();
    // A hot standby never becomes more ready.
    let is_ready = |state: &String| state == "ready" || state == "standby";
    lines.first().is_some_and(|first| first == pid) && lines.get(7).is_some_and(is_ready)
}

/// Stops Postgres, more forcefully if gentler signals fail. No signal loses committed data.
fn stop(args: &WatchdogArgs, postgres: &mut Child, signal: &str) -> io::Result<()> {
    let fast = [("INT", FAST_STOP_MAX), ("QUIT", IMMEDIATE_STOP_MAX)];
    for (signal, time_max) in fast.into_iter().skip_while(|(name, _)| *name != signal) {
        // Not `pg_ctl stop`: by now the data directory may belong to a successor, but the process id is our child's
        // until we have waited for it.
        let mut pg_ctl = args.place.command(&args.binaries.join("pg_ctl"));
        let sent = pg_ctl.args(["kill", signal, &postgres.id().to_string()]).stdout(io::stderr()).status();
        if let Err(error) = sent {
            log_error(&format!("cannot run pg_ctl: {error}"));
            break;
        }
        for _ in 0..time_max.as_millis() / POLL.as_millis() {
            if postgres.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        log_error(&format!("postgres did not stop on {signal}"));
    }
    postgres.kill()?;
    postgres.wait().map(|_| ())
}

/// Deletes a disposable cluster, unless its owner still runs, and may restart it, or a new one has replaced it.
fn discard(place: &Place, dir: &Path) {
    let Ok(lock) = Lock::take(dir) else { return };
    if let Err(error) = place.delete().and_then(|()| lock.discard()) {
        log_error(&format!("cannot delete the cluster: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let place =
            Place { home: "/a b/home".into(), socket_dir: "/tmp/s".into(), user: Some(User { uid: 101, gid: 104 }) };
        let postgres = vec!["-D".into(), "/a b/home/data".into(), "-c".into(), "x=--".into()];
        let args = WatchdogArgs { binaries: "/bin".into(), place, discard: Some("/tmp/d".into()), postgres };
        assert_eq!(WatchdogArgs::from_args(args.to_args().into_iter()), Some(args.clone()));

        let place = Place { user: None, ..args.place };
        let args = WatchdogArgs { place, discard: None, ..args };
        assert_eq!(WatchdogArgs::from_args(args.to_args().into_iter()), Some(args));
    }

    #[test]
    fn anything_else_is_no_order() {
        for line in ["", "--home /x", "--home /x --", "--nonsense x --", "start"] {
            assert_eq!(WatchdogArgs::from_args(line.split_whitespace().map(OsString::from)), None, "{line}");
        }
    }
}
