use std::path::PathBuf;

/// The only role of the cluster, and a superuser. Any process that reaches the socket may use it.
pub(crate) const ROLE: &str = "postgres";

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cluster belongs, created if need be: it is `postgres` in here.
    ///
    /// For root, whose server runs under another user, it is elsewhere if that user cannot reach this directory.
    pub data_dir: PathBuf,
    /// Where the server's programs are. `None` looks on PATH and where packagers put them.
    pub postgres_bin: Option<PathBuf>,
    /// An executable that calls [`crate::watchdog_main`] when its first argument is [`crate::WATCHDOG_COMMAND`]: usually this one.
    pub watchdog: PathBuf,
    /// More settings of Postgres. They come last, so they win over ours. An empty value leaves the setting to the cluster's
    /// own configuration, where it can be changed while the server runs.
    pub settings: Vec<(String, String)>,
    /// What the data are worth.
    pub durability: Durability,
}

/// What a cluster's data are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// What is committed stays, whatever is killed and however the machine goes down.
    Full,
    /// Survives the end of the server's processes but not of the machine, and is deleted when its owner ends. For tests.
    ///
    /// It begins with nothing: a cluster that is already in its place is deleted first.
    Disposable,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Ends all connections and writes a checkpoint.
    Fast,
    /// Ends all processes at once; the next start recovers from the log, as after a crash.
    Immediate,
}
