//! `sessiond project …`.

use clap::Subcommand;
use sessiond::config::Database;
use sessiond::config::Sealing;
use sessiond::store::Project;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::COOKIE_GRACE_MIN;

use crate::policy::PolicyArgs;
use crate::print;
use crate::print::OutputFormat;
use crate::result::CommandResult;
use crate::setup;

/// Commands on projects.
#[derive(Subcommand)]
pub(crate) enum ProjectCommand {
    /// Create a project with its first signing key and refresh key.
    Create(Box<ProjectCreateArgs>),
    /// List the projects.
    List(ProjectListArgs),
    /// Show a project's settings, each in the format of its flag.
    Show(ProjectShowArgs),
    /// Change the given settings of a project. Running servers apply them within five seconds.
    Update(Box<ProjectUpdateArgs>),
}

/// Flags of `sessiond project create`.
#[derive(clap::Args)]
pub(crate) struct ProjectCreateArgs {
    /// The project's id: 1 to 64 characters of `A-Z a-z 0-9 - _`. It is the `aud` of its tokens, and cannot be changed.
    #[arg(value_parser = project_id)]
    id: ProjectId,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond project list`.
#[derive(clap::Args)]
pub(crate) struct ProjectListArgs {
    #[command(flatten)]
    format: OutputFormat,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond project show`.
#[derive(clap::Args)]
pub(crate) struct ProjectShowArgs {
    /// The project's id.
    #[arg(value_parser = project_id)]
    id: ProjectId,
    #[command(flatten)]
    format: OutputFormat,
    #[command(flatten)]
    database: Database,
}

/// Flags of `sessiond project update`.
#[derive(clap::Args)]
pub(crate) struct ProjectUpdateArgs {
    /// The project's id.
    #[arg(value_parser = project_id)]
    id: ProjectId,
    #[command(flatten)]
    policy: Option<PolicyArgs>,
    #[command(flatten)]
    database: Database,
}

pub(crate) fn project_id(text: &str) -> Result<ProjectId, &'static str> {
    ProjectId::parse(text).ok_or("must be 1 to 64 characters of `A-Z a-z 0-9 - _`")
}

pub(crate) async fn run(command: ProjectCommand) -> CommandResult {
    match command {
        ProjectCommand::Create(args) => create(*args).await,
        ProjectCommand::List(args) => list(args).await,
        ProjectCommand::Show(args) => show(args).await,
        ProjectCommand::Update(args) => update(*args).await,
    }
}

async fn create(args: ProjectCreateArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::sealer(&args.sealing)?).await?;
    let policy = args.policy.policy();
    app.project_create(args.id.clone(), policy.clone()).await?;
    warn_of_short_grace(&policy);
    Ok(print::done(format!("created project {}", args.id))?)
}

async fn list(args: ProjectListArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let projects = app.projects().await?;
    let row = |(id, created_at): (ProjectId, _)| {
        vec![("id", id.as_str().into()), ("created_at", print::time(Some(created_at)))]
    };
    let nothing = "there are no projects; `sessiond project create` creates one";
    Ok(print::list(projects.into_iter().map(row).collect(), args.format, nothing)?)
}

async fn show(args: ProjectShowArgs) -> CommandResult {
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    Ok(print::one(row(&app.project(args.id).await?), args.format)?)
}

async fn update(args: ProjectUpdateArgs) -> CommandResult {
    let Some(policy) = args.policy else {
        return Err("nothing to change: give at least one setting; `sessiond project update --help` lists them".into());
    };
    let app = setup::operator(args.database, setup::no_sealer()).await?;
    let project = app.project_update(args.id, move |present| policy.apply(present)).await?;
    warn_of_short_grace(&project.policy);
    Ok(print::one(row(&project), OutputFormat::TEXT)?)
}

/// A page's requests are parallel, no client in it can order them, and each brings its cookies when it is answered.
fn warn_of_short_grace(policy: &Policy) {
    if policy.cookies.scope.is_on() && policy.refresh_grace < COOKIE_GRACE_MIN {
        print::note(format_args!(
            "cookies: a response that takes longer than --refresh-grace brings a refresh token that has been replaced meanwhile, which \
             looks like theft and signs the user out: set it to at least {COOKIE_GRACE_MIN:?}, or to the proxy's response timeout"
        ));
    }
}

fn row(project: &Project) -> print::Row {
    std::iter::once(("id", project.id.as_str().into())).chain(project.policy.settings()).collect()
}
