//! A stream of revocations, on every protocol.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::unfold};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use sessiond::pb::{
    Heartbeat, Revocation, SnapshotReason, WatchRevocationsRequest, WatchRevocationsResponse, revocation::Ended,
    watch_revocations_response::Event,
};
use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, metadata::MetadataMap};

use super::{
    Refused, Service, Wire, eventually, patience,
    wire::{Wires, refused, refused_json},
};

type Messages = Pin<Box<dyn Stream<Item = Result<WatchRevocationsResponse, Refused>> + Send>>;

/// An open stream.
pub struct Watch {
    messages: Messages,
    /// The last cursor received.
    pub cursor: String,
    /// The role of the server key that opened it, as the response's header says.
    pub key_role: Option<String>,
}

/// The bound of every wait.
impl Watch {
    /// The next message of any kind; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<WatchRevocationsResponse, Refused>> {
        let next = tokio::time::timeout(patience(), self.messages.next()).await.expect("something comes");
        if let Some(Ok(WatchRevocationsResponse { cursor: Some(cursor), .. })) = &next {
            self.cursor.clone_from(cursor);
        }
        next
    }

    async fn event(&mut self) -> Event {
        self.next().await.expect("still works").expect("no refusal").event.expect("an event")
    }

    /// The whole initial snapshot, and its reason.
    pub async fn snapshot(&mut self) -> (SnapshotReason, Vec<Revocation>) {
        let first = self.event().await;
        let Event::SnapshotBegin(begin) = first else { panic!("{first:?} before a snapshot") };
        let mut all = vec![];
        loop {
            match self.event().await {
                Event::Revocations(batch) => all.extend(batch.revocations),
                Event::SnapshotComplete(_) => return (begin.reason(), all),
                other => panic!("{other:?} within a snapshot"),
            }
        }
    }

    /// The next revocations, without heartbeats.
    pub async fn ended(&mut self) -> Vec<Revocation> {
        loop {
            match self.event().await {
                Event::Revocations(batch) => return batch.revocations,
                Event::Heartbeat(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The sessions revoked next; empty if a heartbeat comes first.
    pub async fn ended_or_beat(&mut self) -> Vec<String> {
        let Event::Revocations(batch) = self.event().await else { return vec![] };
        let session = |one: Revocation| match one.ended {
            Some(Ended::SessionId(id)) => Some(id),
            _ => None,
        };
        batch.revocations.into_iter().filter_map(session).collect()
    }

    /// The session revoked next.
    pub async fn ended_session(&mut self) -> String {
        match self.ended().await.as_slice() {
            [Revocation { ended: Some(Ended::SessionId(id)), .. }] => id.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The age in the next heartbeat, in milliseconds.
    pub async fn heartbeat(&mut self) -> i32 {
        self.beat().await.age_ms
    }

    /// The age of the stream in the next heartbeat, in milliseconds.
    pub async fn stream_age(&mut self) -> Option<i64> {
        self.beat().await.stream_age_ms
    }

    async fn beat(&mut self) -> Heartbeat {
        loop {
            if let Event::Heartbeat(beat) = self.event().await {
                return beat;
            }
        }
    }

    /// The reason of the stream's end. Earlier messages are skipped.
    pub async fn refusal(&mut self) -> Refused {
        loop {
            match self.next().await.expect("an end with a reason") {
                Ok(_) => {}
                Err(refused) => return refused,
            }
        }
    }
}

impl Service {
    /// Waits for a read that both starts and ends after now. The database's clock runs while ours stands still: rows
    /// read after ours was moved are kept for longer.
    pub async fn feed_is_read(&self) {
        const READINGS: &str =
            "sessiond_store_operation_duration_seconds_count{operation=\"feed_next\",outcome=\"ok\"}";
        let before = self.metric(READINGS).await;
        eventually("two readings", async || self.metric(READINGS).await >= before + 2).await;
    }

    /// Follows the whole project, with its key.
    pub async fn watches(&self, wire: Wire) -> Watch {
        self.watches_from(wire, "").await
    }

    /// The same, after a cursor.
    pub async fn watches_from(&self, wire: Wire, cursor: &str) -> Watch {
        eventually("the first reading", async || self.app.feed().age().is_some()).await;
        self.wires.watch(wire, self.key(), cursor).await.expect("may follow")
    }
}

impl Wires {
    /// Opens a stream of revocations.
    pub async fn watch(&self, wire: Wire, headers: HeaderMap, cursor: &str) -> Result<Watch, Refused> {
        self.watch_as(wire, headers, &asking(cursor)).await
    }

    /// The same with this request.
    pub async fn watch_as(
        &self,
        wire: Wire,
        headers: HeaderMap,
        request: &WatchRevocationsRequest,
    ) -> Result<Watch, Refused> {
        let (messages, key_role): (Messages, _) = match wire {
            Wire::Grpc => follow(Grpc::with_origin(self.grpc.clone(), self.origin()), headers, request.clone()).await?,
            Wire::GrpcWeb => {
                follow(Grpc::with_origin(self.web.clone(), self.origin()), headers, request.clone()).await?
            }
            Wire::Rest => {
                let (messages, key_role) = self.watch_rest(headers, request, "application/x-ndjson").await?;
                (Box::pin(messages), key_role)
            }
        };
        Ok(Watch { messages, cursor: String::new(), key_role })
    }

    /// The same over REST, as server-sent events.
    pub async fn watch_events(&self, headers: HeaderMap, cursor: &str) -> Result<Watch, Refused> {
        let (messages, key_role) = self.watch_rest(headers, &asking(cursor), "text/event-stream").await?;
        Ok(Watch { messages: Box::pin(messages), cursor: String::new(), key_role })
    }

    async fn watch_rest(
        &self,
        mut headers: HeaderMap,
        request: &WatchRevocationsRequest,
        accept: &'static str,
    ) -> Result<(impl Stream<Item = Result<WatchRevocationsResponse, Refused>> + use<>, Option<String>), Refused> {
        headers.insert(http::header::ACCEPT, HeaderValue::from_static(accept));
        let WatchRevocationsRequest { cursor, accepts, max_entries } = request;
        let cursor = (!cursor.is_empty()).then(|| format!("cursor={cursor}"));
        let max_entries = (*max_entries != 0).then(|| format!("max_entries={max_entries}"));
        let query: Vec<String> =
            cursor.into_iter().chain(accepts.iter().map(|kind| format!("accepts={kind}"))).chain(max_entries).collect();
        let path = format!("/auth/revocations:watch?{}", query.join("&"));
        let request = self.request(Method::GET, path.trim_end_matches('?'), headers, Bytes::new());
        let response = self.rest.request(request).await.expect("answers");
        let status = response.status();
        let descriptor = self.method("WatchRevocations").output();
        if status != StatusCode::OK {
            let body = response.into_body().collect().await.expect("a whole body").to_bytes();
            return Err(refused_json(status, &serde_json::from_slice(&body).expect("JSON")));
        }
        assert_eq!(response.headers()["content-type"], accept);
        let key_role = response.headers().get(KEY_ROLE).map(|role| role.to_str().expect("text").to_owned());
        let prefix = if accept == "text/event-stream" { "data: " } else { "" };
        let lines = lines(response.into_body()).filter_map(move |line| async move {
            line.strip_prefix(prefix).filter(|json| !json.is_empty()).map(str::to_owned)
        });
        let messages = lines.map(move |line| {
            let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            // Our messages have no such field, and every form of failure has one.
            if let Some(failure) = json.get("error").or_else(|| json.get("code").map(|_| &json)) {
                return Err(refused_json(status, failure));
            }
            let message = DynamicMessage::deserialize(descriptor.clone(), json).expect("ProtoJSON");
            Ok(WatchRevocationsResponse::decode(message.encode_to_vec().as_slice()).expect("decodes"))
        });
        Ok((messages, key_role))
    }
}

/// The header with the role of the server key.
const KEY_ROLE: &str = "x-sessiond-key-role";

/// A request of a subscriber that says nothing but where to resume.
pub fn asking(cursor: &str) -> WatchRevocationsRequest {
    WatchRevocationsRequest { cursor: cursor.to_owned(), ..WatchRevocationsRequest::default() }
}

/// A request of a subscriber that understands these kinds.
pub fn accepting(kinds: &[&str]) -> WatchRevocationsRequest {
    let accepts = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    WatchRevocationsRequest { accepts, ..WatchRevocationsRequest::default() }
}

async fn follow<S, R>(
    mut client: Grpc<S>,
    headers: HeaderMap,
    message: WatchRevocationsRequest,
) -> Result<(Messages, Option<String>), Refused>
where
    S: tonic::client::GrpcService<tonic::body::Body, ResponseBody = R>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = PathAndQuery::from_static("/sessiond.v1.SessionService/WatchRevocations");
    let request = tonic::Request::from_parts(MetadataMap::from_headers(headers), http::Extensions::new(), message);
    if client.ready().await.is_err() {
        panic!("the client is not ready");
    }
    let codec = tonic_prost::ProstCodec::<WatchRevocationsRequest, WatchRevocationsResponse>::default();
    let answer = client.server_streaming(request, path, codec).await.map_err(|status| refused(&status))?;
    let key_role = answer.metadata().get(KEY_ROLE).map(|role| role.to_str().expect("text").to_owned());
    Ok((Box::pin(answer.into_inner().map_err(|status| refused(&status))), key_role))
}

/// The lines of a body, as they arrive.
fn lines(body: Incoming) -> impl Stream<Item = String> {
    let chunks = body.into_data_stream();
    Box::pin(unfold((chunks, Vec::new()), |(mut chunks, mut kept)| async move {
        loop {
            if let Some(end) = kept.iter().position(|byte| *byte == b'\n') {
                let rest = kept.split_off(end + 1);
                let line = String::from_utf8(kept).expect("UTF-8").trim_end().to_owned();
                return Some((line, (chunks, rest)));
            }
            let chunk: Bytes = chunks.next().await?.ok()?;
            kept.extend_from_slice(&chunk);
        }
    }))
}
