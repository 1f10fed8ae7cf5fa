//! A real pair of Postgres servers: a primary that waits for its standby on every commit.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{
    database::{Database, disposable},
    eventually,
};
use dev_postgres::{Cluster, Mode, Options};

/// The standby's application name.
const STANDBY: &str = "pair_standby";

/// See the module. Both stop with the process, and leave nothing behind.
pub struct Pair {
    pub primary: Cluster,
    pub standby: Cluster,
    name: String,
}

impl Pair {
    /// Starts both, with a migrated database, and waits until commits are synchronous.
    pub async fn start(name: &str) -> Self {
        let primary = Cluster::start(durable(&format!("{name}-1"))).await.expect("the primary starts");
        let mut standby = Cluster::start(durable(&format!("{name}-2"))).await.expect("the standby has a place");
        standby.stop_server(Mode::Immediate).await.expect("stops");
        Database { url: primary.database_url("postgres") }.migrate().await;
        copy(&primary, &standby);
        standby.start_server().await.expect("the standby starts");
        let primary_database = Database { url: primary.database_url("postgres") };
        primary_database.run(&format!("ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")).await;
        primary_database.run("SELECT pg_reload_conf()").await;
        let pair = Self { primary, standby, name: name.to_owned() };
        pair.caught_up().await;
        pair
    }

    /// The primary's database.
    pub fn database(&self) -> Database {
        Database { url: self.primary.database_url("postgres") }
    }

    /// The standby's database.
    pub fn standby_database(&self) -> Database {
        Database { url: self.standby.database_url("postgres") }
    }

    /// A URL that names both hosts, the primary first.
    pub fn both(&self) -> String {
        let host = |url: String| url.split(['@', '/']).nth(3).expect("a host").to_owned();
        let standby = host(self.standby.database_url("postgres"));
        let url = self.primary.database_url("postgres");
        let primary = host(url.clone());
        url.replacen(&primary, &format!("{primary},{standby}"), 1)
    }

    /// Waits until the standby has caught up, and commits wait for it.
    pub async fn caught_up(&self) {
        let asked = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
        eventually("the standby follows", async || self.database().lines(asked).await == ["1"]).await;
    }

    /// Stops the standby: every commit waits from now on.
    pub async fn stop_standby(&mut self) {
        self.standby.stop_server(Mode::Immediate).await.expect("stops");
        let asked = "SELECT count(*) FROM pg_stat_replication";
        eventually("the standby is gone", async || self.database().lines(asked).await == ["0"]).await;
    }

    /// Restarts the standby.
    pub async fn start_standby(&mut self) {
        self.standby.start_server().await.expect("starts");
        self.caught_up().await;
    }

    /// Promotes the standby. The old primary stays up.
    pub async fn promote(&self) {
        self.standby_database().run("SELECT pg_promote(true, 30)").await;
    }

    /// The process ids of sessiond's server processes that wait for the standby.
    pub async fn waiting(&self) -> Vec<String> {
        let asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'sessiond' AND wait_event = 'SyncRep' \
                     AND query NOT LIKE '%feed_beacons%'";
        self.database().lines(asked).await
    }

    /// Waits until a statement of sessiond's waits for the standby, and calls this on its server process:
    /// `pg_cancel_backend` or `pg_terminate_backend`.
    pub async fn signal_waiting(&self, function: &str) {
        eventually("somebody waits for the standby", async || !self.waiting().await.is_empty()).await;
        for pid in self.waiting().await {
            self.database().run(&format!("SELECT {function}({pid})")).await;
        }
    }

    /// Stops both.
    pub async fn stop(self) {
        let Self { primary, standby, name } = self;
        // The standby first: the primary's last checkpoint does not wait for it.
        standby.stop().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        primary.stop().await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A durable cluster that is deleted in the end.
pub fn durable(name: &str) -> Options {
    let mut options = disposable(name);
    // On, which is the default, and not fixed by the command line.
    options.settings.extend(["fsync", "synchronous_commit"].map(|name| (name.to_owned(), String::new())));
    let settings = [("wal_keep_size", "256MB"), ("max_wal_senders", "10"), ("hot_standby", "on")];
    // A killed standby is noticed at once over a socket; the timeout is for a busy machine.
    let patience = [("wal_sender_timeout", "60s"), ("wal_receiver_status_interval", "1s")];
    options
        .settings
        .extend(settings.into_iter().chain(patience).map(|(name, value)| (name.to_owned(), value.to_owned())));
    options
}

/// Copies the primary's data for the standby, as the server's user.
fn copy(primary: &Cluster, standby: &Cluster) {
    let home = |cluster: &Cluster| cluster.log().parent().expect("a directory").to_owned();
    let (home, socket) = (home(standby), primary.socket());
    let data = home.join("data");
    fs::remove_dir_all(&data).expect("deletes");
    let program = binaries(primary).join("pg_basebackup");
    let mut command = Command::new(&program);
    let owner = fs::metadata(&home).expect("it is there");
    if owner.uid() != fs::metadata("/proc/self").expect("a process").uid() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let host = socket.parent().expect("a directory").to_str().expect("a plain path");
    let source = format!("host={host} user=postgres application_name={STANDBY}");
    command.current_dir(&home).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    command.arg("-D").arg(&data).args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", &source]);
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The directory of a running server's programs.
fn binaries(cluster: &Cluster) -> PathBuf {
    let pid = cluster.server_pid().expect("it runs");
    let server = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    let dir = server.parent().expect("a directory").to_owned();
    if dir.join("pg_basebackup").is_file() { dir } else { Path::new("/usr/bin").to_owned() }
}
