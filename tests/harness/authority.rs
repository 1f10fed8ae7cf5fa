//! A certificate authority, and the files of the servers and clients that it certifies.

use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sessiond_core::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::database::fresh_dir;
use super::serving::{Installed, Serving};

/// An authority, and its files.
pub struct Authority {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// What a certificate is like.
#[derive(Clone, Copy)]
pub enum Kind {
    Good,
    Expired,
    /// Valid in three seconds.
    Early,
}

impl Kind {
    fn date(&self, params: &mut CertificateParams) {
        match self {
            Self::Good => {}
            Self::Expired => {
                (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1))
            }
            Self::Early => {
                let now = Clock::system().now().as_micros().try_into().expect("after 1970");
                params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_micros(now) + Duration::from_secs(3);
            }
        }
    }
}

/// A client's certificate and key, in PEM.
pub struct ClientIdentity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        // Not the name of the certificates that it signs, or OpenSSL takes them for self-signed.
        params.distinguished_name.push(DnType::CommonName, format!("the authority {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let dir = fresh_dir(name);
        fs::create_dir_all(&dir).expect("creates");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signs");
        fs::write(dir.join("ca.pem"), issuer.pem()).expect("writes");
        Self { issuer, dir }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Writes a new certificate with its key. Each file is replaced at once, one after the other, as renewals do.
    pub fn issue(&self, kind: Kind) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        kind.date(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        self.replace("cert.pem", &certificate.pem());
        self.replace("key.pem", &key.serialize_pem());
        certificate.der().clone()
    }

    pub fn replace(&self, file: &str, text: &str) {
        let next = self.path("next");
        fs::write(&next, text).expect("writes");
        fs::rename(next, self.path(file)).expect("renames");
    }

    pub fn flags(&self) -> [String; 4] {
        let path = |file| self.path(file).display().to_string();
        ["--tls-certificate-file".to_owned(), path("cert.pem"), "--tls-key-file".to_owned(), path("key.pem")]
    }

    pub async fn serve(&self, installed: &Installed, more: &[&str]) -> (Serving, PathBuf) {
        let flags = self.flags();
        let args: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let log = self.path("log");
        let serving = installed.serve(&[], &args, File::create(&log).expect("creates")).await;
        (serving, log)
    }

    /// Connects, trusting this authority alone. Also returns the certificate that the server presented.
    async fn connect(&self, addr: SocketAddr) -> Result<(TlsStream<TcpStream>, CertificateDer<'static>), String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpStream::connect(addr).await.map_err(|error| format!("connect: {error}"))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let tls = tls.map_err(|error| format!("handshake: {error}"))?;
        let presented = tls.get_ref().1.peer_certificates().expect("presented")[0].clone().into_owned();
        Ok((tls, presented))
    }

    /// Opens a connection for many requests over HTTP/1.1.
    pub async fn open(&self, addr: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
        let (tls, _) = self.connect(addr).await?;
        let opened = http1::handshake(TokioIo::new(tls)).await;
        let (sender, connection) = opened.map_err(|error| format!("handshake: {error}"))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Opens a connection for many requests over HTTP/2.
    pub async fn open_h2(&self, addr: SocketAddr) -> Result<http2::SendRequest<Empty<Bytes>>, String> {
        let (tls, _) = self.connect(addr).await?;
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
        let (sender, connection) = opened.map_err(|error| format!("handshake: {error}"))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Makes a request on a connection of its own. Returns the certificate that the server presented.
    pub async fn get(&self, addr: SocketAddr, path: &str) -> Result<CertificateDer<'static>, String> {
        let (mut tls, presented) = self.connect(addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        tls.write_all(request.as_bytes()).await.map_err(|error| format!("write: {error}"))?;
        let mut answer = vec![];
        // The server may close without a close_notify after `connection: close`.
        let _ = tls.read_to_end(&mut answer).await;
        match answer.starts_with(b"HTTP/1.1 200") {
            true => Ok(presented),
            false => Err(String::from_utf8_lossy(&answer).into_owned()),
        }
    }

    /// A client certificate with these names. Writes nothing.
    pub fn client(&self, names: &[&str], kind: Kind) -> ClientIdentity {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "login.example.org");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().expect("ASCII")),
                false => SanType::DnsName((*name).try_into().expect("ASCII")),
            })
            .collect();
        kind.date(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        ClientIdentity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Runs curl for a URL path, trusting this authority, over the protocols that the arguments choose. Returns standard
    /// output, then standard error.
    pub fn curl(&self, addr: SocketAddr, path: &str, args: &[&str]) -> String {
        let host = format!("localhost:{}", addr.port());
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
            .arg(self.path("ca.pem"))
            .args(["--resolve", &format!("{host}:127.0.0.1")])
            .args(args)
            .arg(format!("https://{host}{path}"))
            .output()
            .expect("runs");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
