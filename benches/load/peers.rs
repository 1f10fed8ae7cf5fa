//! What people would use instead, on the same Postgres and with the same client: `benches/peers/run` installs it and
//! passes its commands.
//!
//! Each has a database of its own in the bench's Postgres, reached by the same socket. Its sessions are created by its
//! own code, before the measurement. At the end, the sessions that it has ended in its database are counted.

use std::fs;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::header;
use http_body_util::Full;
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_reflect::DynamicMessage;
use prost_reflect::Value;
use sessiond::pb;
use tokio_postgres::NoTls;

use crate::Outcome;
use crate::stage::Process;
use crate::stage::Stage;
use crate::stage::target_dir;
use crate::work::Call;
use crate::work::Expected;
use crate::work::Work;

/// How long a peer may take to start: some compile themselves first.
const START_MAX: Duration = Duration::from_secs(60);

/// The fewest sessions that are created at once.
const SEEDED_MIN: usize = 2_000;

/// A product, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// better-auth, with two processes: sign-out.
    BetterAuth,
    /// oidc-provider, with two processes and our adapter for Postgres: revocation of a refresh token with its grant, and
    /// introspection of a refresh token.
    OidcProvider,
    /// djangorestframework-simplejwt, with two processes: blacklisting of a refresh token.
    SimpleJwt,
    /// Envoy's transcoder in front of our own gRPC.
    Envoy,
}

impl Peer {
    pub(crate) const fn as_str(self, work: Work) -> &'static str {
        match (self, work) {
            (Self::BetterAuth, _) => "better-auth",
            (Self::OidcProvider, Work::Introspect) => "oidc-provider introspection",
            (Self::OidcProvider, _) => "oidc-provider revocation",
            (Self::SimpleJwt, _) => "simplejwt blacklist",
            (Self::Envoy, _) => "Envoy's transcoder, our gRPC",
        }
    }

    /// The work in which it is compared with ours.
    pub(crate) const fn works(self) -> &'static [Work] {
        match self {
            Self::BetterAuth | Self::SimpleJwt | Self::Envoy => &[Work::SignOut],
            Self::OidcProvider => &[Work::SignOut, Work::Introspect],
        }
    }

    /// How to count the sessions that it has ended in its database.
    const fn ended(self) -> Option<Ended> {
        match self {
            Self::BetterAuth => Some(Ended::Deleted("SELECT count(*) FROM session")),
            Self::OidcProvider => {
                Some(Ended::Deleted("SELECT count(*) FROM oidc_payloads WHERE model = 'RefreshToken'"))
            }
            Self::SimpleJwt => Some(Ended::Recorded("SELECT count(*) FROM token_blacklist_blacklistedtoken")),
            Self::Envoy => None,
        }
    }

    /// The request of this work with a token of the peer's.
    fn call(self, work: Work, addr: SocketAddr, token: &str) -> Call {
        const FORM: &str = "application/x-www-form-urlencoded";
        // `bench:secret`, as in the peer's configuration.
        const CLIENT: &str = "Basic YmVuY2g6c2VjcmV0";
        let form = |token: &str| format!("token={token}&token_type_hint=refresh_token");
        let (path, headers, body, expected) = match (self, work) {
            (Self::BetterAuth, _) => {
                let own_origin = (header::ORIGIN, "http://127.0.0.1");
                let headers = vec![(header::COOKIE, token), own_origin, (header::CONTENT_TYPE, "application/json")];
                ("/api/auth/sign-out", headers, "{}".to_owned(), Expected::Text(r#""success":true"#))
            }
            (Self::OidcProvider, Work::Introspect) => {
                let headers = vec![(header::AUTHORIZATION, CLIENT), (header::CONTENT_TYPE, FORM)];
                ("/token/introspection", headers, form(token), Expected::Text(r#""active":true"#))
            }
            (Self::OidcProvider, _) => {
                let headers = vec![(header::AUTHORIZATION, CLIENT), (header::CONTENT_TYPE, FORM)];
                ("/token/revocation", headers, form(token), Expected::Nothing)
            }
            (Self::SimpleJwt | Self::Envoy, _) => {
                let body = format!(r#"{{"refresh":"{token}"}}"#);
                ("/token/blacklist/", vec![(header::CONTENT_TYPE, "application/json")], body, Expected::Text("{}"))
            }
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().expect("a path");
        let host = HeaderValue::try_from(addr.to_string()).expect("an address");
        request.headers_mut().insert(header::HOST, host);
        for (name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("ASCII"));
        }
        Call { request, expected }
    }
}

/// A query for the sessions that are left, or for those that have ended.
enum Ended {
    Deleted(&'static str),
    Recorded(&'static str),
}

/// A peer, and the command that runs it with `serve PORT` and `seed COUNT`.
#[derive(Clone, Debug)]
pub(crate) struct PeerCommand {
    pub(crate) peer: Peer,
    command: Vec<String>,
}

impl FromStr for PeerCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("must be NAME=COMMAND")?;
        let peer = match name {
            "better-auth" => Peer::BetterAuth,
            "oidc-provider" => Peer::OidcProvider,
            "simplejwt" => Peer::SimpleJwt,
            "envoy" => Peer::Envoy,
            _ => return Err("the peers are better-auth, oidc-provider, simplejwt and envoy".to_owned()),
        };
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() { Err("must be NAME=COMMAND".to_owned()) } else { Ok(Self { peer, command }) }
    }
}

/// A running peer.
pub(crate) struct RunningPeer {
    pub(crate) addr: SocketAddr,
    pub(crate) acknowledged: u64,
    command: PeerCommand,
    /// libpq's variables.
    database: Vec<(&'static str, String)>,
    url: String,
    unused: Vec<String>,
    /// For work that does not use them up.
    known: Vec<String>,
    seeded: i64,
    _process: Process,
}

impl RunningPeer {
    /// Starts it, on a database of its own.
    pub(crate) async fn start(stage: &Stage, command: &PeerCommand) -> Outcome<Self> {
        let name = format!("{:?}", command.peer).to_lowercase();
        stage.sessions.run(&format!("CREATE DATABASE {name}")).await?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let socket = stage.cluster.socket();
        let dir = socket.parent().ok_or("a socket is in a directory")?.display().to_string();
        let database = vec![("PGHOST", dir), ("PGDATABASE", name.clone()), ("PGUSER", "postgres".to_owned())];
        let arguments = match command.peer {
            Peer::Envoy => envoy(stage.addr, addr)?,
            _ => vec!["serve".to_owned(), addr.port().to_string()],
        };
        let log = fs::File::create(target_dir().join(format!("load-{name}.log")))?;
        let mut process = Command::new(&command.command[0]);
        process.args(&command.command[1..]).args(arguments).envs(database.iter().cloned());
        process.env("NODE_ENV", "production").current_dir(env!("CARGO_MANIFEST_DIR"));
        process.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = Process::terminated(process.spawn()?);
        let started = Instant::now();
        while std::net::TcpStream::connect(addr).is_err() {
            if started.elapsed() > START_MAX || process.child.try_wait()?.is_some() {
                return Err(format!("{name} does not start: see load-{name}.log").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        let mut peer = Self {
            addr,
            acknowledged: 0,
            command: command.clone(),
            database,
            url: stage.cluster.database_url(&name),
            unused: vec![],
            known: vec![],
            seeded: 0,
            _process: process,
        };
        if command.peer.works().contains(&Work::Introspect) {
            peer.seed(1_000)?;
            peer.known = std::mem::take(&mut peer.unused);
        }
        Ok(peer)
    }

    pub(crate) const fn peer(&self) -> Peer {
        self.command.peer
    }

    /// Requests of this work.
    pub(crate) fn calls(&mut self, work: Work, count: usize) -> Outcome<Vec<Call>> {
        if work.uses_up() && self.unused.len() < count {
            self.seed((count - self.unused.len()).max(SEEDED_MIN))?;
        }
        let tokens = if work.uses_up() { &self.unused } else { &self.known };
        Ok(tokens.iter().map(|token| self.command.peer.call(work, self.addr, token)).collect())
    }

    /// Forgets the first tokens, which were used.
    pub(crate) fn use_up(&mut self, count: usize) {
        self.unused.drain(..count);
    }

    fn seed(&mut self, count: usize) -> Outcome<()> {
        let PeerCommand { peer, command } = &self.command;
        let mut seed = Command::new(&command[0]);
        seed.args(&command[1..]).arg("seed").arg(count.to_string()).envs(self.database.iter().cloned());
        // Not measured, so it need not be durable.
        seed.env("PGOPTIONS", "-c synchronous_commit=off").env("NODE_ENV", "production");
        let output = seed.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
        let tokens: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
        if !output.status.success() || tokens.len() != count {
            return Err(format!("{peer:?} created {} of {count} sessions", tokens.len()).into());
        }
        self.seeded += i64::try_from(count)?;
        self.unused.extend(tokens);
        Ok(())
    }

    /// Compares what its database holds with what it acknowledged.
    ///
    /// # Errors
    ///
    /// Fails if they differ.
    pub(crate) async fn compare_with_database(&self) -> Outcome<()> {
        let Some(ended) = self.peer().ended() else { return Ok(()) };
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        tokio::spawn(connection);
        let (Ended::Deleted(query) | Ended::Recorded(query)) = ended;
        let counted: i64 = client.query_one(query, &[]).await?.get(0);
        let found = if let Ended::Deleted(_) = ended { self.seeded - counted } else { counted };
        if u64::try_from(found)? == self.acknowledged {
            return Ok(());
        }
        Err(format!("{:?} acknowledged {}, and its database has {found}", self.peer(), self.acknowledged).into())
    }
}

/// Envoy's arguments, with a configuration that transcodes to our gRPC.
fn envoy(server: SocketAddr, own: SocketAddr) -> Outcome<Vec<String>> {
    let dir = target_dir().join("tmp");
    let (config, descriptors) = (dir.join("load-envoy.yaml"), dir.join("load-envoy.pb"));
    fs::write(&descriptors, descriptors_for_envoy()?)?;
    fs::write(&config, envoy_config(server, own, &descriptors))?;
    let path = config.display().to_string();
    Ok(["-c", &path, "--log-level", "error", "--use-dynamic-base-id", "--concurrency", "2"].map(str::to_owned).into())
}

/// Our descriptors with only the method that is measured: Envoy refuses those whose rule has a `response_body`.
fn descriptors_for_envoy() -> Outcome<Vec<u8>> {
    let pool = DescriptorPool::decode(pb::DESCRIPTOR_SET)?;
    let set = pool.get_message_by_name("google.protobuf.FileDescriptorSet").ok_or("descriptors describe themselves")?;
    let mut set = DynamicMessage::decode(set, pb::DESCRIPTOR_SET)?;
    for file in messages(&mut set, "file") {
        for service in messages(file, "service") {
            if let Some(Value::List(methods)) = service.get_field_by_name_mut("method") {
                methods.retain(|method| {
                    let name = method.as_message().and_then(|method| method.get_field_by_name("name"));
                    name.is_some_and(|name| name.as_str() == Some("RevokeCurrent"))
                });
            }
        }
    }
    Ok(set.encode_to_vec())
}

fn messages<'a>(message: &'a mut DynamicMessage, field: &str) -> impl Iterator<Item = &'a mut DynamicMessage> {
    let values = message.get_field_by_name_mut(field).and_then(Value::as_list_mut).into_iter().flatten();
    values.filter_map(Value::as_message_mut)
}

fn envoy_config(server: SocketAddr, own: SocketAddr, descriptors: &Path) -> String {
    let filters = "type.googleapis.com/envoy.extensions.filters";
    format!(
        r#"
static_resources:
  listeners:
    - name: front
      address: {{ socket_address: {{ address: 127.0.0.1, port_value: {own} }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {filters}.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: front
                http_filters:
                  - name: envoy.filters.http.grpc_json_transcoder
                    typed_config:
                      "@type": {filters}.http.grpc_json_transcoder.v3.GrpcJsonTranscoder
                      proto_descriptor: {descriptors}
                      services: [sessiond.v1.SessionService]
                      convert_grpc_status: true
                      print_options: {{ preserve_proto_field_names: true }}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": {filters}.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{ match: {{ prefix: / }}, route: {{ cluster: sessiond }} }}]
  clusters:
    - name: sessiond
      connect_timeout: 1s
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {{ http2_protocol_options: {{}} }}
      load_assignment:
        cluster_name: sessiond
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {{ socket_address: {{ address: 127.0.0.1, port_value: {server} }} }}
"#,
        own = own.port(),
        server = server.port(),
        descriptors = descriptors.display(),
    )
}
