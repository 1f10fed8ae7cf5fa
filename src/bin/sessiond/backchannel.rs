//! `sessiond backchannel …`.

use clap::Subcommand;
use clap::value_parser;
use sessiond::app::NewEndpoint;
use sessiond::config::Database;
use sessiond::config::Permitted;
use sessiond::store::Endpoint;
use sessiond::store::OpenDelivery;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::backchannel::EndpointKind;
use uuid::Uuid;

use crate::print;
use crate::print::OutputFormat;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::setup;

/// Commands on back-channels.
#[derive(Subcommand)]
pub(crate) enum BackchannelCommand {
    /// Add an endpoint that is notified of every revocation in a project from now on, and print its id.
    Add(BackchannelAddArgs),
    /// List a project's endpoints.
    List(BackchannelListArgs),
    /// Remove an endpoint, and drop its pending deliveries. Idempotent.
    Remove(BackchannelRemoveArgs),
    /// List pending and dead deliveries, newest first.
    Deliveries(BackchannelDeliveriesArgs),
    /// Retry a dead delivery, for another 24 hours.
    Retry(BackchannelRetryArgs),
}

/// Flags of `sessiond backchannel add`.
#[derive(clap::Args)]
pub(crate) struct BackchannelAddArgs {
    /// The project whose revocations it receives.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// The protocol: `logout` posts a logout token (OpenID Connect Back-Channel Logout 1.0), `caep` pushes a
    /// session-revoked event (OpenID CAEP 1.0, RFC 8935).
    #[arg(long, value_parser = kind, value_name = "KIND")]
    kind: EndpointKind,
    /// The https URL, without a user name and a fragment.
    #[arg(long, value_name = "URL")]
    url: String,
    /// The `aud` of its tokens: the relying party's client id, or the receiver's id. 1 to 255 bytes.
    #[arg(long, value_name = "ID")]
    audience: String,
    #[command(flatten)]
    permitted: Permitted,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond backchannel list`.
#[derive(clap::Args)]
pub(crate) struct BackchannelListArgs {
    /// The project whose endpoints they are.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    #[command(flatten)]
    format: OutputFormat,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond backchannel remove`.
#[derive(clap::Args)]
pub(crate) struct BackchannelRemoveArgs {
    /// The endpoint, as `list` shows it.
    #[arg(value_name = "ENDPOINT")]
    endpoint: Uuid,
    /// The project whose endpoint it is.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond backchannel deliveries`.
#[derive(clap::Args)]
pub(crate) struct BackchannelDeliveriesArgs {
    /// The project of the deliveries.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// The most deliveries. 1 to 10000.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=10_000), value_name = "COUNT")]
    limit: u16,
    #[command(flatten)]
    format: OutputFormat,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond backchannel retry`.
#[derive(clap::Args)]
pub(crate) struct BackchannelRetryArgs {
    /// The delivery, as `deliveries` shows it.
    #[arg(value_name = "DELIVERY")]
    delivery: Uuid,
    /// The project of the delivery.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    #[command(flatten)]
    database: Database,
}

fn kind(text: &str) -> Result<EndpointKind, &'static str> {
    EndpointKind::parse(text).ok_or("must be `logout` or `caep`")
}

pub(crate) async fn run(command: BackchannelCommand) -> CommandResult {
    match command {
        BackchannelCommand::Add(args) => add(args).await,
        BackchannelCommand::List(args) => list(args).await,
        BackchannelCommand::Remove(args) => remove(args).await,
        BackchannelCommand::Deliveries(args) => deliveries(args).await,
        BackchannelCommand::Retry(args) => retry(args).await,
    }
}

async fn add(args: BackchannelAddArgs) -> CommandResult {
    let BackchannelAddArgs { project, kind, url, audience, permitted, database } = args;
    let app = setup::operator(database, setup::no_sealer()).await?;
    let new = NewEndpoint { project, kind, url, audience };
    let id = app.endpoint_add(new, &permitted.backchannel_allow_private).await?;
    // Only the id on standard output, for scripts.
    print::note("the endpoint receives every revocation from now on; its id:");
    let added = |print::Unwritten(source)| format!("endpoint {id} was added, but standard output failed: {source}");
    Ok(print::line(id).map_err(added)?)
}

async fn list(args: BackchannelListArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let nothing = format!("project {} has no endpoint; `sessiond backchannel add` adds one", args.project);
    let row = |endpoint: Endpoint| {
        vec![
            ("id", endpoint.id.to_string().into()),
            ("kind", endpoint.kind.as_str().into()),
            ("url", endpoint.url.into()),
            ("audience", endpoint.audience.into()),
            ("created_at", print::time(Some(endpoint.created_at))),
        ]
    };
    let endpoints = app.endpoints(args.project).await?;
    Ok(print::list(endpoints.into_iter().map(row).collect(), args.format, &nothing)?)
}

async fn remove(args: BackchannelRemoveArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    Ok(print::done(match app.endpoint_remove(args.project, args.endpoint).await? {
        false => format!("removed endpoint {}; its pending deliveries are dropped", args.endpoint),
        true => format!("endpoint {} was already removed", args.endpoint),
    })?)
}

async fn deliveries(args: BackchannelDeliveriesArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let nothing = format!("project {} has no pending and no dead deliveries", args.project);
    let row = |delivery: OpenDelivery| {
        vec![
            ("id", delivery.id.to_string().into()),
            ("state", if delivery.dead_at.is_some() { "dead" } else { "waiting" }.into()),
            ("endpoint", delivery.endpoint.to_string().into()),
            ("session", delivery.session.map_or_else(|| "all".to_owned(), |id: SessionId| id.to_string()).into()),
            ("ended_at", print::time(Some(delivery.at))),
            ("attempts", delivery.attempts.into()),
            ("next_at", print::time(delivery.due_at)),
            ("dead_at", print::time(delivery.dead_at)),
            ("last_error", delivery.last_error.into()),
        ]
    };
    let open = app.deliveries(args.project, args.limit.into()).await?;
    Ok(print::list(open.into_iter().map(row).collect(), args.format, &nothing)?)
}

async fn retry(args: BackchannelRetryArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    app.delivery_retry(args.project, args.delivery).await?;
    Ok(print::done(format!("delivery {} will be retried", args.delivery))?)
}
