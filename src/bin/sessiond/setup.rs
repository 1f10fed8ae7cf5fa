//! Setup that several commands share.

use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sessiond::app;
use sessiond::app::App;
use sessiond::app::KeyCache;
use sessiond::config::Backchannel;
use sessiond::config::Database;
use sessiond::config::Limits;
use sessiond::config::Observing;
use sessiond::config::Pool;
use sessiond::config::Sealing;
use sessiond::otlp::Traces;
use sessiond::outbound::CertificatesError;
use sessiond::outbound::Outbound;
use sessiond::store;
use sessiond::store::Options;
use sessiond::store::RequiredDurability;
use sessiond::store::Store;
use sessiond::store::Unlisted;
use sessiond::telemetry::Metrics;
use sessiond::telemetry::chain;
use sessiond::telemetry::request::RequestObserver;
use sessiond_core::clock::Clock;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::sealing::Sealer;
use sessiond_core::token::sealing::SealingKey;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::result::CommandResult;
use crate::secrets;

/// How long a command waits for a database that does not answer yet, for example because it is starting.
const DATABASE_WAIT: Duration = Duration::from_secs(10);

/// The store, not connected yet.
pub(crate) fn store(
    url: SecretString,
    pool: &Pool,
    required_durability: RequiredDurability,
    metrics: &Metrics,
) -> Result<Store, Box<dyn Error>> {
    let options = Options {
        url,
        password: pool.database_password_file.as_deref().map(secrets::read_optional).transpose()?.flatten(),
        listen_url: pool.database_listen_url.clone(),
        trusted_certificates: pool.database_ca_file.clone(),
        connections_max: pool.database_connections_max.saturating_sub(app::CONNECTIONS).max(1),
        connect_timeout: pool.database_connect_timeout,
        operation_timeout: pool.database_timeout,
        required_durability,
    };
    Ok(Store::new(&options, metrics.clone())?)
}

/// Waits until the database answers. Returns at once on errors that only an operator can fix.
pub(crate) async fn reach(store: &Store) -> CommandResult {
    let started = Instant::now();
    let stop = stopped()?;
    tokio::pin!(stop);
    loop {
        let outcome = tokio::select! {
            biased;
            () = &mut stop => return Err(Stopped.into()),
            outcome = store.reach() => outcome,
        };
        match outcome {
            Ok(()) => return check_membership(store).await,
            Err(error) if error.is_lasting() || started.elapsed() >= DATABASE_WAIT => return Err(error.into()),
            Err(error) => tracing::info!("waiting for the database: {error}"),
        }
        tokio::select! {
            () = &mut stop => return Err(Stopped.into()),
            () = sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// Refuses a worker that has left the cluster of a divided database.
async fn check_membership(store: &Store) -> CommandResult {
    match store.check_membership().await {
        Ok(true) => {}
        Ok(false) => {
            return Err(format!(
                "{Unlisted}: it has left the cluster, and what is written there could be lost. Use another node, or {}",
                Unlisted::WAY_BACK
            )
            .into());
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "the coordinator of the database does not say whether the node that is asked belongs to the cluster");
        }
    }
    Ok(())
}

/// The operator stopped the command.
#[derive(Debug, thiserror::Error)]
#[error("stopped before it finished")]
pub(crate) struct Stopped;

/// The clock, corrected by the database's: all replicas must decide alike, whatever this machine's clock shows.
pub(crate) async fn clock(store: &Store) -> Result<Clock, store::Error> {
    let clock = Clock::system();
    store.correct(&clock).await?;
    Ok(clock)
}

/// The app over a reachable database. Keys are not loaded yet.
pub(crate) async fn app(store: Store, sealer: Sealer, issuer: &str) -> Result<App, store::Error> {
    let clock = clock(&store).await?;
    Ok(App::new(store.clone(), KeyCache::new(store, sealer), Issuer::new(issuer), clock))
}

/// The HTTP client for back-channels. Reads its certificate files, so that errors appear before anything is started.
pub(crate) fn outbound(settings: Backchannel) -> Result<Outbound, CertificatesError> {
    let permitted = settings.permitted.backchannel_allow_private;
    Outbound::new(permitted, settings.backchannel_trusted_certificates.as_deref())
}

/// The app for an operator's command. It issues no tokens, so the issuer does not matter.
pub(crate) async fn operator(database: Database, sealer: Sealer) -> Result<App, Box<dyn Error>> {
    let store = store(database.database_url, &database.pool, RequiredDurability::Any, &Metrics::default())?;
    reach(&store).await?;
    Ok(app(store, sealer, "").await?)
}

/// For commands that neither seal nor open a key: the operator does not need the sealing key.
pub(crate) fn no_sealer() -> Sealer {
    Sealer::new(&SealingKey::generate(), None)
}

/// Reads the sealing keys.
pub(crate) fn sealer(sealing: &Sealing) -> Result<Sealer, Box<dyn Error>> {
    let read = |flag, file: &Option<PathBuf>, variable| -> Result<Option<SealingKey>, Box<dyn Error>> {
        let Some(text) = secrets::read(flag, file.as_deref(), variable)? else { return Ok(None) };
        let source = if file.is_some() { flag } else { variable };
        let key = SealingKey::parse(text.expose_secret()).ok_or_else(|| {
            format!("{source} is not 32 bytes in base64; create one with `head -c 32 /dev/urandom | base64`")
        })?;
        Ok(Some(key))
    };
    let present = read("--sealing-key-file", &sealing.sealing_key_file, secrets::SEALING_KEY)?
        .ok_or("a sealing key is required: use --sealing-key-file <FILE>, or the variable SESSIOND_SEALING_KEY")?;
    let previous = &sealing.previous_sealing_key_file;
    let previous = read("--previous-sealing-key-file", previous, secrets::PREVIOUS_SEALING_KEY)?;
    Ok(Sealer::new(&present, previous.as_ref()))
}

/// What observes requests, and the export of their traces, if any.
///
/// # Errors
///
/// If the settings of the export are unusable.
pub(crate) fn observer(
    settings: &Observing,
    metrics: &Metrics,
) -> Result<(RequestObserver, Option<Traces>), Box<dyn Error>> {
    let headers = settings.tracing.otlp_headers_file.as_deref();
    let headers = secrets::read("--otlp-headers-file", headers, secrets::OTLP_HEADERS)?;
    let traces = Traces::start(&settings.tracing, headers.as_ref(), metrics)?;
    let tracer = traces.as_ref().map(|traces| traces.tracer().clone());
    Ok((RequestObserver { tracer, logs_requests: settings.log_requests }, traces))
}

/// The effect of SIGHUP, the signal of a closed terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// Stops, as an interactive program should.
    Stops,
    /// Does nothing, as a service should.
    Ignored,
}

/// Whether the operator asked to stop: Ctrl-C, or SIGTERM.
static STOP: OnceLock<watch::Receiver<bool>> = OnceLock::new();

/// Installs the signal handlers. Without them, a process with id 1, as in a container, cannot be stopped by signals.
///
/// # Errors
///
/// If a signal handler cannot be installed.
pub(crate) fn listen_to_signals() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (stop, stop_requested) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.send_replace(true);
        // Kept open for later callers.
        stop.closed().await;
    });
    // This function is called once.
    let _ = STOP.set(stop_requested);
    Ok(())
}

/// Resolves when the operator asks to stop: Ctrl-C, or SIGTERM; at once if that has already happened.
///
/// # Errors
///
/// If [`listen_to_signals`] was not called.
pub(crate) fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut stop_requested =
        STOP.get().ok_or_else(|| std::io::Error::other("signal handlers are not installed"))?.clone();
    Ok(async move {
        // The sender is never dropped while somebody waits.
        let _ = stop_requested.wait_for(|stop_requested| *stop_requested).await;
    })
}

/// Resolves on [`stopped`] or on SIGHUP.
///
/// # Errors
///
/// If a signal handler cannot be installed.
pub(crate) fn stop_signal(hangup: Hangup) -> std::io::Result<impl Future<Output = ()>> {
    let stopped = stopped()?;
    // Without a handler SIGHUP ends the process.
    let mut hung_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => return,
                _ = hung_up.recv() => match hangup {
                    Hangup::Stops => return,
                    Hangup::Ignored => tracing::info!("SIGHUP ignored: settings are read at start only"),
                },
            }
        }
    })
}

/// If this process has id 1, as the first process of a container, reaps the orphans that it inherits: nobody else does,
/// and each would stay as a zombie. Only for commands that start no child processes.
///
/// # Errors
///
/// If a signal handler cannot be installed.
pub(crate) fn reap_orphans() -> std::io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        loop {
            // One signal may stand for several children.
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
            if ended.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

/// Open files in addition to the connections of clients and to the database: for the log and the runtime.
const OTHER_FILES: usize = 128;

/// The least part of the open files that clients get, if they are too few: a half. Clients that took all of them would take
/// those of the connections to the database.
const CLIENTS_SHARE: usize = 2;

/// Raises the limit on open files to what the settings need, as far as the system allows. If that is too little, logs a
/// warning and accepts fewer connections.
pub(crate) fn raise_open_files(limits: &mut Limits, pool: &Pool) {
    use rustix::process::Resource;
    use rustix::process::Rlimit;
    use rustix::process::getrlimit;
    use rustix::process::setrlimit;
    let others = pool.database_connections_max + OTHER_FILES;
    let needed = (limits.connections_max + others) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means no limit.
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => current.unwrap_or_default(),
    };
    if raised < needed {
        let files = usize::try_from(raised).unwrap_or(usize::MAX);
        limits.connections_max = files.saturating_sub(others).max(files / CLIENTS_SHARE).max(1);
        tracing::warn!(
            open_files_max = raised,
            needed,
            connections_max = limits.connections_max,
            "the limit on open files is below what --connections-max needs, so fewer connections are accepted: raise it (ulimit -n, LimitNOFILE), or lower --connections-max"
        );
    }
}
