//! Which database engines are refused, and how: what is no supported Postgres could lose a sign-out without an error.

use std::net::SocketAddr;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use sessiond::{
    store::{ReachError, Store},
    telemetry::Metrics,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    binary::{assert_says, sessiond},
    harness::{SEALING_KEY, Service, database::Database, eventually, hasty},
};

/// Speaks as much of Postgres' protocol as the first queries of a connection need, as another engine.
#[derive(Clone, Copy)]
struct Engine {
    /// The answer to `SELECT version()`.
    version: &'static str,
    /// The SQLSTATE of the error for start-up options, if it does not accept ours.
    refuses_options: Option<&'static str>,
}

impl Engine {
    /// Serves until the test ends.
    async fn listen(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A client that hangs up is no error here.
                tokio::spawn(async move { drop(self.converse(client).await) });
            }
        });
        addr
    }

    async fn converse(self, mut client: TcpStream) -> std::io::Result<()> {
        let mut length = client.read_u32().await?;
        let mut start = vec![0; length as usize - 4];
        client.read_exact(&mut start).await?;
        if length == 8 {
            // The SSLRequest: no TLS here.
            client.write_all(b"N").await?;
            length = client.read_u32().await?;
            start = vec![0; length as usize - 4];
            client.read_exact(&mut start).await?;
        }
        if let Some(code) = self.refuses_options.filter(|_| contains(&start, b"options\0")) {
            return client.write_all(&failure(code, "unrecognized configuration parameter \"jit\"")).await;
        }
        client.write_all(&[message(b'R', &[0, 0, 0, 0]), ready()].concat()).await?;
        loop {
            let kind = client.read_u8().await?;
            let mut body = vec![0; client.read_u32().await? as usize - 4];
            client.read_exact(&mut body).await?;
            let answer = match (kind, body.as_slice()) {
                (b'Q', b"SELECT version()\0") => row(self.version),
                (b'Q', _) => failure("42883", "unknown function: current_setting()"),
                _ => return Ok(()),
            };
            client.write_all(&[answer, ready()].concat()).await?;
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn message(kind: u8, body: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(kind);
    message.put_u32(body.len() as u32 + 4);
    message.put_slice(body);
    message.freeze()
}

fn ready() -> Bytes {
    message(b'Z', b"I")
}

fn failure(code: &str, text: &str) -> Bytes {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0M{text}\0\0").as_bytes())
}

/// One row with one column of text.
fn row(value: &str) -> Bytes {
    let mut column = BytesMut::new();
    column.put_u16(1);
    column.put_slice(b"version\0");
    // No table; the type text; in text format.
    column.put_slice(&[&[0; 6][..], &25_u32.to_be_bytes(), &[0xff; 6], &[0, 0]].concat());
    let mut fields = BytesMut::new();
    fields.put_u16(1);
    fields.put_u32(value.len() as u32);
    fields.put_slice(value.as_bytes());
    let mut rows = BytesMut::new();
    for part in [message(b'T', &column), message(b'D', &fields), message(b'C', b"SELECT 1\0")] {
        rows.put(part.chunk());
    }
    rows.freeze()
}

async fn error(url: &str) -> String {
    match Store::new(&hasty(url), Metrics::default()).expect("a good URL").reach().await {
        Err(error @ ReachError::Connect(_)) => {
            assert!(error.is_lasting(), "a retry changes nothing: {error}");
            error.to_string()
        }
        other => panic!("{other:?}"),
    }
}

/// Engines that lack a function or a setting of the first query, or refuse the start-up options, are named all the same.
#[tokio::test(flavor = "multi_thread")]
async fn another_engine_is_named_whatever_it_lacks() {
    for (version, words) in [
        ("CockroachDB CCL v25.4.5 (x86_64-pc-linux-gnu, built 2026/02/06 18:21:35, go1.23.12)", "it is CockroachDB ("),
        (
            "PostgreSQL 15.2-YB-2025.1.2.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 17.0.6, 64-bit",
            "it is YugabyteDB (",
        ),
        ("PostgreSQL 16", "it is not a PostgreSQL server: its version() is `PostgreSQL 16`. Aurora DSQL and Spanner"),
    ] {
        for refuses_options in [None, Some("42704"), Some("22023"), Some("0A000")] {
            let addr = Engine { version, refuses_options }.listen().await;
            let message = error(&format!("postgres://postgres@{addr}/sessions?sslmode=disable")).await;
            assert!(message.contains(words) && message.contains("PostgreSQL 15 or later"), "{message}");
        }
    }
}

/// Every command that opens the database refuses it at once.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_refuses_another_engine() {
    let engine = Engine { version: "CockroachDB CCL v25.4.5 (x86_64-pc-linux-gnu)", refuses_options: Some("42704") };
    let url = format!("postgres://postgres@{}/sessions?sslmode=disable", engine.listen().await);
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    for command in [&serve[..], &["migrate"], &["restored"], &["project", "list"], &["audit", "--project", "shop"]] {
        let output = sessiond(command, &[("DATABASE_URL", &url), ("SESSIOND_SEALING_KEY", SEALING_KEY)]);
        assert_says(&output, false, "it is CockroachDB");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("waiting"), "{command:?}");
    }
}

/// A supported server that fails the first query keeps its own error, and is not called another engine.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_real_postgres_is_reported_as_it_is() {
    let version = "PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14+deb12u1) 12.2.0, 64-bit";
    let addr = Engine { version, refuses_options: None }.listen().await;
    let message = match Store::new(&hasty(&format!("postgres://postgres@{addr}/d?sslmode=disable")), Metrics::default())
        .expect("a good URL")
        .reach()
        .await
    {
        Err(ReachError::Connect(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(message.contains("unknown function: current_setting() (SQLSTATE 42883)"), "{message}");
}

/// Citus' own catalog, on a real Postgres: the extension alone changes nothing, a distributed table of ours is refused,
/// and fails the readiness of a server that runs.
#[tokio::test(flavor = "multi_thread")]
async fn citus_is_refused_once_it_distributes_our_tables() {
    let database = Database::create().await;
    // As `CREATE EXTENSION citus` leaves them; the extension itself is not installed here.
    database
        .run(
            "SET allow_system_table_mods = on;
             INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             VALUES (99999, 'citus', 10, 'pg_catalog'::regnamespace, false, '13.2-1');
             CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass NOT NULL, partmethod \"char\" NOT NULL,
                 partkey text, colocationid integer NOT NULL DEFAULT 0, repmodel \"char\" NOT NULL DEFAULT 's',
                 autoconverted boolean NOT NULL DEFAULT false);
             GRANT SELECT ON pg_catalog.pg_dist_partition TO PUBLIC;
             CREATE TABLE elsewhere (id integer)",
        )
        .await;
    let distribute = async |table: &str| {
        let insert = format!("INSERT INTO pg_dist_partition VALUES ('{table}', 'h', 'fake', 1, 't')");
        database.run(&format!("SET allow_system_table_mods = on; {insert}")).await;
    };
    // Another product's table is not ours.
    distribute("elsewhere").await;
    let store = Store::new(&hasty(&database.url), Metrics::default()).expect("a good URL");
    store.reach().await.expect("nothing of ours is distributed");
    assert_says(&sessiond(&["migrate"], &[("DATABASE_URL", &database.url)]), true, "up to date");

    let service = Service::start_on(Database { url: database.url.clone() }).await;
    service.becomes_ready().await;
    distribute("users").await;
    distribute("sessions").await;
    let why = "its tables are distributed by Citus: sessions, users";
    eventually("a server that runs is no longer ready", async || service.readyz().await.1.contains(why)).await;
    let message = error(&database.url).await;
    assert!(
        message.contains("it is Citus, and these tables of sessiond are distributed: sessions, users.")
            && message.contains("SELECT undistribute_table('NAME', cascade_via_foreign_keys => true)"),
        "{message}"
    );
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    for command in [&serve[..], &["migrate"]] {
        let output = sessiond(command, &[("DATABASE_URL", &database.url), ("SESSIOND_SEALING_KEY", SEALING_KEY)]);
        assert_says(&output, false, "it is Citus");
    }
    // As a role that may read little, too.
    let name = database.lines("SELECT current_database()").await.remove(0);
    let role = format!("reader_of_{name}");
    database.run(&format!("CREATE ROLE {role} LOGIN")).await;
    let message = error(&database.url.replace("postgres://postgres@", &format!("postgres://{role}@"))).await;
    assert!(message.contains("it is Citus"), "{message}");
}
