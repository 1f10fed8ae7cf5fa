//! Checks of a running server, as its clients and verifiers reach it.

use serde_json::Value;
use sessiond::probe::Probe;
use sessiond::probe::ProbeAnswer;
use sessiond::probe::ProbeError;
use sessiond::telemetry::chain;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::token::access::Issuer;

use super::Needs;
use super::finding::Diagnosed;
use super::finding::counted;
use super::keys::signs_now;
use super::patient::Patient;

/// A certificate that is valid for fewer days gets a warning, as the alert SessiondCertificateExpires does.
const DAYS_LEFT_MIN: u64 = 7;

pub(super) async fn readiness(patient: &Patient) -> Diagnosed {
    let Some(url) = &patient.args.url else { return Diagnosed::skipped("no --url") };
    let answer = match get(patient, &format!("{}/readyz", url.trim_end_matches('/'))).await {
        Ok(answer) => answer,
        Err(diagnosed) => return diagnosed,
    };
    match answer.status {
        200 => Diagnosed::ok("ready"),
        503 => {
            let reasons = String::from_utf8_lossy(&answer.body[..answer.body.len().min(1_000)]).into_owned();
            Diagnosed::failed(format_args!("not ready: {reasons}"), "see docs/operating/readiness.md for each reason")
        }
        other => Diagnosed::failed(
            format_args!("answers {other} to GET /readyz"),
            "--url must be the address of a sessiond, or of a proxy that passes /readyz on",
        ),
    }
}

pub(super) async fn certificate(patient: &Patient) -> Diagnosed {
    let Some(url) = &patient.args.url else { return Diagnosed::skipped("no --url") };
    if !url.starts_with("https:") {
        return Diagnosed::skipped("--url is not https");
    }
    match get(patient, &format!("{}/healthz", url.trim_end_matches('/'))).await {
        Ok(ProbeAnswer { certificate_until: Some(until), .. }) => days_left(until, Clock::system().now()),
        Ok(_) => Diagnosed::failed("the certificate is malformed", "replace it"),
        Err(diagnosed) => diagnosed,
    }
}

/// How long a certificate that can be used stays valid.
pub(super) fn days_left(until: Timestamp, now: Timestamp) -> Diagnosed {
    let days = until.since(now).as_secs() / 86_400;
    let found = format!("valid for {}, until {until}", counted(days, "more day"));
    if now >= until {
        return Diagnosed::failed(
            format_args!("expired at {until}"),
            "replace it, and find out why it was not renewed",
        );
    }
    if days < DAYS_LEFT_MIN {
        return Diagnosed::warning(found, "find out why it was not renewed yet");
    }
    Diagnosed::ok(found)
}

/// Fetches the metadata (RFC 8414) and the JWK Set (RFC 7517) under the issuer's URL, as a verifier does.
pub(super) async fn jwks(patient: &Patient) -> Diagnosed {
    let Some(base) = &patient.args.issuer else {
        return Diagnosed::skipped("no --issuer and no SESSIOND_ISSUER");
    };
    let inventory = match (&patient.app, patient.lacks(Needs::Schema)) {
        (Ok((store, _)), None) => store.inventory().await.ok(),
        _ => None,
    };
    let first = inventory.as_ref().and_then(|inventory| inventory.projects.iter().map(|project| &project.id).min());
    let Some(project) = patient.args.project.as_ref().or(first) else {
        return Diagnosed::skipped("no project is known; name one with --project");
    };
    let issuer = Issuer::new(base).of(project.as_str());
    let metadata = match document(patient, &metadata_url(&issuer)).await {
        Ok(metadata) => metadata,
        Err(diagnosed) => return diagnosed,
    };
    let named = metadata["issuer"].as_str().unwrap_or_default();
    if named != issuer {
        return Diagnosed::failed(
            format_args!("the metadata names the issuer `{named}` in place of `{issuer}`: verifiers refuse it"),
            "give the server and this command the same SESSIOND_ISSUER",
        );
    }
    let Some(jwks_uri) = metadata["jwks_uri"].as_str() else {
        return Diagnosed::failed(
            "the metadata has no jwks_uri",
            "find out which server answers under the issuer's URL",
        );
    };
    let keys = match document(patient, jwks_uri).await {
        Ok(keys) => keys,
        Err(diagnosed) => return diagnosed,
    };
    let ids: Vec<&str> = keys["keys"].as_array().into_iter().flatten().filter_map(|key| key["kid"].as_str()).collect();
    if ids.is_empty() {
        return Diagnosed::failed(
            format_args!("the JWKS of project {project} has no key: no verifier accepts its tokens"),
            format_args!("run `sessiond signing-key list --project {project}`"),
        );
    }
    // Only keys of this database can be compared.
    let signs = inventory.as_ref().and_then(|inventory| signs_now(inventory, project, Clock::system().now()));
    match signs.map(|key| key.id.to_string()) {
        Some(id) if !ids.contains(&id.as_str()) => Diagnosed::failed(
            format_args!("the JWKS of project {project} lacks the key that signs now ({id})"),
            "the server under the issuer's URL uses another database, or a cache in between is too old",
        ),
        _ => Diagnosed::ok(format_args!("{jwks_uri} has {}", counted(ids.len(), "key"))),
    }
}

/// RFC 8414 §3.1: the well-known name is between the host and the path.
fn metadata_url(issuer: &str) -> String {
    let host = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[host..].find('/').map_or(issuer.len(), |at| host + at);
    format!("{}/.well-known/oauth-authorization-server{}", &issuer[..path], &issuer[path..])
}

async fn document(patient: &Patient, url: &str) -> Result<Value, Diagnosed> {
    let answer = get(patient, url).await?;
    let advice = "verifiers cannot fetch keys there: route the issuer's URL to sessiond";
    if answer.status != 200 {
        return Err(Diagnosed::failed(format_args!("{url} answers {}", answer.status), advice));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|_| Diagnosed::failed(format_args!("{url} answers something other than JSON"), advice))
}

async fn get(patient: &Patient, url: &str) -> Result<ProbeAnswer, Diagnosed> {
    let probe = Probe::new(patient.args.ca_file.as_deref());
    let probe = probe.map_err(|error| Diagnosed::failed(chain(&error), "give --ca-file certificates in PEM"))?;
    probe.get(url).await.map_err(|error| {
        let advice = match error {
            ProbeError::Url(_) => "give an address such as https://auth.example.org",
            ProbeError::Connect(..) | ProbeError::Late(_) => {
                "start the server, or correct the name, the port or the firewall"
            }
            ProbeError::Tls(..) => "name the authority of the certificate with --ca-file, or replace it; if the server has no TLS, use http",
            ProbeError::Http(..) => "if the server has TLS, use https",
        };
        Diagnosed::failed(chain(&error), advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8414 §3.1.
    #[test]
    fn the_well_known_name_stands_before_the_path() {
        for (issuer, url) in [
            (
                "https://a.example/projects/shop",
                "https://a.example/.well-known/oauth-authorization-server/projects/shop",
            ),
            ("http://a:80/x/projects/b", "http://a:80/.well-known/oauth-authorization-server/x/projects/b"),
        ] {
            assert_eq!(metadata_url(issuer), url);
        }
    }

    #[test]
    fn a_certificate_is_judged_by_its_days() {
        let now = Timestamp::from_seconds(1_000_000);
        let after =
            |seconds: i64| days_left(Timestamp::from_seconds(1_000_000 + seconds), now).named("certificate").state;
        use super::super::finding::State;
        assert_eq!(
            [after(0), after(86_400), after(7 * 86_400 - 1), after(7 * 86_400)],
            [State::Failed, State::Warning, State::Warning, State::Ok]
        );
    }
}
