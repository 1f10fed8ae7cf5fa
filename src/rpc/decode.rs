//! Decodes requests from the wire. Checks their form only; what is allowed is a rule (`session::create`).

use prost::Message as _;
use prost_types::Struct;
use prost_types::Value;
use prost_types::value::Kind;
use uuid::Uuid;

use crate::app::IdempotencyKey;
use crate::app::ListRequest;
use crate::app::RevokeAllRequest;
use crate::app::TOKENS_MAX;
use crate::cookies::Lifetime;
use crate::pb::BatchIntrospectRequest;
use crate::pb::CreateSessionRequest;
use crate::pb::IntrospectTokenRequest;
use crate::pb::ListSessionsRequest;
use crate::pb::RevokeAllSessionsRequest;
use crate::pb::RevokeProjectSessionsRequest;
use crate::pb::SessionState;
use crate::pb::UpdateSessionRequest;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::Refusal;
use sessiond_core::session::change::Change;
use sessiond_core::session::change::EarlierTokens;
use sessiond_core::session::create::CreateRequest;
use sessiond_core::session::lifecycle::Authentication;
use sessiond_core::session::listing::Filter;
use sessiond_core::session::listing::State;
use sessiond_core::session::violation::CLAIMS_BYTES_MAX;

/// How deep a `Struct` is read. Deeper than the rules allow, and shallow enough for any stack.
const DEPTH_MAX: usize = 32;

/// What to create, how long a browser keeps the cookies if any are asked for, and the id under which the request may be repeated.
pub(super) fn create(
    mut request: CreateSessionRequest,
) -> Result<(CreateRequest, Option<Lifetime>, Option<IdempotencyKey>), Refusal> {
    let request_id = request.request_id.take().filter(|id| !id.is_empty()).map(uuid).transpose()?;
    // Fields are encoded by number and maps by key, so equal requests have equal bytes.
    let key = request_id.map(|id| IdempotencyKey::new(id, &request.encode_to_vec()));
    let lifetime =
        request.cookies.map(|cookies| if cookies.persistent { Lifetime::Persistent } else { Lifetime::Session });
    let request = CreateRequest {
        user_id: request.user_id,
        expires_in_millis: request.expires_in_millis,
        idle_timeout_millis: request.idle_timeout_millis,
        is_impersonation: request.is_impersonation,
        impersonator_id: request.impersonator_id,
        authentication: Authentication {
            time: request.auth_time.map(timestamp).transpose()?,
            acr: request.acr,
            amr: request.amr,
        },
        replaces_session_id: request.replaces_session_id,
        claims: request.claims.map(claims).transpose()?.unwrap_or_default(),
        device_name: request.device_name,
        user_agent: request.user_agent,
        ip: request.ip,
        labels: request.labels,
    };
    Ok((request, lifetime, key))
}

pub(super) fn list(mut request: ListSessionsRequest) -> Result<ListRequest, Refusal> {
    let page_token = std::mem::take(&mut request.page_token);
    // The size may change from page to page; everything else is the query (AIP-158).
    let page_size = request.page_size.take();
    let query = request.encode_to_vec();
    let state = match SessionState::try_from(request.state) {
        Ok(SessionState::Unspecified | SessionState::Live) => State::Live,
        Ok(SessionState::Ended) => State::Ended,
        Ok(SessionState::Any) => State::Any,
        Err(_) => return Err(Refusal::invalid("state", "must be a known state")),
    };
    let (filter, page_size) =
        Filter::check(state, &request.labels, request.device_name, page_size).map_err(Refusal::Schema)?;
    Ok(ListRequest { user_id: request.user_id, filter, page_size, page_token, query })
}

pub(super) fn revoke_all(request: RevokeAllSessionsRequest) -> Result<RevokeAllRequest, Refusal> {
    let request_id = request.request_id.filter(|id| !id.is_empty()).map(uuid).transpose()?;
    Ok(RevokeAllRequest {
        user_id: request.user_id,
        except_current: request.except_current,
        spared_session_id: request.spared_session_id.filter(|id| !id.is_empty()),
        request_id,
    })
}

pub(super) fn revoke_project(request: RevokeProjectSessionsRequest) -> Result<Option<Uuid>, Refusal> {
    request.request_id.filter(|id| !id.is_empty()).map(uuid).transpose()
}

/// The most entries of a subscriber; `None` for any number.
pub(super) fn entries_max(max_entries: i32) -> Result<Option<usize>, Refusal> {
    let entries_max: usize =
        max_entries.try_into().map_err(|_| Refusal::invalid("max_entries", "must be positive, or 0 for any number"))?;
    Ok((entries_max > 0).then_some(entries_max))
}

/// The session's id, and its new values: the fields that the mask lists, or without a mask the fields that are set.
pub(super) fn update(request: UpdateSessionRequest) -> Result<(String, Change), Refusal> {
    let session = request.session.ok_or_else(|| Refusal::invalid("session", "must be present"))?;
    let listed = match request.update_mask.map(|mask| mask.paths).filter(|paths| !paths.is_empty()) {
        None => [session.claims.is_some(), !session.labels.is_empty(), session.device_name.is_some()],
        Some(paths) => {
            let known = ["claims", "labels", "device_name"];
            if !paths.iter().all(|path| path == "*" || known.contains(&path.as_str())) {
                return Err(Refusal::invalid(
                    "update_mask",
                    "must list only `claims`, `labels` and `device_name`, or be `*`",
                ));
            }
            known.map(|name| paths.iter().any(|path| path == name || path == "*"))
        }
    };
    let [has_claims, has_labels, has_device_name] = listed;
    let change = Change {
        claims: has_claims.then(|| session.claims.map(claims).transpose()).transpose()?.map(Option::unwrap_or_default),
        labels: has_labels.then_some(session.labels),
        device_name: has_device_name.then_some(session.device_name.filter(|name| !name.is_empty())),
        earlier_tokens: match request.supersede_tokens {
            true => EarlierTokens::Superseded,
            false => EarlierTokens::Kept,
        },
    };
    Ok((session.id, change))
}

pub(super) fn token(request: IntrospectTokenRequest) -> Result<Vec<String>, Refusal> {
    match request.token.is_empty() {
        true => Err(Refusal::invalid("token", "must be present")),
        false => Ok(vec![request.token]),
    }
}

pub(super) fn tokens(request: BatchIntrospectRequest) -> Result<Vec<String>, Refusal> {
    match (1..=TOKENS_MAX).contains(&request.tokens.len()) {
        true => Ok(request.tokens),
        false => Err(Refusal::invalid("tokens", "must be 1 to 1000")),
    }
}

/// A `request_id`.
fn uuid(text: String) -> Result<Uuid, Refusal> {
    // The hyphenated form only: other spellings of the same UUID would unexpectedly be the same request. Unset variables often
    // hold the nil or the max UUID (RFC 9562 §5.9, §5.10), and all callers with that bug would share one request.
    let uuid = (text.len() == 36).then(|| Uuid::try_parse(&text).ok()).flatten();
    uuid.filter(|uuid| !uuid.is_nil() && !uuid.is_max())
        .ok_or_else(|| Refusal::invalid("request_id", "must be a UUID, and neither the nil nor the max UUID"))
}

fn timestamp(time: prost_types::Timestamp) -> Result<Timestamp, Refusal> {
    let micros =
        time.seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(time.nanos / 1_000)));
    micros.map(Timestamp::from_micros).ok_or_else(|| Refusal::invalid("auth_time", "must be a past moment since 1970"))
}

/// The claims in a `Struct`, as JSON.
pub(crate) fn claims(claims: Struct) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    if claims.encoded_len() > 4 * CLAIMS_BYTES_MAX {
        return Err(Refusal::invalid("claims", "must be at most 4096 bytes as JSON"));
    }
    object(claims, 0)
}

fn object(object: Struct, depth: usize) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    object.fields.into_iter().map(|(name, field)| Ok((name, value(field, depth)?))).collect()
}

fn value(value_: Value, depth: usize) -> Result<serde_json::Value, Refusal> {
    if depth > DEPTH_MAX {
        return Err(Refusal::invalid("claims", "must not be nested deeper than 8"));
    }
    Ok(match value_.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => number(value)?,
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => {
            list.values.into_iter().map(|one| value(one, depth + 1)).collect::<Result<Vec<_>, _>>()?.into()
        }
        Some(Kind::StructValue(inner)) => object(inner, depth + 1)?.into(),
    })
}

/// A `Struct` holds only doubles; whole numbers become integers, because claims such as `iat` are read as integers.
#[expect(clippy::cast_possible_truncation, reason = "whole, and within the integers that a double holds exactly")]
fn number(value: f64) -> Result<serde_json::Value, Refusal> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT_MAX {
        return Ok((value as i64).into());
    }
    let number = serde_json::Number::from_f64(value);
    number.map(Into::into).ok_or_else(|| Refusal::invalid("claims", "must not hold a number that is infinite or NaN"))
}
