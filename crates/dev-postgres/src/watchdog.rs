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

/// The hidden command of the binary under which it is the watchdog: the first argument of the process.
pub const WATCHDOG_COMMAND: &str = "postgres-watchdog";

/// What the watchdog prints, on a line of its own, once Postgres accepts connections.
pub(crate) const READY: &str = "ready";

/// What its standard input says before it closes, when Postgres shall stop without writing a checkpoint.
pub(crate) const IMMEDIATE: &str = "immediate";

/// How long a fast shutdown may take. It writes a checkpoint, so it is as slow as the disk.
const FAST_STOP_MAX: Duration = Duration::from_secs(15);

/// How long an immediate one may take. It only ends processes; Postgres itself gives them five seconds.
const IMMEDIATE_STOP_MAX: Duration = Duration::from_secs(7);

/// How often a starting server is asked whether it is ready, and a stopping one whether it is gone.
const POLL: Duration = Duration::from_millis(5);

/// How often a running server is looked after.
const POLL_CALM: Duration = Duration::from_millis(200);

/// What the watchdog is told on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Where the server's programs are.
    pub(crate) binaries: PathBuf,
    pub(crate) place: Place,
    /// The data directory to clear away in the end, when the cluster is not to outlive its owner.
    pub(crate) discard: Option<PathBuf>,
    /// The command line of `postgres`.
    pub(crate) postgres: Vec<OsString>,
}

impl Orders {
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

/// Runs Postgres until standard input closes, which happens at the latest when the process that holds its other end dies.
///
/// `args` are what follows [`WATCHDOG_COMMAND`]. The parent has no other means that survives its own `kill -9`: only
/// the kernel is certain to act then, and closing a dead process's pipes is what it does on every system.
pub fn watchdog_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(orders) = Orders::from_args(args) else {
        complain("this command is sessiond's own; it is not meant to be typed");
        return ExitCode::FAILURE;
    };
    let mut postgres = match start(&orders) {
        Ok(postgres) => postgres,
        Err(error) => {
            complain(&format!("cannot run postgres: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = match watch(&orders, &mut postgres) {
        Some(signal) => stop(&orders, &mut postgres, signal),
        None => postgres.wait().map(|_| ()),
    };
    if let Some(dir) = &orders.discard {
        discard(&orders.place, dir);
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("lost sight of postgres: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Standard error is the server's log: what stands there is shown when the start fails.
fn complain(message: &str) {
    // A log that cannot be written is no reason to leave the server alone.
    let _ = writeln!(io::stderr(), "sessiond {WATCHDOG_COMMAND}: {message}");
}

fn start(orders: &Orders) -> io::Result<Child> {
    let mut command = orders.place.command(&orders.binaries.join("postgres"));
    // Standard output is the pipe to the parent. Postgres must not hold it, or the parent could not see us die.
    command.args(&orders.postgres).stdout(io::stderr()).stderr(io::stderr()).spawn()
}

/// Waits for the order to stop, and answers with the signal that carries it out; `None` when Postgres ends by itself.
fn watch(orders: &Orders, postgres: &mut Child) -> Option<&'static str> {
    let (sender, closed) = mpsc::channel();
    thread::spawn(move || {
        let mut order = String::new();
        // An unreadable pipe means what a closed one does: nobody is there.
        let _ = io::stdin().read_to_string(&mut order);
        let _ = sender.send(if order.trim() == IMMEDIATE { "QUIT" } else { "INT" });
    });

    let pid = postgres.id().to_string();
    let mut ready = false;
    loop {
        if !ready && is_ready(&orders.place, &pid) {
            ready = true;
            // A parent that no longer reads is about to close our standard input.
            let _ = writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush());
        }
        match closed.recv_timeout(if ready { POLL_CALM } else { POLL }) {
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

/// Postgres keeps its state in the eighth line of its pid file. The file of a dead predecessor can say `ready` too,
/// hence the process id.
fn is_ready(place: &Place, pid: &str) -> bool {
    let lines = place.pid_file().unwrap_or_default();
    // A hot standby is as ready as it will be.
    let is_ready = |state: &String| state == "ready" || state == "standby";
    lines.first().is_some_and(|first| first == pid) && lines.get(7).is_some_and(is_ready)
}

/// Ends Postgres, by harsher means when gentler ones fail. Nothing committed is lost by any of them.
fn stop(orders: &Orders, postgres: &mut Child, signal: &str) -> io::Result<()> {
    let fast = [("INT", FAST_STOP_MAX), ("QUIT", IMMEDIATE_STOP_MAX)];
    for (signal, time_max) in fast.into_iter().skip_while(|(name, _)| *name != signal) {
        // Not `pg_ctl stop`: by now the data directory may be a successor's, but this process id is our child's for
        // as long as we have not waited for it.
        let mut pg_ctl = orders.place.command(&orders.binaries.join("pg_ctl"));
        let sent = pg_ctl.args(["kill", signal, &postgres.id().to_string()]).stdout(io::stderr()).status();
        if let Err(error) = sent {
            complain(&format!("cannot run pg_ctl: {error}"));
            break;
        }
        for _ in 0..time_max.as_millis() / POLL.as_millis() {
            if postgres.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        complain(&format!("postgres did not heed {signal}"));
    }
    postgres.kill()?;
    postgres.wait().map(|_| ())
}

/// Clears a disposable cluster away, unless its owner lives, who may want to start it again, or it has a new one.
fn discard(place: &Place, dir: &Path) {
    let Ok(lock) = Lock::take(dir) else { return };
    if let Err(error) = place.delete().and_then(|()| lock.discard()) {
        complain(&format!("cannot delete the cluster: {error}"));
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
        let orders = Orders { binaries: "/bin".into(), place, discard: Some("/tmp/d".into()), postgres };
        assert_eq!(Orders::from_args(orders.to_args().into_iter()), Some(orders.clone()));

        let place = Place { user: None, ..orders.place };
        let orders = Orders { place, discard: None, ..orders };
        assert_eq!(Orders::from_args(orders.to_args().into_iter()), Some(orders));
    }

    #[test]
    fn anything_else_is_no_order() {
        for line in ["", "--home /x", "--home /x --", "--nonsense x --", "start"] {
            assert_eq!(Orders::from_args(line.split_whitespace().map(OsString::from)), None, "{line}");
        }
    }
}
