//! One of the hosts that may run the database: its TLS mode, and how to open a stream to it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio_postgres::Config;
use tokio_postgres::config::Host as Address;
use tokio_postgres::config::SslMode;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::refused::HostError;
use super::url::DatabaseUrl;
use super::url::TlsMode;
use super::wire;
use super::wire::ServerStream;
use super::wire::WireState;

pub(super) struct Host {
    pub(super) config: Config,
    place: Address,
    /// The host's address, if no name lookup is needed.
    address: Option<IpAddr>,
    port: u16,
    mode: TlsMode,
    /// Whether TLS starts directly, without an SSLRequest.
    direct: bool,
    /// Whether it rejects start-up options, as poolers do.
    pub(super) takes_no_options: AtomicBool,
}

impl Host {
    /// Reads the hosts of a URL.
    pub(super) fn all(url: &DatabaseUrl) -> Vec<Self> {
        (0..url.config.get_hosts().len()).map(|at| Self::at(url, at)).collect()
    }

    fn at(url: &DatabaseUrl, at: usize) -> Self {
        let all = &url.config;
        let place = all.get_hosts()[at].clone();
        let address = all.get_hostaddrs().get(at).copied();
        // The last port is used for all further hosts, as in libpq.
        let port = all.get_ports().get(at).or_else(|| all.get_ports().last()).copied().unwrap_or(5432);
        let is_local = match (&place, address) {
            (Address::Unix(_), _) => true,
            (_, Some(address)) => address.to_canonical().is_loopback(),
            (Address::Tcp(name), None) => is_loopback(name),
        };
        // Over an open network, an impostor could receive what is meant for the database.
        let mode = url.mode.unwrap_or(if is_local { TlsMode::Prefer } else { TlsMode::Require });
        let direct = all.get_ssl_negotiation() == SslNegotiation::Direct;
        let mut config = all.clone();
        if config.get_application_name().is_none() {
            config.application_name("sessiond");
        }
        // We open the stream ourselves; the driver must treat it as TLS already.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        Self { config, place, address, port, mode, direct, takes_no_options: AtomicBool::new(false) }
    }

    /// The host's name in messages.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Address::Tcp(name) => format!("{name}:{}", self.port),
            Address::Unix(directory) => format!("{}:{}", directory.display(), self.port),
        }
    }

    /// Opens the stream.
    pub(super) async fn reach(
        &self,
        tls: &MakeRustlsConnect,
        state: &Arc<WireState>,
    ) -> Result<ServerStream, HostError> {
        let name = match &self.place {
            Address::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", self.port));
                let socket = UnixStream::connect(path).await.map_err(HostError::Unreachable)?;
                return Ok(ServerStream::unix(socket, state));
            }
            Address::Tcp(name) => name,
        };
        let socket = match self.address {
            Some(address) => TcpStream::connect((address, self.port)).await,
            None => TcpStream::connect((name.as_str(), self.port)).await,
        };
        let mut socket = socket.map_err(HostError::Unreachable)?;
        // If these fail, the connection is slower, or a dead one is detected later.
        let _ = socket.set_nodelay(true);
        // An abandoned connection counts until it has ended: at most ten seconds, even if the network drops all
        // packets.
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive.with_retries(3));
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&socket).set_tcp_user_timeout(Some(Duration::from_secs(10)));
        let protected = match self.mode {
            TlsMode::Disable => false,
            _ if self.direct => true,
            _ => wire::offers_tls(&mut socket).await.map_err(HostError::Unreachable)?,
        };
        match (protected, self.mode) {
            (true, _) => ServerStream::tls(socket, tls, name, state).await.map_err(HostError::from_tls),
            (false, TlsMode::Disable | TlsMode::Prefer) => Ok(ServerStream::tcp(socket, state)),
            (false, TlsMode::Require | TlsMode::VerifyCa) => Err(HostError::NoTls),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(url: &str) -> Vec<TlsMode> {
        let url = DatabaseUrl::parse(url).expect("a good URL");
        Host::all(&url).iter().map(|host| host.mode).collect()
    }

    /// Decided for each host separately.
    #[test]
    fn tls_is_required_of_every_host_but_this_machine() {
        let (required, preferred) = (TlsMode::Require, TlsMode::Prefer);
        for (url, expected) in [
            ("postgres://u:p@db1,db2/d", vec![required, required]),
            (
                "postgres://u:p@localhost,db2,127.0.0.2,[::1],10.0.0.1/d",
                vec![preferred, required, preferred, preferred, required],
            ),
            ("postgres://u:p@%2Frun%2Fpostgresql/d", vec![preferred]),
            ("host=db1,localhost hostaddr=127.0.0.1,10.0.0.1 user=u", vec![preferred, required]),
            ("postgres://u:p@localhost.example.org/d", vec![required]),
            ("postgres://u:p@db1/d?sslmode=prefer", vec![preferred]),
            ("postgres://u:p@db1/d?sslmode=disable", vec![TlsMode::Disable]),
            ("postgres://u:p@localhost/d?sslmode=verify-ca", vec![TlsMode::VerifyCa]),
        ] {
            assert_eq!(modes(url), expected, "{url}");
        }
    }
}
