//! `sessiond health`: asks the server on this machine whether it is ready. For health checks in images that have no
//! shell and no curl.

use std::error::Error;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use http::StatusCode;
use http_body_util::Full;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sessiond::config;
use sessiond::telemetry;
use tokio::time::timeout;

use crate::local;
use crate::print;
use crate::result::CommandResult;

/// Flags of `sessiond health`.
#[derive(clap::Args)]
pub(crate) struct HealthArgs {
    /// The address that `sessiond serve` listens on. 0.0.0.0 and [::] stand for loopback.
    #[arg(long, env = "SESSIOND_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// The certificate of `sessiond serve`, if it has one. With it, the server is asked over TLS; a warning says if it presents
    /// another certificate.
    #[arg(long, env = "SESSIOND_TLS_CERTIFICATE_FILE", value_name = "FILE")]
    tls_certificate_file: Option<PathBuf>,

    /// How long the server may take to answer: 100ms to 1m.
    #[arg(long, default_value = "2s", value_parser = config::duration::<100, 60_000>, value_name = "DURATION")]
    timeout: Duration,
}

pub(crate) async fn run(args: HealthArgs) -> CommandResult {
    if args.listen.port() == 0 {
        return Err("--listen has port 0, which picks a free port: name the port that the server printed".into());
    }
    let address = reachable(args.listen);
    let request = Request::get("/readyz").body(Full::default())?;
    let certificate = match &args.tls_certificate_file {
        Some(file) => Some(
            CertificateDer::from_pem_file(file)
                .map_err(|error| format!("cannot read a certificate in {}: {error}", file.display()))?,
        ),
        None => None,
    };
    let hint = if certificate.is_none() { " (if it serves TLS: use --tls-certificate-file)" } else { "" };
    let asked = async {
        let Some(certificate) = certificate else { return local::send(address, request).await };
        let (status, reasons, is_presented) = local::send_over_tls(address, request, certificate).await?;
        if !is_presented {
            print::note(format_args!("warning: {address} presents another certificate than --tls-certificate-file"));
        }
        Ok::<_, Box<dyn Error + Send + Sync>>((status, reasons))
    };
    let (status, reasons) = timeout(args.timeout, asked)
        .await
        .map_err(|_| format!("{address} does not answer within {}", humantime::format_duration(args.timeout)))?
        .map_err(|error| format!("{address} does not answer: {}{hint}", telemetry::chain(&*error)))?;
    match status {
        StatusCode::OK => Ok(print::line(one_line(&reasons))?),
        StatusCode::SERVICE_UNAVAILABLE => Err(format!("not ready: {}", one_line(&reasons)).into()),
        other => Err(format!("{address} is not a sessiond: it answers {other} to GET /readyz").into()),
    }
}

/// The address to connect to for a server that listens on `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Joins the lines: the output of a health check is shown in one.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_loopback() {
        for (listen, asked) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("192.0.2.1:80", "192.0.2.1:80")]
        {
            let (listen, asked): (SocketAddr, SocketAddr) =
                (listen.parse().expect("an address"), asked.parse().expect("an address"));
            assert_eq!(reachable(listen), asked);
        }
    }

    #[test]
    fn reasons_are_joined_into_one_line() {
        assert_eq!(one_line("the feed is too old\n\nkeys missing\r\n"), "the feed is too old; keys missing");
    }
}
