//! A real Postgres: how it starts, stops and survives crashes.

use std::env;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use dev_postgres::Cluster;
use dev_postgres::Durability;
use dev_postgres::Error;
use dev_postgres::Mode;
use dev_postgres::Options;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::geteuid;
use rustix::process::kill_process;
use rustix::process::test_kill_process;
use tokio::time;
use tokio_postgres::NoTls;

/// Bounds the wait for things that never happen; nothing here sleeps for a fixed time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Set in the environment of the process that `Owner` starts, which is this test binary again.
const OWNER_DIR: &str = "SESSIOND_TEST_OWNER_DIR";
const OWNER_IS_DISPOSABLE: &str = "SESSIOND_TEST_OWNER_IS_DISPOSABLE";

#[tokio::test]
async fn a_new_cluster_is_durable_and_not_on_the_network() {
    let scratch = Scratch::new("fresh");
    let cluster = scratch.start(Durability::Full).await;
    assert!(cluster.is_new());

    let url = cluster.database_url("postgres");
    for (setting, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C"),
        ("work_mem", "5MB"),
    ] {
        assert_eq!(ask(&url, &format!("SHOW {setting}")).await, value, "{setting}");
    }
    let socket_dir = fs::metadata(cluster.socket().parent().expect("it is in a directory")).expect("it exists");
    assert_eq!(socket_dir.mode() & 0o777, 0o700);
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn data_survives_a_restart() {
    let scratch = Scratch::new("restart");
    let cluster = scratch.start(Durability::Full).await;
    ask(&cluster.database_url("postgres"), "CREATE DATABASE \"other one\"").await;
    let url = cluster.database_url("other one");
    write(&url).await;
    cluster.stop().await.expect("it stops");

    let cluster = scratch.start(Durability::Full).await;
    assert!(!cluster.is_new());
    assert_eq!(cluster.database_url("other one"), url);
    assert_eq!(written(&url).await, "1");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_server_stopped_either_way_restarts_on_the_same_socket() {
    let scratch = Scratch::new("outage");
    let mut cluster = scratch.start(Durability::Disposable).await;
    let url = cluster.database_url("postgres");
    write(&url).await;
    for mode in [Mode::Fast, Mode::Immediate] {
        cluster.stop_server(mode).await.expect("it stops");
        cluster.stop_server(mode).await.expect("and twice is fine");
        assert!(tokio_postgres::connect(&url, NoTls).await.is_err(), "it is away after {mode:?}");
        cluster.start_server().await.expect("it starts");
        assert_eq!(written(&url).await, "1", "after {mode:?}");
    }
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_disposable_cluster_leaves_nothing_behind() {
    let scratch = Scratch::new("disposable");
    let cluster = scratch.start(Durability::Disposable).await;
    assert_eq!(ask(&cluster.database_url("postgres"), "SHOW synchronous_commit").await, "on");
    cluster.stop().await.expect("it stops");
    assert!(!scratch.data_dir().exists(), "stopped");

    drop(scratch.start(Durability::Disposable).await);
    eventually("dropped", || !scratch.data_dir().exists()).await;
}

#[tokio::test]
async fn postgres_stops_with_its_owner() {
    let scratch = Scratch::new("owner");
    let mut owner = Owner::start(&scratch, Durability::Full);
    write(&owner.url).await;
    owner.kill();
    eventually("postgres is gone", || !is_alive(owner.server_pid)).await;

    let cluster = scratch.start(Durability::Full).await;
    assert_eq!(written(&cluster.database_url("postgres")).await, "1");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_new_owner_does_not_wait_for_the_old_one_to_exit() {
    let scratch = Scratch::new("successor");
    let mut owner = Owner::start(&scratch, Durability::Full);
    write(&owner.url).await;
    owner.kill();

    let cluster = scratch.start(Durability::Full).await;
    assert_ne!(cluster.server_pid(), Some(owner.server_pid));
    assert_eq!(written(&cluster.database_url("postgres")).await, "1");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn the_watchdog_cleans_up_after_a_killed_owner() {
    let scratch = Scratch::new("killed-disposable");
    let mut owner = Owner::start(&scratch, Durability::Disposable);
    owner.kill();
    eventually("the directory is gone", || !scratch.data_dir().exists()).await;
}

#[tokio::test]
async fn an_orphaned_server_is_stopped_by_the_next_start() {
    let scratch = Scratch::new("orphan");
    let mut owner = Owner::start(&scratch, Durability::Full);
    write(&owner.url).await;
    // The watchdog first: nothing is left then that could see the owner die.
    kill(parent_of(owner.server_pid));
    owner.kill();
    assert_eq!(written(&owner.url).await, "1", "the orphan still serves");

    let cluster = scratch.start(Durability::Full).await;
    assert_ne!(cluster.server_pid(), Some(owner.server_pid));
    assert_eq!(written(&cluster.database_url("postgres")).await, "1");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_killed_server_is_noticed_and_recovers() {
    let scratch = Scratch::new("recovery");
    let mut cluster = scratch.start(Durability::Full).await;
    let url = cluster.database_url("postgres");
    write(&url).await;
    kill(cluster.server_pid().expect("it runs"));
    time::timeout(PATIENCE, cluster.exited()).await.expect("its end is noticed");

    cluster.start_server().await.expect("it starts again");
    assert_eq!(written(&url).await, "1");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_lost_watchdog_is_noticed_and_replaced() {
    let scratch = Scratch::new("watchdog");
    let mut cluster = scratch.start(Durability::Disposable).await;
    let url = cluster.database_url("postgres");
    write(&url).await;
    kill(parent_of(cluster.server_pid().expect("it runs")));
    time::timeout(PATIENCE, cluster.exited()).await.expect("its end is noticed");

    cluster.start_server().await.expect("it starts again");
    assert_eq!(written(&url).await, "1");
    kill(parent_of(cluster.server_pid().expect("it runs")));
    cluster.stop().await.expect("the server stops without a watchdog too");
    assert!(!scratch.data_dir().exists());
}

#[tokio::test]
async fn one_directory_has_one_owner() {
    let scratch = Scratch::new("two");
    let cluster = scratch.start(Durability::Full).await;
    let refused = Cluster::start(scratch.options(Durability::Full)).await.expect_err("the directory is taken");
    let expected = format!(
        "{} is in use by another sessiond (process {}); stop that one, or choose another directory",
        scratch.data_dir().display(),
        std::process::id()
    );
    assert_eq!(refused.to_string(), expected);
    assert_eq!(ask(&cluster.database_url("postgres"), "SELECT 1").await, "1", "the first is unharmed");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn an_unfinished_creation_is_restarted() {
    let scratch = Scratch::new("unfinished");
    let cluster = scratch.start(Durability::Full).await;
    let home = cluster.log().parent().expect("the log is in a directory").to_path_buf();
    cluster.stop().await.expect("it stops");
    fs::rename(home.join("data"), home.join("data.unfinished.1")).expect("as if initdb had not come to its end");

    let cluster = scratch.start(Durability::Full).await;
    assert!(cluster.is_new());
    assert!(!home.join("data.unfinished.1").exists());
    cluster.stop().await.expect("it stops");
}

/// After a power failure the process id in a stale pid file can belong to another program of the same user.
#[tokio::test]
async fn a_pid_file_that_names_another_program_does_no_harm() {
    let scratch = Scratch::new("stranger");
    let cluster = scratch.start(Durability::Full).await;
    let data = cluster.log().with_file_name("data");
    cluster.stop().await.expect("it stops");

    let user = fs::metadata(&data).expect("it exists");
    let mut stranger = Command::new("sleep");
    if is_root() {
        stranger.uid(user.uid()).gid(user.gid());
    }
    let mut stranger = Reaped(stranger.arg("60").spawn().expect("sleep runs"));
    let pid_file = format!("{}\n{}\n1\n5432\n\n\n\nready\n", stranger.0.id(), data.display());
    fs::write(data.join("postmaster.pid"), pid_file).expect("it is written");

    let cluster = scratch.start(Durability::Full).await;
    assert!(stranger.0.try_wait().expect("it can be asked").is_none(), "the stranger is left alone");
    cluster.stop().await.expect("it stops");
}

#[tokio::test]
async fn the_log_of_a_server_that_does_not_start_is_reported() {
    let scratch = Scratch::new("last-word");
    let mut options = scratch.options(Durability::Disposable);
    options.settings.push(("max_connections".to_owned(), "lots".to_owned()));
    let refused = Cluster::start(options).await.expect_err("the setting makes no sense");
    assert!(matches!(refused, Error::Exited { .. }), "{refused:?}");
    assert!(refused.to_string().contains("invalid value for parameter \"max_connections\": \"lots\""), "{refused}");
    assert!(!scratch.data_dir().exists(), "and nothing is left of it");
}

#[tokio::test]
async fn a_missing_server_is_reported_before_anything_is_created() {
    let scratch = Scratch::new("none");
    let mut options = scratch.options(Durability::Full);
    options.postgres_bin = Some(scratch.0.clone());
    let refused = Cluster::start(options).await.expect_err("there is no server");
    let expected = format!("{} contains no Postgres server (postgres, initdb and pg_ctl)", scratch.0.display());
    assert_eq!(refused.to_string(), expected);
    assert!(!scratch.data_dir().exists());
}

/// For example below `/root`: the server's user has no access, so the data are stored elsewhere.
#[tokio::test]
async fn root_may_use_a_directory_closed_to_the_servers_user() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("closed");
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let cluster = scratch.start(Durability::Disposable).await;
    let home = cluster.log().parent().expect("the log is in a directory").to_path_buf();
    assert!(home.starts_with("/var/tmp"), "{}", home.display());
    write(&cluster.database_url("postgres")).await;
    cluster.stop().await.expect("it stops");
    assert!(!home.exists());
}

/// Not a test: the process that `Owner` starts. It exits when the test closes its standard input.
#[tokio::test]
#[ignore = "other tests run it, in a process to be killed"]
async fn an_owner_to_kill() {
    let Some(data_dir) = env::var_os(OWNER_DIR) else { return };
    let is_disposable = env::var_os(OWNER_IS_DISPOSABLE).is_some();
    let durability = if is_disposable { Durability::Disposable } else { Durability::Full };
    let cluster = Cluster::start(options(data_dir.into(), durability)).await.expect("it starts");
    let server_pid = cluster.server_pid().expect("it runs");
    println!("\nowner: {server_pid} {}", cluster.database_url("postgres"));
    let _ = std::io::stdin().read(&mut [0]);
}

/// Another process with a cluster.
struct Owner {
    process: Reaped,
    server_pid: u32,
    url: String,
}

impl Owner {
    fn start(scratch: &Scratch, durability: Durability) -> Self {
        let mut command = Command::new(env::current_exe().expect("this is a program"));
        command.args(["an_owner_to_kill", "--exact", "--ignored", "--nocapture"]);
        command.env(OWNER_DIR, scratch.data_dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if durability == Durability::Disposable {
            command.env(OWNER_IS_DISPOSABLE, "yes");
        }
        let mut process = Reaped(command.spawn().expect("this program can run again"));
        let stdout = process.0.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with("owner: ")).expect("the owner starts");
        let mut words = line.split(' ').skip(1);
        let server_pid = words.next().expect("a process id").parse().expect("which is a number");
        let url = words.next().expect("a URL").to_owned();
        Self { process, server_pid, url }
    }

    fn kill(&mut self) {
        self.process.0.kill().expect("it is ours");
        self.process.0.wait().expect("it ends");
    }
}

/// A child process that is killed on drop.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for one test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("sessiond-cluster-{name}-{}", std::process::id()));
        fs::create_dir(&dir).expect("the temporary directory is writable");
        Self(dir.canonicalize().expect("it was just created"))
    }

    fn data_dir(&self) -> PathBuf {
        self.0.join("data-dir")
    }

    fn options(&self, durability: Durability) -> Options {
        options(self.data_dir(), durability)
    }

    async fn start(&self, durability: Durability) -> Cluster {
        Cluster::start(self.options(durability)).await.expect("the cluster starts")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(data_dir: PathBuf, durability: Durability) -> Options {
    let watchdog = Path::new(env!("CARGO_BIN_EXE_dev-postgres-watchdog")).to_path_buf();
    let settings = vec![("work_mem".to_owned(), "5MB".to_owned())];
    Options { data_dir, postgres_bin: None, watchdog, settings, durability }
}

async fn write(url: &str) {
    ask(url, "CREATE TABLE kept (n int4)").await;
    ask(url, "INSERT INTO kept VALUES (1)").await;
}

async fn written(url: &str) -> String {
    ask(url, "SELECT count(*) FROM kept").await
}

/// Runs one statement on a new connection, and returns the first value as text.
async fn ask(url: &str, sql: &str) -> String {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres accepts connections");
    let connection = tokio::spawn(connection);
    let answer = client.simple_query(sql).await.expect("the statement is fine");
    drop(client);
    connection.await.expect("the task ends").expect("the connection closes");
    let first = answer.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    first.unwrap_or_default()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let poll = async {
        while !holds() {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

fn is_root() -> bool {
    geteuid().is_root()
}

fn pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Whether the process exists, also of another user.
fn is_alive(process: u32) -> bool {
    test_kill_process(pid(process)) != Err(Errno::SRCH)
}

fn kill(process: u32) {
    kill_process(pid(process), Signal::KILL).expect("it is ours");
}

/// From `/proc` on Linux; elsewhere, as on macOS, from `ps`.
fn parent_of(process: u32) -> u32 {
    let parent = match fs::read_to_string(format!("/proc/{process}/status")) {
        Ok(status) => status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent").to_owned(),
        Err(_) => {
            let ps = Command::new("ps").args(["-o", "ppid=", "-p", &process.to_string()]).output().expect("runs");
            String::from_utf8(ps.stdout).expect("text")
        }
    };
    parent.trim().parse().expect("a number")
}
