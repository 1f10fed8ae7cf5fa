//! The vectors of all guards (`clients/vectors`, with a README), decided by this one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http::HeaderMap;
use http::header;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tonic::Status;

use super::follow::Progress;
use super::follow::StreamEnd;
use super::follow::StreamReader;
use super::layer::bearer;
use super::options::FailMode;
use super::options::GuardOptions;
use super::rejection::Rejection;
use super::rejection::UnavailableReason;
use super::state::Decision;
use super::state::GuardState;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::pb;
use sessiond_core::pb::watch_revocations_response::Event;
use sessiond_core::pb::withheld::Concerns;
use sessiond_core::session::policy::StepUp;
use sessiond_core::token::jwks::VerifyingKeys;
use sessiond_core::token::server_key::ServerKey;

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/vectors").join(name);
    serde_json::from_slice(&fs::read(path).expect("the file is there")).expect("it has the expected form")
}

/// A guard with the vectors' keys, that connects to nothing.
fn guard(clock: &Clock, file: &Head, settings: &Settings) -> GuardState {
    let key = ServerKey::generate().expose();
    let options = GuardOptions::new("http://127.0.0.1:1", &file.project, &file.issuer, key);
    let fail_mode = match settings.fail_mode.as_str() {
        "reject" => FailMode::Reject,
        "introspect" => FailMode::Introspect,
        "accept_until_expiry" => FailMode::AcceptUntilExpiry,
        other => panic!("unknown fail mode {other}"),
    };
    let max_staleness = Duration::from_millis(settings.max_staleness_ms);
    let max_entries = settings.max_entries.unwrap_or(options.max_entries);
    let options = GuardOptions { clock: clock.clone(), fail_mode, max_staleness, max_entries, ..options };
    let guard = GuardState::new(&options).expect("good options");
    let keys = VerifyingKeys::read(file.jwks.to_string().as_bytes(), &guard.project).expect("a set");
    guard.keys.store(keys, guard.time.elapsed(), Duration::from_secs(24 * 60 * 60));
    guard
}

/// The verdict of a guard that has just read the keys: its name, and what makes it unavailable.
fn verdict(guard: &GuardState, token: &str) -> (String, Option<&'static str>) {
    let rejected = |rejection: Rejection| {
        let because = match &rejection {
            Rejection::Unavailable(UnavailableReason::NoFeed) => Some("no_feed"),
            Rejection::Unavailable(UnavailableReason::StaleFeed) => Some("stale_feed"),
            Rejection::Unavailable(UnavailableReason::NoKeys) => Some("no_keys"),
            Rejection::Unavailable(UnavailableReason::Withheld) => Some("withheld"),
            _ => None,
        };
        (rejection.reason().name().to_owned(), because)
    };
    match guard.decide(token) {
        Decision::Accepted(_) => ("accepted".to_owned(), None),
        Decision::Rejected(rejection) => rejected(rejection),
        Decision::UnknownKey => rejected(Rejection::UnparsableAccessToken),
        Decision::Uncertain(..) if guard.fail_mode == FailMode::Introspect => ("introspect".to_owned(), None),
        Decision::Uncertain(reason, principal) => {
            guard.decide_by_fail_mode(reason, principal).map_or_else(rejected, |_| ("accepted".to_owned(), None))
        }
    }
}

#[derive(Deserialize)]
struct Head {
    project: String,
    issuer: String,
    jwks: Value,
}

#[derive(Clone, Deserialize)]
#[serde(default)]
struct Settings {
    max_staleness_ms: u64,
    fail_mode: String,
    max_entries: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_staleness_ms: 10_000, fail_mode: "reject".to_owned(), max_entries: None }
    }
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(flatten)]
    head: Head,
    tokens: Vec<TokenCase>,
}

#[derive(Deserialize)]
struct TokenCase {
    name: String,
    token: String,
    now_ms: i64,
    verdict: String,
    user: Option<String>,
    session: Option<String>,
    impersonator: Option<String>,
    expired_at_ms: Option<i64>,
    expected_project: Option<String>,
    actual_project: Option<String>,
    require: Option<Requirement>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Requirement {
    acr: Vec<String>,
    max_age: Option<u64>,
}

impl Requirement {
    fn step_up(&self) -> StepUp {
        StepUp::new(self.acr.clone(), self.max_age.map(Duration::from_secs)).expect("valid")
    }
}

#[tokio::test]
async fn tokens() {
    let file: Tokens = read("tokens.json");
    assert!(file.tokens.len() > 150);
    for case in file.tokens {
        let clock = Clock::frozen();
        clock.set(Timestamp::from_micros(case.now_ms * 1_000));
        let guard = guard(&clock, &file.head, &Settings::default());
        guard.revocations.replace(&guard.time, Default::default());
        guard.revocations.set_age(&guard.time, Duration::ZERO);
        let required = case.require.as_ref().map(Requirement::step_up).unwrap_or_default();
        // Twice, because the second time it is found by its digest.
        for _ in 0..2 {
            let (mut verdict, _) = verdict(&guard, &case.token);
            let decision = guard.decide(&case.token);
            if let Decision::Accepted(principal) = &decision
                && let Err(rejection) = guard.check(principal, &required)
            {
                rejection.reason().name().clone_into(&mut verdict);
            }
            assert_eq!(verdict, case.verdict, "{}", case.name);
            match decision {
                Decision::Accepted(principal) => {
                    assert_eq!(Some(principal.user_id().as_str()), case.user.as_deref(), "{}", case.name);
                    assert_eq!(Some(principal.session_id().to_string()), case.session, "{}", case.name);
                    assert_eq!(principal.impersonator_id(), case.impersonator.as_deref(), "{}", case.name);
                }
                Decision::Rejected(Rejection::AccessTokenExpired { expired_at, .. }) => {
                    assert_eq!(Some(expired_at.as_millis()), case.expired_at_ms, "{}", case.name);
                }
                Decision::Rejected(Rejection::WrongProject { expected, actual }) => {
                    assert_eq!(
                        (Some(expected), Some(actual)),
                        (case.expected_project.clone(), case.actual_project.clone())
                    );
                }
                _ => {}
            }
        }
    }
}

#[derive(Deserialize)]
struct Sets {
    #[serde(flatten)]
    head: Head,
    sets: Vec<SetCase>,
}

#[derive(Deserialize)]
struct SetCase {
    name: String,
    body: String,
    kids: Option<Vec<String>>,
}

#[test]
fn jwk_sets() {
    let file: Sets = read("jwks.json");
    let project = ProjectId::parse(&file.head.project).expect("a name");
    let all = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"];
    for case in file.sets {
        let read = VerifyingKeys::read(case.body.as_bytes(), &project).ok().map(|keys| {
            let known = |kid: &&str| keys.find(KeyId::parse(kid).expect("an id")).is_some();
            all.into_iter().filter(known).map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(read, case.kids, "{}", case.name);
    }
}

#[derive(Deserialize)]
struct Clocks {
    #[serde(flatten)]
    head: Head,
    clocks: Vec<ClockCase>,
}

#[derive(Deserialize)]
struct ClockCase {
    name: String,
    steps: Vec<ClockStep>,
}

#[derive(Deserialize)]
struct ClockStep {
    at: u64,
    system: i64,
    date: Option<i64>,
    agrees: Option<bool>,
    now: i64,
}

#[tokio::test]
async fn clocks() {
    let file: Clocks = read("clock.json");
    for case in file.clocks {
        let (clock, mut passed) = (Clock::frozen(), 0);
        clock.set(Timestamp::from_micros(case.steps[0].system * 1_000));
        let guard = guard(&clock, &file.head, &Settings::default());
        for step in case.steps {
            clock.advance(Duration::from_millis(step.at - passed));
            passed = step.at;
            clock.set(Timestamp::from_micros(step.system * 1_000));
            let agrees = step.date.map(|date| guard.time.observe(Timestamp::from_seconds(date)));
            assert_eq!((agrees, guard.time.now().as_millis()), (step.agrees, step.now), "{} at {passed}", case.name);
        }
    }
}

#[derive(Deserialize)]
struct Refusals {
    refusals: Vec<RefusalCase>,
    credentials: Vec<CredentialCase>,
}

#[derive(Deserialize)]
struct RefusalCase {
    reason: String,
    #[serde(default)]
    given: Given,
    status: u16,
    headers: HashMap<String, String>,
    body: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    expired_at_ms: i64,
    project: String,
    user: String,
    session: String,
    expected_project: String,
    actual_project: String,
    #[serde(flatten)]
    requirement: Requirement,
}

#[derive(Deserialize)]
struct CredentialCase {
    headers: Vec<String>,
    token: Option<String>,
    verdict: Option<String>,
}

fn rejection(reason: &str, given: &Given) -> Rejection {
    match reason {
        "CREDENTIALS_MISSING" => Rejection::CredentialsMissing,
        "UNPARSABLE_ACCESS_TOKEN" => Rejection::UnparsableAccessToken,
        "ACCESS_TOKEN_EXPIRED" => Rejection::AccessTokenExpired {
            expired_at: Timestamp::from_micros(given.expired_at_ms * 1_000),
            project: ProjectId::parse(&given.project).expect("a name"),
            user: UserId::parse(&given.user).expect("an id"),
            session: SessionId::parse(&given.session).expect("an id"),
        },
        "INVALID_PROJECT_FOR_ACCESS_TOKEN" => {
            Rejection::WrongProject { expected: given.expected_project.clone(), actual: given.actual_project.clone() }
        }
        "SESSION_REVOKED" => Rejection::SessionRevoked,
        "ACCESS_TOKEN_SUPERSEDED" => Rejection::AccessTokenSuperseded,
        "INSUFFICIENT_USER_AUTHENTICATION" => Rejection::InsufficientUserAuthentication(given.requirement.step_up()),
        "VERIFICATION_UNAVAILABLE" => Rejection::Unavailable(UnavailableReason::StaleFeed),
        other => panic!("unknown reason {other}"),
    }
}

#[tokio::test]
async fn refusals() {
    let file: Refusals = read("refusals.json");
    for case in file.refusals {
        let response = rejection(&case.reason, &case.given).response(&HeaderMap::new());
        let headers = response.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned())).collect();
        assert_eq!((response.status().as_u16(), headers), (case.status, case.headers), "{}", case.reason);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), case.body, "{}", case.reason);
    }
    for case in file.credentials {
        let headers =
            case.headers.iter().map(|value| (header::AUTHORIZATION, value.parse().expect("a value"))).collect();
        let read = bearer(&headers).map(|token| token.map(str::to_owned));
        let read = read.map_err(|rejection| rejection.reason().name().to_owned());
        assert_eq!(read, case.verdict.map_or(Ok(case.token), Err), "{:?}", case.headers);
    }
}

#[derive(Deserialize)]
struct Streams {
    #[serde(flatten)]
    head: Head,
    now_ms: i64,
    tokens: HashMap<String, String>,
    streams: Vec<StreamCase>,
}

#[derive(Deserialize)]
struct StreamCase {
    name: String,
    #[serde(flatten)]
    settings: Settings,
    wire: Option<String>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    at: u64,
    open: Option<String>,
    answer: Option<u16>,
    line: Option<String>,
    end: Option<String>,
    clock_ahead: Option<i64>,
    token: Option<String>,
    verdict: Option<String>,
    because: Option<String>,
    entries: Option<usize>,
    forget: Option<bool>,
    close: Option<bool>,
}

#[tokio::test]
async fn streams() {
    let file: Streams = read("streams.json");
    assert!(file.streams.len() > 60);
    // This guard follows the stream over gRPC, which has no lines.
    for case in file.streams.iter().filter(|case| case.wire.is_none()) {
        follow(&file, case);
    }
}

/// What servers of this and earlier releases have sent.
#[tokio::test]
async fn recorded_streams() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/vectors");
    let names = fs::read_dir(vectors).expect("is there").map(|entry| entry.expect("reads").file_name());
    let recorded: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let recorded = recorded.iter().filter(|name| name.starts_with("recorded-"));
    let mut streams = 0;
    for name in recorded {
        let file: Streams = read(name);
        file.streams.iter().for_each(|case| follow(&file, case));
        streams += file.streams.len();
    }
    assert!(streams > 0);
}

/// Plays one stream.
fn follow(file: &Streams, case: &StreamCase) {
    let (clock, start) = (Clock::frozen(), Instant::now());
    clock.set(Timestamp::from_micros(file.now_ms * 1_000));
    let guard = guard(&clock, &file.head, &case.settings);
    let mut progress = Progress::new(&guard);
    let mut reader: Option<StreamReader<'_>> = None;
    let (mut passed, mut ahead) = (0, 0);
    for step in &case.steps {
        let at = start + Duration::from_millis(step.at);
        clock.advance(Duration::from_millis(step.at - passed));
        passed = step.at;
        let name = format!("{}, at {passed} ms: {step:?}", case.name);
        if let Some(cursor) = &step.open {
            assert!(reader.is_none() && progress.cursor == *cursor, "{name}");
            reader = Some(StreamReader::new(&guard, &mut progress, at));
        }
        let end = match (&step.line, step.answer, step.close) {
            (Some(line), ..) => match message(line) {
                Ok(message) => {
                    let reader = reader.as_mut().expect("a stream is open");
                    reader.receive(message, at, &mut progress).err()
                }
                Err(status) => Some(StreamEnd::from(status)),
            },
            (None, Some(400), _) => Some(Status::invalid_argument("cursor").into()),
            (None, _, Some(true)) => Some(StreamEnd::Closed),
            (None, ..) => None,
        };
        if let Some(end) = end {
            progress.end(&end);
            reader = None;
            let expected = step.end.as_deref();
            assert!(step.line.is_none() || expected == Some(name_of(&end)), "{name}: {end}");
        } else {
            assert_eq!(step.end, None, "{name}");
        }
        if let Some(now_ahead) = step.clock_ahead {
            let now = clock.now().as_micros() + (now_ahead - ahead) * 1_000;
            clock.set(Timestamp::from_micros(now));
            ahead = now_ahead;
        }
        if let Some(token) = &step.token {
            let (verdict, because) = verdict(&guard, &file.tokens[token]);
            assert_eq!((Some(verdict.as_str()), because), (step.verdict.as_deref(), step.because.as_deref()), "{name}");
        }
        if step.forget == Some(true) {
            guard.revocations.current().forget(guard.time.elapsed());
        }
        if let Some(entries) = step.entries {
            assert_eq!(guard.revocations.current().len(), entries, "{name}");
        }
    }
}

const fn name_of(end: &StreamEnd) -> &'static str {
    match end {
        StreamEnd::UnknownRevocation => "unknown_revocation",
        StreamEnd::Silence => "silence",
        StreamEnd::Stale(_) => "stale",
        StreamEnd::Status(_) => "error",
        StreamEnd::Closed => "closed",
        StreamEnd::Failed(_) => "failed",
        StreamEnd::TooManyEntries(_) => "too_many_entries",
    }
}

/// The message in a line of JSON, as gRPC would bring it: an unknown member is an unknown field.
fn message(line: &str) -> Result<pb::WatchRevocationsResponse, Status> {
    let line: Value = serde_json::from_str(line).expect("JSON");
    if line.get("error").is_some() {
        return Err(Status::unavailable("the feed was interrupted"));
    }
    let event = if line.get("snapshot_begin").is_some() {
        Some(Event::SnapshotBegin(pb::SnapshotBegin::default()))
    } else if line.get("snapshot_complete").is_some() {
        Some(Event::SnapshotComplete(pb::SnapshotComplete {}))
    } else if let Some(heartbeat) = line.get("heartbeat") {
        let age_ms = number(&heartbeat["age_ms"]).try_into().expect("an int32");
        let stream_age_ms = heartbeat.get("stream_age_ms").map(number);
        Some(Event::Heartbeat(pb::Heartbeat { age_ms, stream_age_ms }))
    } else {
        line.get("revocations").map(|batch| {
            let revocations = batch["revocations"].as_array().expect("a list").iter().map(revocation).collect();
            Event::Revocations(pb::RevocationBatch { revocations })
        })
    };
    Ok(pb::WatchRevocationsResponse { event, cursor: line["cursor"].as_str().map(str::to_owned) })
}

fn revocation(value: &Value) -> pb::Revocation {
    use pb::revocation::Ended;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ended = if let Some(id) = value.get("session_id") {
        Some(Ended::SessionId(text(id)))
    } else if let Some(cut) = value.get("user_cut_off") {
        let spared_session_id = cut.get("spared_session_id").map(text);
        Some(Ended::UserCutOff(pb::UserCutOff {
            user_id: text(&cut["user_id"]),
            epoch: number(&cut["epoch"]),
            spared_session_id,
        }))
    } else if let Some(cut) = value.get("project_cut_off") {
        Some(Ended::ProjectCutOff(pb::ProjectCutOff { epoch: number(&cut["epoch"]) }))
    } else if let Some(superseded) = value.get("superseded") {
        Some(Ended::Superseded(pb::SupersededTokens {
            session_id: text(&superseded["session_id"]),
            session_epoch: number(&superseded["session_epoch"]),
        }))
    } else if let Some(withheld) = value.get("withheld") {
        let concerns = [
            withheld.get("session_id").map(|id| Concerns::SessionId(text(id))),
            withheld.get("user_id").map(|id| Concerns::UserId(text(id))),
            withheld.get("signing_key_id").map(|id| Concerns::SigningKeyId(text(id))),
        ];
        let concerns = concerns.into_iter().flatten().next();
        Some(Ended::Withheld(pb::Withheld { kind: text(&withheld["kind"]), concerns }))
    } else {
        value.get("signing_key_id").map(|id| Ended::SigningKeyId(text(id)))
    };
    let retain_seconds = number(&value["retain_seconds"]).try_into().expect("an int32");
    pb::Revocation { ended, retain_seconds, ..pb::Revocation::default() }
}

/// A number, as a number or as text (ProtoJSON).
fn number(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}
