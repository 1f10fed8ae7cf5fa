use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::binaries::Binaries;
use crate::error::Error;
use crate::place;
use crate::place::Place;

/// How long an orphaned server may take to stop before the start fails.
const STOP_MAX_SECONDS: u32 = 30;

/// Stops a server whose watchdog is gone. The caller holds the lock, so no other process owns it.
pub(crate) async fn stop(place: &Place, binaries: &Binaries) -> Result<(), Error> {
    // The process id in the file may have been reused. Only the server answers on the socket.
    let is_running = || place.pid_file().is_some() && UnixStream::connect(place.socket()).is_ok();
    if !is_running() {
        return Ok(());
    }
    let mut pg_ctl = place.command(&binaries.program("pg_ctl"));
    pg_ctl.args(["stop", "--mode", "fast", "--wait", "--timeout", &STOP_MAX_SECONDS.to_string()]);
    pg_ctl.arg("--pgdata").arg(place.data());
    // It also fails if the server's old watchdog was faster. Only the result matters.
    place::run(pg_ctl).await?;
    if is_running() {
        return Err(Error::TooSlow { action: "stop", seconds: STOP_MAX_SECONDS.into(), log: place.log() });
    }
    Ok(())
}

/// Whether a start failed only because processes of an older server still use the data, which is temporary.
pub(crate) fn is_occupied(tail: &str) -> bool {
    (tail.contains("lock file \"") && tail.contains("\" already exists"))
        || tail.contains("pre-existing shared memory block")
}

/// Deletes pid files that outlived a crash of the machine and now name another program, which Postgres would take for a
/// running server. A file that names a Postgres process stays: that server is exiting.
pub(crate) fn delete_stale_pid_files(place: &Place) -> Result<(), Error> {
    let socket_lock = place.socket_dir.join(".s.PGSQL.5432.lock");
    for path in [place.data().join("postmaster.pid"), socket_lock] {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let pid: Option<u32> = text.lines().next().and_then(|line| line.trim().parse().ok());
        let Some(name) = pid.and_then(process_name) else { continue };
        if !name.contains("postgres") && !name.contains("postmaster") {
            tracing::warn!(path = %path.display(), name, "deleting a stale pid file, which names another program");
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

/// The program that a process runs, if known. Without `/proc`, as on macOS, `ps` is part of the system.
fn process_name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).or_else(|_| {
        let ps = Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output();
        ps.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    name.ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}
