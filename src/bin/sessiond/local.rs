//! Requests of commands to the server that runs on this machine.

use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest response that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Sends a request, and returns the status and the text of the response. The caller limits the time.
pub(crate) async fn send(
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, String), Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(address.to_string())?);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
