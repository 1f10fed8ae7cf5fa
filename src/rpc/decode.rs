//! From the wire into the words of the app. Checks the form alone; what may be asked is a rule (`session::opening`).

use prost::Message as _;
use prost_types::Struct;
use prost_types::Value;
use prost_types::value::Kind;
use uuid::Uuid;

use crate::app::CreateRequest;
use crate::clock::Timestamp;
use crate::pb::CreateSessionRequest;
use crate::session::Refusal;
use crate::session::lifecycle::Authentication;
use crate::session::opening::CLAIMS_BYTES_MAX;
use crate::session::opening::Draft;
use crate::session::refusal::Violation;

/// How deep a `Struct` is followed. Deeper than any rule allows, and shallow enough for any stack.
const DEPTH_MAX: usize = 32;

pub(super) fn create(mut request: CreateSessionRequest) -> Result<CreateRequest, Refusal> {
    let request_id = request.request_id.take().filter(|id| !id.is_empty()).map(uuid).transpose()?;
    // Fields in the order of their numbers, maps in the order of their keys: the same request has the same bytes.
    let said = request.encode_to_vec();
    let draft = Draft {
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
    Ok(CreateRequest::new(draft, request_id, &said))
}

fn uuid(text: String) -> Result<Uuid, Refusal> {
    let refused = || Violation::refuse("request_id", "must be a UUID");
    // The hyphenated form alone: other spellings of the same UUID would be the same request by surprise.
    if text.len() == 36 { Uuid::try_parse(&text).map_err(|_| refused()) } else { Err(refused()) }
}

fn timestamp(time: prost_types::Timestamp) -> Result<Timestamp, Refusal> {
    let micros =
        time.seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(time.nanos / 1_000)));
    micros.map(Timestamp::from_micros).ok_or_else(|| Violation::refuse("auth_time", "must be a past moment since 1970"))
}

fn claims(claims: Struct) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    if claims.encoded_len() > 4 * CLAIMS_BYTES_MAX {
        return Err(Violation::refuse("claims", "must be at most 4096 bytes as JSON"));
    }
    object(claims, 0)
}

fn object(object: Struct, depth: usize) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    object.fields.into_iter().map(|(name, field)| Ok((name, value(field, depth)?))).collect()
}

fn value(value_: Value, depth: usize) -> Result<serde_json::Value, Refusal> {
    if depth > DEPTH_MAX {
        return Err(Violation::refuse("claims", "must not be nested deeper than 8"));
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

/// A `Struct` knows only doubles; a whole number is written as one, because `iat`-like claims are read as integers.
#[expect(clippy::cast_possible_truncation, reason = "whole, and within the integers that a double holds exactly")]
fn number(value: f64) -> Result<serde_json::Value, Refusal> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT_MAX {
        return Ok((value as i64).into());
    }
    let number = serde_json::Number::from_f64(value);
    number.map(Into::into).ok_or_else(|| Violation::refuse("claims", "must not hold a number that is infinite or none"))
}
