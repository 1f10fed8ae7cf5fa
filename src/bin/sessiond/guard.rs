//! `sessiond guard`: a guard beside a service in any language.

use futures_util::future::try_join_all;
use sessiond::config;
use sessiond::config::SidecarProject;
use sessiond::edge::Sidecar;
use sessiond::edge::SidecarListener;
use sessiond_core::clock::Clock;
use sessiond_guard::ClientCertificate;
use sessiond_guard::ConnectError;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;

use crate::result::CommandResult;
use crate::secrets;
use crate::setup;

pub(crate) async fn run(args: config::Sidecar) -> CommandResult {
    let stop = setup::stop_signal(setup::Hangup::Ignored)?;
    // Before the guards connect: an address in use is the more likely mistake.
    let listener = SidecarListener::bind(&args.listen)
        .await
        .map_err(|error| format!("cannot listen on {} (--listen): {error}", args.listen))?;
    let trusted_certificates = match &args.ca_file {
        Some(file) => {
            Some(std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?)
        }
        None => None,
    };
    let client_certificate = args.certificate_file.clone().zip(args.key_file.clone());
    let client_certificate =
        client_certificate.map(|(certificate_file, key_file)| ClientCertificate { certificate_file, key_file });
    let mut connecting: Vec<(_, GuardOptions)> = vec![];
    for SidecarProject { project, server_key_file } in &args.projects {
        if connecting.iter().any(|(known, _)| known == project) {
            return Err(format!("project {project} is named twice (--project)").into());
        }
        let server_key = server_key_file.as_deref().map(secrets::read_file).transpose()?;
        if server_key.is_none() && client_certificate.is_none() {
            let needed = format!("use --project {project}=FILE with a server key, or --certificate-file");
            return Err(format!("project {project} has no credential: {needed}").into());
        }
        let options = GuardOptions {
            endpoints: args.endpoints.clone(),
            trusted_certificates: trusted_certificates.clone(),
            server_key,
            client_certificate: client_certificate.clone(),
            project: project.to_string(),
            issuer: args.issuer.clone(),
            max_staleness: args.max_staleness,
            fail_mode: args.fail_mode,
            max_entries: args.max_entries,
            cached_tokens: args.cached_tokens,
            startup_timeout: args.startup_timeout,
            clock: Clock::system(),
        };
        connecting.push((project.clone(), options));
    }
    // At once: in an outage each waits for the whole startup timeout.
    let connecting = connecting.into_iter().map(|(project, options)| async move {
        let guard = Guard::connect(options).await?;
        Ok::<_, ConnectError>((project, guard, args.max_staleness))
    });
    let mut stop = Box::pin(stop);
    let guards = tokio::select! {
        guards = try_join_all(connecting) => guards?,
        () = &mut stop => return Ok(()),
    };
    let projects = args.projects.iter().map(|one| one.project.as_str()).collect::<Vec<_>>().join(", ");
    let address = listener.local_addr().map_or_else(|| args.listen.to_string(), |address| address.to_string());
    tracing::info!(address, projects, "verifying tokens");
    listener.serve(Sidecar::new(guards), args.connections_max, stop).await;
    tracing::info!("stopped");
    Ok(())
}
