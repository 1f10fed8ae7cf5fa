//! Which database engine answers, and whether it can keep what this server promises.
//!
//! Several engines speak Postgres' protocol. On most of them some statement fails, but nothing tells a client which one
//! would silently lose a revocation. So every new connection identifies its server, and anything but a supported
//! Postgres is refused before the first statement.

use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::SimpleQueryRow;

use super::distribute::Layout;
use super::distribute::check_divided;
use super::distribute::layout_facts;
use super::distribute::layout_of;
use super::refused::HostError;
use super::settings::SETTINGS_MARK;

/// Why a server is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnsupportedEngine {
    #[error(
        "it is {name} ({banner}), which is not supported: sign-outs could be lost there without an error. Use PostgreSQL \
         {VERSION_MIN} or later (see \"Supported databases\" in docs/operating/database.md)"
    )]
    Other { name: &'static str, banner: String },
    #[error(
        "it is not a PostgreSQL server: its version() is `{banner}`. Aurora DSQL and Spanner, for example, only emulate \
         PostgreSQL, and sign-outs could be lost there without an error. Use PostgreSQL {VERSION_MIN} or later (see \
         \"Supported databases\" in docs/operating/database.md)"
    )]
    Emulated { banner: String },
    #[error("it is PostgreSQL {version}, and must be {VERSION_MIN} or later")]
    TooOld { version: String },
    #[error(
        "it is Citus, and these tables of sessiond are distributed: {tables}. That is not the layout of `sessiond migrate \
         --distribute`, so sign-outs could be lost there without an error. Make them local again with \
         SELECT undistribute_table('NAME', cascade_via_foreign_keys => true), or use a database without Citus"
    )]
    Distributed { tables: String },
    #[error(
        "it is a worker of a Citus cluster that does not know all tables: run `sessiond migrate --distribute` with the address \
         of the coordinator again"
    )]
    Uninformed,
    #[error("it is Citus {version} with distributed tables, and must be Citus 13 or later")]
    OldCitus { version: String },
    #[error(
        "it is Citus with distributed tables, and the function sessions_revoke() is not distributed with them: the database \
         was changed after `sessiond migrate --distribute`"
    )]
    LocalSignOut,
}

/// The oldest supported major version: the oldest that its authors maintain, and that the tests run on.
const VERSION_MIN: u32 = 15;

/// Parts of the answer to `version()` that name other engines. Checked in order.
const OTHERS: [(&str, &str); 11] = [
    ("CockroachDB", "CockroachDB"),
    ("-YB-", "YugabyteDB"),
    ("Redshift", "Amazon Redshift"),
    ("Greenplum Database", "Greenplum"),
    ("Cloudberry", "Apache Cloudberry"),
    ("Postgres-XL", "Postgres-XL"),
    ("Materialize", "Materialize"),
    ("RisingWave", "RisingWave"),
    ("CrateDB", "CrateDB"),
    ("QuestDB", "QuestDB"),
    ("openGauss", "openGauss"),
];

/// How much of an unknown server's answer is repeated, in characters.
const BANNER_MAX: usize = 120;

/// The facts about a server that decide whether it is supported.
#[derive(Clone, Debug, Default)]
struct EngineFacts {
    /// The answer to `version()`.
    banner: String,
    /// `server_version`, for messages.
    version: String,
    /// `server_version_num`: the major version times 10,000 since version 10.
    version_num: Option<u32>,
    /// How Citus manages our tables; see [`layout_facts`].
    layout: String,
}

impl EngineFacts {
    /// Whether the server is supported, and where the tables are.
    fn check(&self) -> Result<Layout, UnsupportedEngine> {
        check_banner(&self.banner)?;
        if self.version_num.is_some_and(|number| number / 10_000 < VERSION_MIN) {
            return Err(UnsupportedEngine::TooOld { version: self.version.clone() });
        }
        layout_of(&self.layout)
    }
}

/// Whether the answer to `version()` is that of a PostgreSQL server, of whatever version.
///
/// Every build of PostgreSQL, packaged or managed, names its compiler: `PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled
/// by gcc …`. Servers that emulate it do not.
fn check_banner(banner: &str) -> Result<(), UnsupportedEngine> {
    let shown = || banner.chars().take(BANNER_MAX).collect();
    if let Some((_, name)) = OTHERS.iter().find(|(mark, _)| banner.contains(mark)) {
        return Err(UnsupportedEngine::Other { name, banner: shown() });
    }
    match banner.starts_with("PostgreSQL ") && banner.contains(", compiled by ") {
        true => Ok(()),
        false => Err(UnsupportedEngine::Emulated { banner: shown() }),
    }
}

/// The facts needed about a new connection, in one round trip, without a prepared statement.
const FACTS: &str = "version(), current_setting('server_version'), current_setting('server_version_num'), \
     current_setting('transaction_read_only'), current_setting('server_encoding'), \
     current_setting('sessiond.settings', true), to_regclass('slots') IS NOT NULL";

/// Every engine answers this one.
const BANNER: &str = "SELECT version()";

/// The tables of the server. A test compares them with the schema.
pub(super) const TABLES: [&str; 16] = [
    "projects",
    "signing_keys",
    "refresh_keys",
    "server_keys",
    "users",
    "sessions",
    "session_requests",
    "revocations",
    "audit_events",
    "feed_beacons",
    "feed_writers",
    "feed_histories",
    "sweeps",
    "backchannel_endpoints",
    "backchannel_deliveries",
    "slots",
];

/// The number of slots. The table exists once the migrations were applied.
const SLOTS: &str = "SELECT count(*) FROM slots";

/// The server of a new connection.
pub(super) struct Identified {
    /// Whether the start-up options arrived. If not, there is a pooler in between.
    pub(super) is_direct: bool,
    /// How many slots the database has; `None` before it is migrated.
    pub(super) slots: Option<u16>,
    /// Where the tables are.
    pub(super) layout: Layout,
}

/// Identifies the server of a new connection. `divided` is how many slots a divided database has, if an earlier connection has
/// found one: to count them again would ask every node, and no connection could be opened while one of them is down or slow.
/// Readings of the feed notice a change.
///
/// # Errors
///
/// Fails if the server is not supported, or cannot be used as it is configured.
pub(super) async fn identify(client: &Client, divided: Option<u16>) -> Result<Identified, HostError> {
    let row = match first_row(client, &format!("SELECT {FACTS}, {HAS_CITUS}")).await {
        Ok(row) => row,
        Err(error) => {
            // Other engines lack some of the functions and settings. Their name explains more than that error.
            if let Ok(Some(row)) = first_row(client, BANNER).await {
                check_banner(row.get(0).unwrap_or_default())?;
            }
            return Err(error.into());
        }
    };
    let fact = |at| row.as_ref().and_then(|row| row.get(at)).unwrap_or_default();
    let mut facts = EngineFacts {
        banner: fact(0).to_owned(),
        version: fact(1).to_owned(),
        version_num: fact(2).parse().ok(),
        layout: String::new(),
    };
    let mut layout = facts.check()?;
    if fact(7) == "t" {
        let row = first_row(client, &format!("SELECT {}", layout_facts())).await?;
        facts.layout = row.and_then(|row| row.get(0).map(str::to_owned)).unwrap_or_default();
        layout = facts.check()?;
    }
    if layout == Layout::Divided {
        check_divided(client).await??;
    }
    if fact(3) == "on" {
        return Err(HostError::ReadOnly);
    }
    if fact(4) != "UTF8" {
        return Err(HostError::Encoding(fact(4).to_owned()));
    }
    let mut slots = divided.filter(|_| layout == Layout::Divided);
    if fact(6) == "t" && slots.is_none() {
        slots = first_row(client, SLOTS).await?.and_then(|row| row.get(0)?.parse().ok());
    }
    Ok(Identified { is_direct: fact(5) == SETTINGS_MARK, slots, layout })
}

/// Whether Citus is installed. Only then is there the table that [`layout_facts`] reads.
pub(super) const HAS_CITUS: &str = "EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')";

async fn first_row(client: &Client, query: &str) -> Result<Option<SimpleQueryRow>, tokio_postgres::Error> {
    let messages = client.simple_query(query).await?;
    Ok(messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(banner: &str, version: &str, version_num: u32) -> EngineFacts {
        let (banner, version) = (banner.to_owned(), version.to_owned());
        EngineFacts { banner, version, version_num: Some(version_num), layout: String::new() }
    }

    /// As packaged by Debian and PGDG, built from source, on Windows, and as managed by Aurora, Neon, AlloyDB and EDB.
    #[test]
    fn every_build_of_postgres_is_supported_from_version_15_on() {
        for (banner, version, version_num) in [
            (
                "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian \
                 12.2.0-14+deb12u1) 12.2.0, 64-bit",
                "15.18 (Debian 15.18-0+deb12u1)",
                150_018,
            ),
            (
                "PostgreSQL 18.1 on aarch64-apple-darwin24.6.0, compiled by Apple clang version 17.0.0, 64-bit",
                "18.1",
                180_001,
            ),
            ("PostgreSQL 15.1, compiled by Visual C++ build 1914, 64-bit", "15.1", 150_001),
            ("PostgreSQL 17.0 on x86_64-windows, compiled by msvc-19.41.34120, 64-bit", "17.0", 170_000),
            (
                "PostgreSQL 16.4 on aarch64-unknown-linux-gnu, compiled by aarch64-unknown-linux-gnu-gcc (GCC) 9.5.0, 64-bit",
                "16.4",
                160_004,
            ),
            (
                "PostgreSQL 17.5 (6bc9ef8) on aarch64-unknown-linux-gnu, compiled by gcc (Debian 12.2.0) 12.2.0, 64-bit",
                "17.5",
                170_005,
            ),
            (
                "PostgreSQL 15.7 on x86_64-pc-linux-gnu, compiled by Debian clang version 12.0.1, 64-bit",
                "15.7",
                150_007,
            ),
            (
                "PostgreSQL 15.4 (EnterpriseDB Advanced Server 15.4.0) on x86_64-pc-linux-gnu, compiled by gcc (GCC) 8.5.0 \
                 20210514 (Red Hat 8.5.0-18), 64-bit",
                "15.4.0",
                150_004,
            ),
            ("PostgreSQL 19beta1 on x86_64-pc-linux-gnu, compiled by gcc (GCC) 15.1.0, 64-bit", "19beta1", 190_000),
        ] {
            assert_eq!(facts(banner, version, version_num).check(), Ok(Layout::Single), "{banner}");
        }
    }

    #[test]
    fn an_older_postgres_is_refused_by_its_version() {
        for (version, version_num, is_supported) in
            [("9.6.24", 90_624, false), ("13.23", 130_023, false), ("14.20", 140_020, false), ("15.0", 150_000, true)]
        {
            let banner = format!("PostgreSQL {version} on x86_64-pc-linux-gnu, compiled by gcc (GCC) 12.2.0, 64-bit");
            let outcome = facts(&banner, version, version_num).check();
            assert_eq!(outcome.is_ok(), is_supported, "{version}");
            if let Err(error) = outcome {
                assert_eq!(error.to_string(), format!("it is PostgreSQL {version}, and must be 15 or later"));
            }
        }
    }

    /// Their own answers to `version()`.
    #[test]
    fn other_engines_are_refused_by_name() {
        for (banner, name) in [
            ("CockroachDB CCL v25.4.5 (x86_64-pc-linux-gnu, built 2026/02/06 18:21:35, go1.23.12)", "CockroachDB"),
            ("CockroachDB OSS v23.1.11 (aarch64-linux-gnu, built 2023/09/27 01:53:43, go1.19.10)", "CockroachDB"),
            (
                "PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 16.0.6, 64-bit",
                "YugabyteDB",
            ),
            (
                "PostgreSQL 15.2-YB-2025.1.2.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 17.0.6, 64-bit",
                "YugabyteDB",
            ),
            (
                "PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2 20041017 (Red Hat 3.4.2-6.fc3), \
                 Redshift 1.0.77467",
                "Amazon Redshift",
            ),
            (
                "PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f14bb42a1018ac57d14f4436880e0a0515) on \
                 x86_64-pc-linux-gnu, compiled by gcc (GCC) 8.5.0, 64-bit",
                "Greenplum",
            ),
            ("PostgreSQL 9.5.0 on x86_64-unknown-linux-gnu (Materialize v0.130.0)", "Materialize"),
            ("PostgreSQL 13.14.0-RisingWave-2.1.0 (a1b2c3d)", "RisingWave"),
            ("PostgreSQL 12.3, compiled by Visual C++ build 1914, 64-bit, QuestDB", "QuestDB"),
        ] {
            let error = check_banner(banner).expect_err(banner);
            assert!(
                matches!(error, UnsupportedEngine::Other { name: found, .. } if found == name),
                "{banner}: {error}"
            );
            let message = error.to_string();
            assert!(message.starts_with(&format!("it is {name} (")) && message.contains("15 or later"), "{message}");
        }
    }

    /// Aurora DSQL, Spanner, H2, and something unknown. Their answers name no compiler.
    #[test]
    fn what_only_emulates_postgres_is_refused() {
        let long = "PostgreSQL 16 ".repeat(100);
        for banner in [
            "PostgreSQL 16",
            "PostgreSQL 14.1",
            "PostgreSQL 8.2.23 server protocol using H2 2.3.232",
            "8.0.36",
            "",
            &long,
        ] {
            let error = check_banner(banner).expect_err(banner);
            assert!(matches!(&error, UnsupportedEngine::Emulated { banner } if banner.len() <= BANNER_MAX), "{error}");
        }
    }

    #[test]
    fn citus_is_refused_only_if_it_manages_our_tables_in_another_way() {
        let mut citus =
            facts("PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc 12.2.0, 64-bit", "15.18", 150_018);
        assert_eq!(citus.check(), Ok(Layout::Single));
        citus.layout = "sessions h t 1 -,users h t 1 -".to_owned();
        let message = citus.check().expect_err("is refused").to_string();
        assert!(
            message.contains("distributed: sessions, users.") && message.contains("undistribute_table"),
            "{message}"
        );
    }

    #[test]
    fn the_tables_are_those_of_the_schema() {
        let schema = include_str!("schema.rs").lines();
        let tables: Vec<&str> = schema
            .filter_map(|line| line.strip_prefix("    ")?.strip_suffix(") {")?.split_once(" ("))
            .map(|(table, _)| table)
            .collect();
        assert_eq!(tables, TABLES);
    }
}
