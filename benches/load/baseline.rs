//! What the server's work is compared with: pgbench on the same Postgres, and services that do nothing.

use std::ffi::OsString;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use dev_postgres::Cluster;

use crate::Outcome;
use crate::run::Measured;
use crate::run::THREADS;
use crate::sessions::SESSIONS;
use crate::sessions::Sessions;
use crate::stage::Process;
use crate::stage::target_dir;
use crate::work::Work;

/// A baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Baseline {
    /// pgbench: one row is updated.
    Update,
    /// pgbench: one row is locked, then updated, in a transaction.
    LockAndUpdate,
    /// pgbench: one row is inserted.
    Insert,
    /// A tonic method that does nothing.
    NullGrpc,
    /// An axum handler that does nothing.
    NullHttp,
    /// The server, by bearer token.
    Bearer,
}

impl Baseline {
    /// The baseline of a kind of work.
    pub(crate) const fn of(work: Work) -> Option<Self> {
        match work {
            Work::SignOut | Work::SignOutKnown => Some(Self::Update),
            Work::Refresh => Some(Self::LockAndUpdate),
            Work::Create => Some(Self::Insert),
            Work::Introspect => Some(Self::NullGrpc),
            Work::Verify => Some(Self::NullHttp),
            Work::VerifyCookie => Some(Self::Bearer),
            Work::List | Work::Overload | Work::Memory => None,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Update => "pgbench UPDATE",
            Self::LockAndUpdate => "pgbench SELECT FOR UPDATE, UPDATE",
            Self::Insert => "pgbench INSERT",
            Self::NullGrpc => "null tonic unary",
            Self::NullHttp => "null axum handler",
            Self::Bearer => "verify by bearer token",
        }
    }

    /// pgbench's script.
    const fn script(self) -> Option<&'static str> {
        match self {
            Self::Update => Some(
                r"\set key random(1, :rows)
                UPDATE load_update SET revoked_at = now(), revoke_reason = 1 WHERE key = :key;",
            ),
            Self::LockAndUpdate => Some(
                r"\set key random(1, :rows)
                BEGIN;
                SELECT * FROM load_update WHERE key = :key FOR UPDATE;
                UPDATE load_update SET refresh_generation = refresh_generation + 1, last_used_at = now(),
                    idle_expires_at = now() + interval '90 days' WHERE key = :key;
                COMMIT;",
            ),
            // The id grows with time, as a UUIDv7 does: a random one would cost the index more.
            Self::Insert => Some(
                r"\set key random(1, :rows)
                INSERT INTO load_insert SELECT 'demo',
                    (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
                        || substr(md5(random()::text), 1, 20))::uuid,
                    'user-' || :key, 0, 0, now(), now(), now() + interval '365 days', 7776000000,
                    now() + interval '90 days', now() + interval '10 minutes', NULL, NULL,
                    '\x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', 0, '{0}', ARRAY[now()],
                    NULL, NULL, NULL, '{}', 'Chrome on Linux',
                    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36',
                    '198.51.100.7', '{}', '{}';",
            ),
            Self::NullGrpc | Self::NullHttp | Self::Bearer => None,
        }
    }
}

/// Whether pgbench logs each transaction, which slows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Latencies {
    Logged,
    NotLogged,
}

/// pgbench on the same Postgres, with tables as wide as the sessions'.
pub(crate) struct Pgbench {
    program: PathBuf,
    url: String,
}

impl Pgbench {
    /// Creates the tables.
    pub(crate) async fn prepare(cluster: &Cluster, sessions: &Sessions) -> Outcome<Self> {
        let server = fs::read_link(format!("/proc/{}/exe", cluster.server_pid().ok_or("Postgres runs")?))?;
        let beside = server.with_file_name("pgbench");
        sessions
            .run(&format!(
                // Column storage, constraints and indexes are those of the sessions; so is the room on each page.
                "CREATE TABLE load_update (key bigint PRIMARY KEY, LIKE sessions INCLUDING ALL EXCLUDING INDEXES)
                     WITH (fillfactor = 80);
                 INSERT INTO load_update SELECT row_number() OVER (), sessions.* FROM sessions LIMIT {SESSIONS};
                 CREATE TABLE load_insert (LIKE sessions INCLUDING ALL) WITH (fillfactor = 80)"
            ))
            .await?;
        sessions.run("VACUUM ANALYZE load_update").await?;
        sessions.run("CHECKPOINT").await?;
        // Without one beside the server, the one on the PATH.
        let program = if beside.is_file() { beside } else { PathBuf::from("pgbench") };
        Ok(Self { program, url: cluster.database_url("postgres") })
    }

    /// Runs this many clients for this many seconds.
    ///
    /// # Errors
    ///
    /// Fails if a transaction fails.
    pub(crate) fn run(
        &self,
        baseline: Baseline,
        clients: usize,
        seconds: u32,
        latencies: Latencies,
    ) -> Outcome<Measured> {
        let dir = target_dir().join("tmp/load-pgbench");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let script = dir.join("script.sql");
        fs::write(&script, baseline.script().ok_or("not a baseline of pgbench")?)?;
        let mut command = Command::new(&self.program);
        command.args(["-n", "-M", "prepared", "-j", &THREADS.to_string(), "-c", &clients.to_string()]);
        command.args(["-T", &seconds.to_string(), "-D", &format!("rows={SESSIONS}"), "-f"]).arg(&script);
        if latencies == Latencies::Logged {
            let mut prefix = OsString::from("--log-prefix=");
            prefix.push(dir.join("log"));
            command.arg("-l").arg(prefix);
        }
        let output = command.arg(&self.url).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", self.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !text.contains("number of failed transactions: 0 ") {
            return Err(format!("pgbench failed: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let number = |name: &str| -> Outcome<f64> {
            let rest = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("pgbench prints its results")?;
            Ok(rest.split(' ').next().unwrap_or_default().parse()?)
        };
        let (done, rate) = (number("number of transactions actually processed: ")?, number("tps = ")?);
        let mut measured =
            Measured { done: done as u64, elapsed: Duration::from_secs_f64(done / rate), ..Measured::default() };
        if latencies == Latencies::Logged {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path != script {
                    // The third field is the duration in microseconds.
                    let text = fs::read_to_string(path)?;
                    measured.micros.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
                }
            }
        }
        fs::remove_dir_all(&dir)?;
        Ok(measured)
    }
}

/// The process of the services that do nothing.
pub(crate) struct Null {
    pub(crate) addr: SocketAddr,
    _process: Process,
}

impl Null {
    pub(crate) fn start() -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg("--null-service").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut process = Process::killed(child);
        let mut line = String::new();
        BufReader::new(process.child.stdout.take().ok_or("a pipe")?).read_line(&mut line)?;
        Ok(Self { addr: line.trim().parse()?, _process: process })
    }
}
