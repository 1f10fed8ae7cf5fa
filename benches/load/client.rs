//! A client as cheap as it can be, because it shares the processors with the server: one connection, one request at a
//! time, hyper without a pool.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Request;
use http::StatusCode;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tonic::Code;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::Outcome;

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wire {
    /// JSON over HTTP/1.1.
    Rest,
    /// gRPC over HTTP/2.
    Grpc,
    /// grpc-web over HTTP/1.1.
    GrpcWeb,
}

impl Wire {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "REST",
            Self::Grpc => "gRPC",
            Self::GrpcWeb => "grpc-web",
        }
    }

    /// The content type of requests.
    pub(crate) const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Rest => "application/json",
            Self::Grpc => "application/grpc",
            Self::GrpcWeb => "application/grpc-web+proto",
        })
    }

    /// A message as the body of a request; for REST it is JSON.
    pub(crate) fn body(self, message: &[u8]) -> Bytes {
        match self {
            Self::Rest => Bytes::copy_from_slice(message),
            Self::Grpc | Self::GrpcWeb => {
                let length = u32::try_from(message.len()).expect("a small message");
                [&[0], &length.to_be_bytes()[..], message].concat().into()
            }
        }
    }
}

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) text: String,
    /// How long the server says to wait.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the server may have done what was asked.
    pub(crate) may_be_done: bool,
}

/// An answer: a message, or JSON, with the response's headers.
pub(crate) type Answer = Result<(HeaderMap, Bytes), Refusal>;

/// One connection. Cloning an HTTP/2 connection adds a stream.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>, Wire),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Connects, from this loopback address.
    pub(crate) async fn open(wire: Wire, to: SocketAddr, from: Ipv4Addr) -> Outcome<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        Ok(match wire {
            Wire::Rest | Wire::GrpcWeb => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Self::Http1(sender, wire)
            }
            Wire::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        })
    }

    /// Another stream of the same connection; `None` on HTTP/1.1.
    pub(crate) fn another_stream(&self) -> Option<Self> {
        match self {
            Self::Http1(..) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    /// Whether neither side has closed the connection.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::Http1(sender, _) => !sender.is_closed(),
            Self::Http2(sender) => !sender.is_closed(),
        }
    }

    /// Sends a request, and reads the whole answer.
    ///
    /// # Errors
    ///
    /// Fails if the connection fails, or the answer is malformed.
    pub(crate) async fn call(&mut self, request: Request<Full<Bytes>>) -> Outcome<Answer> {
        let (wire, response) = match self {
            Self::Http1(sender, wire) => {
                sender.ready().await?;
                (*wire, sender.send_request(request).await?)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                (Wire::Grpc, sender.send_request(request).await?)
            }
        };
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        if wire == Wire::Rest {
            return Ok(rest(head.status, head.headers, body));
        }
        if head.status != StatusCode::OK {
            return Err(format!("HTTP {} to a gRPC call", head.status).into());
        }
        let (message, trailers) = match wire {
            Wire::GrpcWeb => web_frames(&body)?,
            Wire::Grpc | Wire::Rest => (frame(&body)?.map(|(_, message, _)| message), trailers),
        };
        // An answer without a message has its status in the headers.
        let status = Status::from_header_map(trailers.as_ref().unwrap_or(&head.headers)).ok_or("no gRPC status")?;
        match (status.code(), message) {
            (Code::Ok, Some(message)) => Ok(Ok((head.headers, message))),
            (Code::Ok, None) => Err("no message".into()),
            (code, _) => Ok(Err(Refusal {
                text: format!("{code:?}: {}", status.message()),
                retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
                may_be_done: code != Code::ResourceExhausted,
            })),
        }
    }
}

fn rest(status: StatusCode, headers: HeaderMap, body: Bytes) -> Answer {
    if status == StatusCode::OK {
        return Ok((headers, body));
    }
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Err(Refusal {
        text: format!("{status}: {}", String::from_utf8_lossy(&body)),
        retry_after: seconds.map(Duration::from_secs),
        may_be_done: status != StatusCode::TOO_MANY_REQUESTS,
    })
}

/// The flags and content of a body's first frame, and what follows; `None` if the body is empty.
fn frame(body: &Bytes) -> Outcome<Option<(u8, Bytes, Bytes)>> {
    let Some((head, rest)) = body.split_first_chunk::<5>() else {
        return if body.is_empty() { Ok(None) } else { Err("half a frame".into()) };
    };
    let [flags, length @ ..] = *head;
    let end = 5 + usize::try_from(u32::from_be_bytes(length))?;
    if rest.len() + 5 < end {
        return Err("half a frame".into());
    }
    Ok(Some((flags, body.slice(5..end), body.slice(end..))))
}

/// The message and the trailers in a body of grpc-web.
fn web_frames(body: &Bytes) -> Outcome<(Option<Bytes>, Option<HeaderMap>)> {
    const TRAILERS: u8 = 0x80;
    let (mut message, mut trailers, mut rest) = (None, None, body.clone());
    while let Some((flags, content, after)) = frame(&rest)? {
        if flags == TRAILERS {
            let lines = str::from_utf8(&content)?.lines().filter_map(|line| line.split_once(':'));
            let fields = lines.map(|(name, value)| Ok((name.trim().parse()?, value.trim().parse()?)));
            trailers = Some(fields.collect::<Outcome<Vec<(HeaderName, HeaderValue)>>>()?.into_iter().collect());
        } else {
            message = Some(content);
        }
        rest = after;
    }
    Ok((message, trailers))
}
