//! If standard error fails, log lines are lost and nothing else.

use std::{
    fs::{File, OpenOptions},
    io::{PipeReader, pipe},
    process::Stdio,
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode};

use crate::harness::{Wire, bearer, database::Database, eventually, serving::Installed};

/// What standard error leads to.
enum Target {
    /// A pipe whose reader is closed.
    Closed,
    /// A full disk.
    Full,
    /// A pipe that is not read.
    Unread,
}

impl Target {
    fn open(&self) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Closed => (pipe().expect("a pipe").1.into(), None),
            Self::Full => {
                let full: File = OpenOptions::new().write(true).open("/dev/full").expect("opens");
                (full.into(), None)
            }
            Self::Unread => {
                let (reader, writer) = pipe().expect("a pipe");
                (writer.into(), Some(reader))
            }
        }
    }
}

/// The disk is full, the pipe is closed, or the pipe is not read; then the database goes down for a moment, when there
/// is most to log. Sign-outs are still answered and published.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_loses_only_lines() {
    let installed = Installed::new().await;
    let key = &installed.key;
    for target in [Target::Closed, Target::Full, Target::Unread] {
        let (stderr, _unread) = target.open();
        let serving = installed.serve(&[], &["--log", "trace"], stderr).await;
        let mut watch = None;
        eventually("the feed can be followed", async || {
            watch = serving.wires.watch(Wire::Rest, bearer(key), "").await.ok();
            watch.is_some()
        })
        .await;
        let mut watch = watch.expect("a stream");
        watch.snapshot().await;
        // Fills the pipe, which holds 64 KiB.
        for _ in 0..200 {
            assert!(serving.is_alive().await);
        }
        let (token, session) = serving.sign_in(key, "ada").await.expect("signs in");
        assert_eq!(serving.sign_out(&token).await, StatusCode::OK);
        assert_eq!(watch.ended_session().await, session);

        away(&installed.database, Duration::from_secs(2)).await;
        let mut phone = None;
        eventually("signs in again", async || {
            phone = serving.sign_in(key, "ada").await;
            phone.is_some()
        })
        .await;
        let (token, session) = phone.expect("signed in");
        eventually("signs out again", async || serving.sign_out(&token).await == StatusCode::OK).await;
        // A feed that begins with everything again may repeat what it has published.
        eventually("the feed still works", async || watch.ended_session().await == session).await;
        eventually("the feed is fresh again", async || watch.heartbeat().await < 2_000).await;

        let page = serving.metrics.http(Method::GET, "/metrics", HeaderMap::new(), "").await;
        let page = String::from_utf8(page.body().to_vec()).expect("text");
        let dropped = page.lines().find_map(|line| line.strip_prefix("sessiond_log_lines_dropped_total "));
        // Some thousands of lines wait in the queue.
        let waits = matches!(target, Target::Unread);
        assert!(dropped.is_some_and(|dropped| dropped != "0" || waits), "dropped lines are counted: {dropped:?}");
        assert!(!page.contains("sessiond_task_restarts_total{"), "nothing panicked: {page}");
    }
}

/// For this long, no new database connection is accepted, and all existing ones are terminated.
async fn away(database: &Database, time: Duration) {
    let name = database.url.rsplit_once('/').expect("a database").1.split('?').next().expect("a name");
    let elsewhere = Database { url: database.url.replace(&format!("/{name}"), "/postgres") };
    elsewhere.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
    elsewhere.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")).await;
    tokio::time::sleep(time).await;
    elsewhere.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await;
}
