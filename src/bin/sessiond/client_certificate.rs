//! `sessiond client-certificate …`.

use clap::Subcommand;
use sessiond::app::ServerKeyRevoked;
use sessiond::config::Database;
use sessiond::store::Role;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::certificate_name::CertificateName;

use crate::keys::KeyListArgs;
use crate::keys::key_id;
use crate::print;
use crate::project::project_id;
use crate::result::CommandResult;
use crate::server_key;
use crate::setup;

/// Commands on client certificates.
#[derive(Subcommand)]
pub(crate) enum ClientCertificateCommand {
    /// Let client certificates with a name stand in for a server key of a project.
    ///
    /// The server accepts client certificates with --tls-client-ca-file. Do not add the name of a proxy: everything that it
    /// forwards would come from a service.
    Add(ClientCertificateAddArgs),
    /// List a project's names, including removed ones.
    List(KeyListArgs),
    /// Remove a name: every server refuses it within milliseconds, by the feed. Idempotent.
    Remove(ClientCertificateRemoveArgs),
}

/// Flags of `sessiond client-certificate add`.
#[derive(clap::Args)]
pub(crate) struct ClientCertificateAddArgs {
    /// A name in the certificate's subject alternative names: a SPIFFE id, such as `spiffe://example.org/login`, or a DNS
    /// name.
    #[arg(value_parser = certificate_name, value_name = "NAME")]
    name: CertificateName,
    /// The project that it acts for.
    #[arg(long, value_parser = project_id, value_name = "ID")]
    project: ProjectId,
    /// What it may do: `verifier` follows revocations and introspects tokens, which is all that a guard needs; `service`
    /// also creates, lists, changes and revokes sessions; `admin` also opens impersonations, erases users and signs everybody out.
    #[arg(long, default_value = "service", value_parser = server_key::role, value_name = "ROLE")]
    role: Role,
    /// Let a name with the role `service` open impersonations: sessions in which someone else acts as the user.
    #[arg(long)]
    impersonation: bool,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond client-certificate remove`.
#[derive(clap::Args)]
pub(crate) struct ClientCertificateRemoveArgs {
    /// The id, as `list` shows it.
    #[arg(value_parser = key_id, value_name = "ID")]
    id: KeyId,
    #[command(flatten)]
    database: Database,
}

fn certificate_name(text: &str) -> Result<CertificateName, &'static str> {
    CertificateName::parse(text).ok_or(
        "must be a SPIFFE id with a path, such as `spiffe://example.org/login`, or a DNS name without a wildcard",
    )
}

pub(crate) async fn run(command: ClientCertificateCommand) -> CommandResult {
    match command {
        ClientCertificateCommand::Add(args) => add(args).await,
        ClientCertificateCommand::List(args) => list(args).await,
        ClientCertificateCommand::Remove(args) => remove(args).await,
    }
}

async fn add(args: ClientCertificateAddArgs) -> CommandResult {
    let privileges = server_key::privileges(args.role, args.impersonation)?;
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let ClientCertificateAddArgs { name, project, role, .. } = args;
    let id = app.client_certificate_add(project.clone(), privileges, name.clone()).await?;
    print::note(format_args!(
        "certificates with {name} now act for project {project} as {}, under this id:",
        role.as_str()
    ));
    Ok(print::line(id)?)
}

async fn list(args: KeyListArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let project = args.project.clone();
    let nothing =
        format!("project {project} has no name in client certificates; `sessiond client-certificate add` adds one");
    let keys = app.server_keys(args.project).await?;
    let rows = keys.into_iter().filter(|key| key.certificate_name.is_some());
    Ok(print::list(rows.map(|key| server_key::row(&project, &key)).collect(), args.format, &nothing)?)
}

async fn remove(args: ClientCertificateRemoveArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    Ok(print::done(match app.server_key_revoke(args.id).await? {
        ServerKeyRevoked::Now => format!("removed {}; every server refuses it within milliseconds", args.id),
        ServerKeyRevoked::Before => format!("{} was already removed", args.id),
    })?)
}
