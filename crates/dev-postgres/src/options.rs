use std::path::PathBuf;

/// The only role of the cluster, a superuser. Any process with access to the socket may use it.
pub(crate) const ROLE: &str = "postgres";

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory, created if needed: the cluster is in `postgres` in this directory.
    ///
    /// For root, whose server runs as another user, the cluster is elsewhere if that user cannot access this directory.
    pub data_dir: PathBuf,
    /// The directory of the server's programs. `None` searches PATH and where packages install them.
    pub postgres_bin: Option<PathBuf>,
    /// An executable that calls [`crate::watchdog_main`] if its first argument is [`crate::WATCHDOG_COMMAND`]; usually
    /// the present one.
    pub watchdog: PathBuf,
    /// Additional settings of Postgres, which override ours. An empty value leaves the setting to the cluster's
    /// configuration, where it can be changed while the server runs.
    pub settings: Vec<(String, String)>,
    /// How durable the data are.
    pub durability: Durability,
}

/// How durable a cluster's data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Committed data survive crashes of processes and of the machine.
    Full,
    /// Committed data survive crashes of processes, but not of the machine, and are deleted when the owner exits. For
    /// tests.
    ///
    /// Starts empty: an existing cluster is deleted first.
    Disposable,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Closes all connections and writes a checkpoint.
    Fast,
    /// Kills all processes; the next start recovers from the write-ahead log, as after a crash.
    Immediate,
}
