//! The stream to one server, which inspects messages before the driver reads them.
//!
//! The driver hides the SQLSTATE of an error, which is the same in every language. It also sends a password to any
//! server that asks: on a connection without TLS, a request for a password in clear text or as an MD5 hash is rejected
//! before it reaches the driver.

use std::convert::Infallible;
use std::future::Ready;
use std::future::ready;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::ChannelBinding;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::tls::TlsConnect;
use tokio_postgres::tls::TlsStream;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Begins a transaction. Each statement sees what was committed before it, whatever the database's default isolation
/// level.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How many bytes of a message are kept: its SQLSTATE is within the first hundred.
const KEPT_BYTES: usize = 512;

/// The SSLRequest message: a length, and a number that is not a protocol version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The half of a connection that must be polled for the client to make progress.
pub(super) type Connection = tokio_postgres::Connection<ServerStream, ServerStream>;

/// What is known about one connection beyond what the driver exposes.
#[derive(Default)]
pub(super) struct WireState {
    error: Mutex<Option<SqlState>>,
    /// How to begin a transaction on a connection that a pooler shares.
    shared: OnceLock<Arc<str>>,
    faults: Arc<Faults>,
}

/// Faults of the database that only the errors of statements show.
#[derive(Default)]
pub(super) struct Faults {
    /// A pooler lost one of our prepared statements.
    pub(super) statements_lost: LastSeen,
    /// The disk was full, or could not be written.
    pub(super) disk_full: LastSeen,
}

/// When something was last seen.
#[derive(Default)]
pub(super) struct LastSeen(Mutex<Option<Instant>>);

impl LastSeen {
    fn note(&self) {
        *self.0.lock().expect("no one panics while holding it") = Some(Instant::now());
    }

    /// Whether it was seen within the last `time`.
    pub(super) fn within(&self, time: Duration) -> bool {
        self.0.lock().expect("no one panics while holding it").is_some_and(|at| at.elapsed() < time)
    }
}

/// Whether the error means that a prepared statement is gone, or that another client prepared one with the same name.
pub(super) fn is_statement_lost(code: &SqlState) -> bool {
    [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(code)
}

impl WireState {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        Self { faults, ..Self::default() }
    }

    /// Returns the SQLSTATE of the last error, and clears it.
    pub(super) fn take_error(&self) -> Option<SqlState> {
        let code = self.error.lock().expect("no one panics while holding it").take();
        match &code {
            Some(code) if is_statement_lost(code) => self.faults.statements_lost.note(),
            Some(code) if [SqlState::DISK_FULL, SqlState::IO_ERROR].contains(code) => self.faults.disk_full.note(),
            _ => {}
        }
        code
    }

    /// Whether a pooler shares this connection: each transaction may run on another server connection.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.get().is_some()
    }

    /// Marks the connection as shared, with the statements that begin a transaction on it.
    pub(super) fn share(&self, begin: Arc<str>) {
        // Found out once per connection.
        let _ = self.shared.set(begin);
    }

    /// The statements that begin a transaction.
    pub(super) fn begin(&self) -> Arc<str> {
        self.shared.get().map_or_else(|| BEGIN.into(), Arc::clone)
    }
}

/// A server asked for the password in a way that would reveal it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum InsecureAuth {
    #[error("the server asks for the password in clear text, but there is no TLS")]
    Cleartext,
    #[error("the server asks for the password as an MD5 hash, but there is no TLS")]
    Md5,
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    fn binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl Transport for TcpStream {}

impl Transport for UnixStream {}

/// TLS over TCP.
struct TlsTransport(<MakeRustlsConnect as MakeTlsConnect<TcpStream>>::Stream);

impl Transport for TlsTransport {
    fn binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

impl AsyncRead for TlsTransport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsTransport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The stream to one server.
pub(super) struct ServerStream {
    transport: Box<dyn Transport>,
    messages: MessageReader,
    state: Arc<WireState>,
}

impl ServerStream {
    /// Over a Unix socket, which cannot be intercepted.
    pub(super) fn unix(socket: UnixStream, state: &Arc<WireState>) -> Self {
        Self::over(Box::new(socket), false, state)
    }

    /// Over TCP, without TLS.
    pub(super) fn tcp(socket: TcpStream, state: &Arc<WireState>) -> Self {
        Self::over(Box::new(socket), true, state)
    }

    /// Over TLS. Call it once the server has accepted TLS, or expects it directly.
    ///
    /// # Errors
    ///
    /// Fails if the handshake fails; the source is rustls' error.
    pub(super) async fn tls(
        socket: TcpStream,
        tls: &MakeRustlsConnect,
        host: &str,
        state: &Arc<WireState>,
    ) -> io::Result<Self> {
        let Ok(connect) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut tls.clone(), host);
        let stream = connect.connect(socket).await?;
        Ok(Self::over(Box::new(TlsTransport(stream)), false, state))
    }

    fn over(transport: Box<dyn Transport>, is_plaintext: bool, state: &Arc<WireState>) -> Self {
        Self {
            transport,
            messages: MessageReader { is_plaintext, ..MessageReader::default() },
            state: Arc::clone(state),
        }
    }
}

/// Asks the server for TLS, and returns whether it accepted.
///
/// # Errors
///
/// Fails if the connection breaks.
pub(super) async fn offers_tls(socket: &mut TcpStream) -> io::Result<bool> {
    socket.write_all(&SSL_REQUEST).await?;
    let mut answer = [0];
    // Exactly one byte: any plaintext behind it was not sent by the holder of the certificate.
    socket.read_exact(&mut answer).await?;
    Ok(answer == *b"S")
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let already = buffer.filled().len();
        let this = &mut *self;
        let polled = Pin::new(&mut this.transport).poll_read(context, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) {
            this.messages.read(&buffer.filled()[already..], &this.state)?;
        }
        polled
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}

impl TlsStream for ServerStream {
    fn channel_binding(&self) -> ChannelBinding {
        self.transport.binding()
    }
}

/// A TLS connector for the driver that does nothing: TLS, if any, is already established.
pub(super) struct AlreadyNegotiated;

impl TlsConnect<ServerStream> for AlreadyNegotiated {
    type Stream = ServerStream;
    type Error = Infallible;
    type Future = Ready<Result<ServerStream, Infallible>>;

    fn connect(self, wire: ServerStream) -> Self::Future {
        ready(Ok(wire))
    }
}

/// Parses server messages: a type byte, a length that includes itself, and a body.
#[derive(Default)]
struct MessageReader {
    /// Whether the connection could be intercepted.
    is_plaintext: bool,
    head: Vec<u8>,
    /// The start of the body.
    body: Vec<u8>,
    /// How many bytes of the body are still to come.
    unread: usize,
}

impl MessageReader {
    fn read(&mut self, mut bytes: &[u8], state: &WireState) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.head.len() < 5 {
                let (head, rest) = bytes.split_at(bytes.len().min(5 - self.head.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                let Some(length) = self.head.get(1..5) else { continue };
                let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
                self.unread = (length as usize).saturating_sub(4);
            }
            let (body, rest) = bytes.split_at(bytes.len().min(self.unread));
            if b"ER".contains(&self.head[0]) {
                let room = KEPT_BYTES - self.body.len();
                self.body.extend_from_slice(&body[..body.len().min(room)]);
            }
            bytes = rest;
            self.unread -= body.len();
            if self.unread == 0 {
                self.take(state)?;
                self.head.clear();
                self.body.clear();
            }
        }
        Ok(())
    }

    fn take(&self, state: &WireState) -> io::Result<()> {
        let insecure = match (self.head[0], self.body.get(..4)) {
            (b'R', Some([0, 0, 0, 3])) if self.is_plaintext => InsecureAuth::Cleartext,
            (b'R', Some([0, 0, 0, 5])) if self.is_plaintext => InsecureAuth::Md5,
            (b'E', _) => {
                *state.error.lock().expect("no one panics while holding it") = self.code();
                return Ok(());
            }
            _ => return Ok(()),
        };
        Err(io::Error::other(insecure))
    }

    /// The field `C`: the SQLSTATE.
    fn code(&self) -> Option<SqlState> {
        let field = self.body.split(|byte| *byte == 0).find(|field| field.starts_with(b"C"))?;
        Some(SqlState::from_code(std::str::from_utf8(&field[1..]).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    /// In any language, and wherever the network splits the bytes.
    #[test]
    fn error_codes_are_read_however_the_bytes_arrive() {
        let text = [
            message(b'S', b"server_version\x0017\0"),
            message(b'I', b""),
            message(b'D', &[b'C'; 3_000]),
            message(b'N', b"SWARNUNG\0VWARNING\0C01000\0Mwarte nicht mehr\0\0"),
            message(b'N', b"SHINWEIS\0VNOTICE\0C00000\0Mnichts\0\0"),
            message(b'E', "SFATAL\0VFATAL\0C57014\0Mstorniere Anfrage wegen Zeitüberschreitung\0\0".as_bytes()),
            message(b'Z', b"I"),
        ]
        .concat();
        for piece in [1, 2, 3, 7, text.len()] {
            let (state, mut messages) =
                (WireState::default(), MessageReader { is_plaintext: true, ..MessageReader::default() });
            for bytes in text.chunks(piece) {
                messages.read(bytes, &state).expect("nothing is asked for");
            }
            assert_eq!(state.take_error(), Some(SqlState::QUERY_CANCELED));
            assert_eq!(state.take_error(), None);
        }
    }

    #[test]
    fn a_request_for_a_password_in_clear_text_is_rejected_without_tls() {
        for (code, refused) in [(0, false), (3, true), (5, true), (10, false)] {
            for is_plaintext in [true, false] {
                let mut messages = MessageReader { is_plaintext, ..MessageReader::default() };
                let asked = message(b'R', &[&[0, 0, 0, code][..], &[7; 4]].concat());
                assert_eq!(messages.read(&asked, &WireState::default()).is_err(), refused && is_plaintext, "{code}");
            }
        }
    }
}
