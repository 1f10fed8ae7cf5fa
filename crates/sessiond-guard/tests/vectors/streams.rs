//! Recorded streams of revocations, line by line, and what a guard decides in between. The steps are described in the README
//! of the vectors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use crate::NOW;
use crate::file;
use crate::keys::Claims;
use crate::keys::ONE;
use crate::keys::TWO;
use crate::keys::claims;

const REVOKED: &str = "SESSION_REVOKED";
const SUPERSEDED: &str = "ACCESS_TOKEN_SUPERSEDED";
const UNAVAILABLE: &str = "VERIFICATION_UNAVAILABLE";

const PHONE: &str = "01990000-0000-7000-8000-000000000001";
const TABLET: &str = "01990000-0000-7000-8000-000000000002";
const LATER: &str = "01990000-0000-7000-8000-000000000003";
const BOB: &str = "01990000-0000-7000-8000-000000000004";
const NEXT: &str = "01990000-0000-7000-8000-000000000005";

/// Tokens of Ada's phone and tablet, of a session that she opened after a cut-off, of Bob under the second key, and of Bob after
/// a cut-off of the project. And of the phone after its session's claims were changed once and twice.
fn tokens() -> Value {
    let base = claims().with("exp", (NOW + 86_400).to_string());
    let of = |claims: Claims| ONE.token(&claims);
    json!({
        "phone": of(base.of("ada", PHONE)),
        "tablet": of(base.of("ada", TABLET)),
        "later": of(base.of("ada", LATER).with("epoch", "[0,4]")),
        "bob": TWO.token(&base.of("bob", BOB).with("epoch", "[0,0]")),
        "next": of(base.of("bob", NEXT).with("epoch", "[1,0]")),
        "phone 1": of(base.of("ada", PHONE).with("session_epoch", "1")),
        "phone 2": of(base.of("ada", PHONE).with("session_epoch", "2")),
    })
}

/// A stream in the making.
struct Stream {
    name: &'static str,
    settings: Value,
    at: i64,
    steps: Vec<Value>,
}

fn stream(name: &'static str) -> Stream {
    Stream { name, settings: json!({}), at: 0, steps: vec![] }
}

const BEGIN: &str = r#"{"snapshot_begin":{"reason":"SNAPSHOT_REASON_NO_CURSOR"}}"#;

fn ended(id: &str) -> String {
    format!(
        r#"{{"session_id":"{id}","user_id":"ada","revoked_at":"2027-01-15T08:00:00Z","reason":"REVOKE_REASON_SIGNED_OUT","retain_seconds":901}}"#
    )
}

fn cut_off(user: &str, epoch: i64, spared: Option<&str>) -> String {
    let spared = spared.map(|id| format!(r#","spared_session_id":"{id}""#)).unwrap_or_default();
    format!(
        r#"{{"user_cut_off":{{"user_id":{user:?},"epoch":"{epoch}"{spared}}},"user_id":{user:?},"reason":"REVOKE_REASON_REVOKED_ALL","retain_seconds":901}}"#
    )
}

fn superseded(id: &str, epoch: i64) -> String {
    format!(
        r#"{{"superseded":{{"session_id":"{id}","session_epoch":"{epoch}"}},"user_id":"ada","reason":"REVOKE_REASON_SUPERSEDED","retain_seconds":901}}"#
    )
}

fn withheld(concerns: &str) -> String {
    format!(
        r#"{{"withheld":{{"kind":"some_future_kind"{concerns}}},"reason":"REVOKE_REASON_REVOKED","retain_seconds":901}}"#
    )
}

fn batch(revocations: &[String]) -> String {
    format!(r#"{{"revocations":{{"revocations":[{}]}}}}"#, revocations.join(","))
}

fn complete(cursor: &str) -> String {
    format!(r#"{{"snapshot_complete":{{}},"cursor":"{cursor}"}}"#)
}

fn beat(age_ms: i64) -> String {
    format!(r#"{{"heartbeat":{{"age_ms":{age_ms}}}}}"#)
}

/// A heartbeat that was sent when the stream was so old.
fn sent_at(stream_age_ms: i64) -> String {
    format!(r#"{{"heartbeat":{{"age_ms":0,"stream_age_ms":"{stream_age_ms}"}}}}"#)
}

impl Stream {
    fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings[name] = value.into();
        self
    }

    /// Only for guards that read lines of JSON.
    fn lines_only(self) -> Self {
        self.set("wire", "ndjson")
    }

    fn at(mut self, at: i64) -> Self {
        self.at = at;
        self
    }

    fn step(mut self, mut step: Value) -> Self {
        step["at"] = self.at.into();
        self.steps.push(step);
        self
    }

    /// The guard opens a stream with this cursor.
    fn open(self, cursor: &str) -> Self {
        self.step(json!({ "open": cursor }))
    }

    fn line(self, line: impl Into<String>) -> Self {
        self.step(json!({ "line": line.into() }))
    }

    fn lines(self, lines: impl IntoIterator<Item = String>) -> Self {
        lines.into_iter().fold(self, Self::line)
    }

    /// A line at which the guard leaves the stream.
    fn last(self, line: impl Into<String>, end: &str) -> Self {
        self.step(json!({ "line": line.into(), "end": end }))
    }

    fn close(self) -> Self {
        self.step(json!({ "close": true }))
    }

    fn answer(self, status: u16, field: &str) -> Self {
        let violation = json!({ "field": field, "description": "expected a cursor from this feed" });
        let details = json!([
            { "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SCHEMA_ERROR", "domain": "sessiond", "metadata": {} },
            { "@type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": [violation] },
        ]);
        let body = json!({ "code": 3, "message": "The request does not fit its schema.", "details": details });
        self.step(json!({ "answer": status, "body": body.to_string() }))
    }

    /// The system's time of day is set to this many milliseconds ahead of what it would be.
    fn clock(self, ahead: i64) -> Self {
        self.step(json!({ "clock_ahead": ahead }))
    }

    fn accepts(self, tokens: &[&str]) -> Self {
        tokens.iter().fold(self, |stream, token| stream.step(json!({ "token": token, "verdict": "accepted" })))
    }

    fn refuses(self, tokens: &[&str], verdict: &str) -> Self {
        tokens.iter().fold(self, |stream, token| stream.step(json!({ "token": token, "verdict": verdict })))
    }

    fn undecided(self, tokens: &[&str], because: &str) -> Self {
        let step = |token: &&str| json!({ "token": token, "verdict": UNAVAILABLE, "because": because });
        tokens.iter().fold(self, |stream, token| stream.step(step(token)))
    }

    fn entries(self, entries: usize) -> Self {
        self.step(json!({ "entries": entries }))
    }

    /// The guard removes what every token has outlived.
    fn forget(self) -> Self {
        self.step(json!({ "forget": true }))
    }

    /// A first stream with a snapshot of these revocations, at 0.
    fn begun(self, revocations: &[String]) -> Self {
        let revocations = (!revocations.is_empty()).then(|| batch(revocations));
        self.open("").line(BEGIN).lines(revocations).line(complete("c1")).line(beat(0))
    }

    fn done(self) -> Value {
        let mut stream = self.settings;
        stream["name"] = self.name.into();
        stream["steps"] = self.steps.into();
        stream
    }
}

pub(crate) fn vectors() -> Value {
    let groups = [snapshots(), kinds(), resumptions(), ages(), clocks(), unknowns(), growth(), modes(), damaged()];
    let mut file = file("streams", groups.into_iter().flatten().map(Stream::done));
    file["tokens"] = tokens();
    file["now_ms"] = (NOW * 1_000).into();
    file["defaults"] = json!({ "max_staleness_ms": 10_000, "max_entries": 1_000_000, "fail_mode": "reject" });
    file
}

fn snapshots() -> Vec<Stream> {
    vec![
        stream("nothing is accepted before a complete snapshot and a heartbeat")
            .undecided(&["phone"], "no_feed")
            .open("")
            .line(BEGIN)
            .line(beat(0))
            .line(batch(&[ended(PHONE)]))
            .undecided(&["phone", "tablet"], "no_feed")
            .line(complete("c1"))
            .refuses(&["phone"], REVOKED)
            .undecided(&["tablet"], "stale_feed")
            .line(beat(0))
            .accepts(&["tablet", "bob"])
            .refuses(&["phone"], REVOKED)
            .entries(1),
        stream("an empty snapshot").begun(&[]).accepts(&["phone", "tablet", "bob"]).entries(0),
        stream("a snapshot in several parts")
            .open("")
            .line(BEGIN)
            .line(batch(&[ended(PHONE)]))
            .line(batch(&[]))
            .line(batch(&[ended(TABLET), cut_off("bob", 1, None)]))
            .line(complete("c1"))
            .line(beat(0))
            .refuses(&["phone", "tablet", "bob"], REVOKED)
            .accepts(&["later"])
            .entries(3),
        stream("heartbeats without a snapshot say nothing").open("").line(beat(0)).undecided(&["phone"], "no_feed"),
        stream("a snapshot that breaks off changes nothing")
            .open("")
            .line(BEGIN)
            .line(batch(&[ended(PHONE)]))
            .close()
            .undecided(&["tablet"], "no_feed")
            .at(100)
            .open("")
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .line(complete("c1"))
            .line(beat(0))
            .accepts(&["phone"])
            .refuses(&["tablet"], REVOKED),
        stream("a second snapshot that breaks off: the first still applies, and its cursor")
            .begun(&[ended(PHONE)])
            .close()
            .at(100)
            .open("c1")
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .line(r#"{"revocations":{"revocations":[]},"cursor":"within"}"#)
            .close()
            .at(200)
            .open("c1")
            .line(beat(0))
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet"]),
        stream("a later snapshot replaces everything")
            .begun(&[ended(PHONE), cut_off("bob", 1, None)])
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .refuses(&["phone", "bob"], REVOKED)
            .accepts(&["tablet"])
            .line(complete("c2"))
            .line(beat(0))
            .accepts(&["phone", "bob"])
            .refuses(&["tablet"], REVOKED)
            .entries(1)
            .close()
            .at(100)
            .open("c2"),
        stream("a snapshot that begins twice")
            .open("")
            .line(BEGIN)
            .line(batch(&[ended(PHONE)]))
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .line(complete("c1"))
            .line(beat(0))
            .accepts(&["phone"])
            .refuses(&["tablet"], REVOKED),
        stream("a snapshot that ends without a beginning")
            .open("")
            .line(complete("c1"))
            .line(beat(0))
            .undecided(&["phone"], "no_feed"),
        stream("a snapshot that comes late: heartbeats within it do not count")
            .begun(&[ended(PHONE)])
            .close()
            .at(1_000)
            .open("c1")
            .line(r#"{"snapshot_begin":{"reason":"SNAPSHOT_REASON_CURSOR_TOO_OLD"}}"#)
            .at(3_500)
            .line(beat(0))
            .at(6_000)
            .line(beat(0))
            .at(8_500)
            .line(beat(0))
            .at(10_001)
            .refuses(&["phone"], REVOKED)
            .undecided(&["tablet"], "stale_feed")
            .line(complete("c2"))
            .refuses(&["phone"], REVOKED)
            .at(10_500)
            .line(beat(0))
            .accepts(&["tablet", "phone"]),
    ]
}

fn kinds() -> Vec<Stream> {
    let early = |spared: &str| cut_off("ada", 4, Some(spared));
    vec![
        stream("a session")
            .begun(&[])
            .accepts(&["phone"])
            .line(batch(&[ended(PHONE)]))
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet", "later", "bob"])
            .line(batch(&[ended(PHONE), ended(PHONE)]))
            .entries(1),
        stream("all of a user's sessions")
            .begun(&[])
            .line(batch(&[cut_off("ada", 4, None)]))
            .refuses(&["phone", "tablet"], REVOKED)
            .accepts(&["later", "bob"]),
        stream("all of a user's sessions but one")
            .begun(&[])
            .line(batch(&[early(TABLET)]))
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet", "later"]),
        stream("the one that is spared ends by itself")
            .begun(&[early(TABLET)])
            .accepts(&["tablet"])
            .line(batch(&[ended(TABLET)]))
            .refuses(&["tablet"], REVOKED),
        stream("a later cut-off spares nobody")
            .begun(&[early(TABLET)])
            .line(batch(&[cut_off("ada", 5, None)]))
            .refuses(&["phone", "tablet", "later"], REVOKED)
            .entries(1),
        stream("an earlier cut-off arrives later")
            .begun(&[cut_off("ada", 5, Some(LATER))])
            .line(batch(&[early(TABLET)]))
            .refuses(&["phone", "tablet"], REVOKED)
            .accepts(&["later"]),
        stream("a cut-off that spares, over one that does not")
            .begun(&[cut_off("ada", 4, None)])
            .line(batch(&[cut_off("ada", 5, Some(TABLET))]))
            .refuses(&["phone", "tablet", "later"], REVOKED),
        stream("a cut-off of an epoch that all have reached")
            .begun(&[cut_off("ada", 3, None), cut_off("bob", 0, None)])
            .accepts(&["phone", "tablet", "bob"]),
        stream("a user's name is compared as it is")
            .begun(&[cut_off("Ada", 9, None), cut_off("ada ", 9, None), cut_off("adä", 9, None), cut_off("bobby", 9, None)])
            .accepts(&["phone", "bob"])
            .entries(4),
        stream("all of the project's sessions")
            .begun(&[])
            .line(batch(&[r#"{"project_cut_off":{"epoch":"1"},"reason":"REVOKE_REASON_REVOKED_ALL","retain_seconds":901}"#.into()]))
            .refuses(&["phone", "tablet", "later", "bob"], REVOKED)
            .accepts(&["next"])
            .line(batch(&[r#"{"project_cut_off":{"epoch":"0"},"retain_seconds":901}"#.into()]))
            .refuses(&["phone"], REVOKED)
            .entries(1),
        stream("a signing key")
            .begun(&[])
            .line(batch(&[format!(r#"{{"signing_key_id":"{}","reason":"REVOKE_REASON_KEY_REVOKED","retain_seconds":901}}"#, TWO.kid)]))
            .refuses(&["bob"], REVOKED)
            .accepts(&["phone", "next"]),
        stream("numbers as text and as numbers, and members without a meaning")
            .begun(&[])
            .line(r#"{"revocations":{"revocations":[{"user_cut_off":{"user_id":"ada","epoch":4,"more":{"x":[1]}},"retain_seconds":"901","reason":"REVOKE_REASON_OF_A_LATER_RELEASE"}]},"more":[null]}"#)
            .refuses(&["phone"], REVOKED)
            .accepts(&["later"]),
        stream("retained for the longest time that was said")
            .begun(&[])
            .line(batch(&[ended(PHONE)]))
            .line(batch(&[ended(PHONE).replace("901", "2")]))
            .line(batch(&[ended(TABLET).replace("901", "2"), cut_off("bob", 1, None).replace("901", "2")]))
            .at(1_000)
            .forget()
            .refuses(&["phone", "tablet", "bob"], REVOKED)
            .entries(3)
            .at(3_000)
            .line(beat(0))
            .forget()
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet", "bob"])
            .entries(1),
        stream("without a retention, an entry is removed at once")
            .begun(&[])
            .at(500)
            .line(batch(&[format!(r#"{{"session_id":"{PHONE}"}}"#), format!(r#"{{"session_id":"{TABLET}","retain_seconds":-5}}"#)]))
            .refuses(&["phone", "tablet"], REVOKED)
            .at(1_500)
            .forget()
            .entries(0),
    ]
}

fn resumptions() -> Vec<Stream> {
    vec![
        stream("a stream that breaks off is resumed")
            .begun(&[])
            .line(r#"{"revocations":{"revocations":[]},"cursor":"c2"}"#)
            .close()
            .accepts(&["phone"])
            .at(200)
            .open("c2")
            .line(batch(&[ended(PHONE)]))
            .line(r#"{"heartbeat":{"age_ms":3},"cursor":"c3"}"#)
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet"])
            .close()
            .at(300)
            .open("c3"),
        stream("the cursor is too old")
            .begun(&[ended(PHONE)])
            .close()
            .at(9_000)
            .open("c1")
            .line(r#"{"snapshot_begin":{"reason":"SNAPSHOT_REASON_CURSOR_TOO_OLD"}}"#)
            .line(batch(&[ended(TABLET)]))
            .refuses(&["phone"], REVOKED)
            .line(complete("c9"))
            .line(beat(0))
            .accepts(&["phone"])
            .refuses(&["tablet"], REVOKED),
        stream("another history: the database was restored, and the project cut off")
            .begun(&[])
            .close()
            .at(200)
            .open("c1")
            .line(r#"{"snapshot_begin":{"reason":"SNAPSHOT_REASON_CURSOR_OF_ANOTHER_DATABASE"}}"#)
            .line(batch(&[r#"{"project_cut_off":{"epoch":"1"},"retain_seconds":901}"#.into()]))
            .line(complete("d1"))
            .line(beat(0))
            .refuses(&["phone", "bob"], REVOKED)
            .accepts(&["next"]),
        stream("the server refuses the cursor")
            .begun(&[ended(PHONE)])
            .close()
            .at(100)
            .open("c1")
            .answer(400, "cursor")
            .at(200)
            .refuses(&["phone"], REVOKED)
            .open("")
            .line(BEGIN)
            .line(complete("c2"))
            .line(beat(0))
            .accepts(&["phone"]),
        stream("a cursor that is empty, and an error at the end")
            .begun(&[])
            .last(
                r#"{"error":{"code":14,"message":"The feed was interrupted; resume from the last cursor.","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"FEED_INTERRUPTED","domain":"sessiond","metadata":{}}]}}"#,
                "error",
            )
            .accepts(&["phone"])
            .at(100)
            .open("c1"),
    ]
}

fn ages() -> Vec<Stream> {
    vec![
        stream("heartbeats that stop")
            .begun(&[ended(TABLET)])
            .at(10_000)
            .accepts(&["phone"])
            .at(10_001)
            .undecided(&["phone"], "stale_feed")
            .refuses(&["tablet"], REVOKED),
        stream("a shorter bound")
            .set("max_staleness_ms", 2_000)
            .begun(&[])
            .at(1_000)
            .line(beat(900))
            .at(2_100)
            .accepts(&["phone"])
            .at(2_101)
            .undecided(&["phone"], "stale_feed"),
        stream("a heartbeat says how old the feed is")
            .begun(&[])
            .at(1_000)
            .line(beat(4_000))
            .at(7_000)
            .accepts(&["phone"])
            .at(7_001)
            .undecided(&["phone"], "stale_feed"),
        stream("a replica whose feed stays old is left")
            .begun(&[])
            .at(1_000)
            .line(beat(6_000))
            .at(2_000)
            .line(beat(7_000))
            .at(3_000)
            .line(beat(8_000))
            .at(4_000)
            .line(beat(8_000))
            .at(5_000)
            .line(beat(8_000))
            .at(6_000)
            .accepts(&["phone"])
            .last(beat(11_000), "stale")
            .at(6_001)
            .undecided(&["phone"], "stale_feed")
            .at(6_100)
            .open("c1"),
        stream("a resumed stream that is left makes the set no older")
            .begun(&[])
            .close()
            .at(1_000)
            .open("c1")
            .line(beat(6_000))
            .at(2_000)
            .line(beat(6_000))
            .at(3_500)
            .line(beat(6_000))
            .at(4_500)
            .line(beat(6_000))
            .at(6_000)
            .last(beat(11_000), "stale")
            .at(7_000)
            .accepts(&["phone"]),
        stream("a later snapshot waits for its heartbeat, and so does its cursor")
            .begun(&[ended(PHONE)])
            .close()
            .at(1_000)
            .open("c1")
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .line(complete("d1"))
            .line(format!(r#"{{"revocations":{{"revocations":[{}]}},"cursor":"d2"}}"#, ended(LATER)))
            .refuses(&["phone", "later"], REVOKED)
            .accepts(&["tablet"])
            .close()
            .at(2_000)
            .open("c1")
            .line(BEGIN)
            .line(batch(&[ended(TABLET)]))
            .line(complete("d1"))
            .line(format!(r#"{{"revocations":{{"revocations":[{}]}},"cursor":"d2"}}"#, ended(LATER)))
            .line(beat(0))
            .refuses(&["tablet", "later"], REVOKED)
            .accepts(&["phone"])
            .close()
            .at(3_000)
            .open("d2"),
        stream("a snapshot that is older than the set waits, and what comes meanwhile counts")
            .begun(&[ended(PHONE)])
            .close()
            .at(1_000)
            .open("c1")
            .line(BEGIN)
            .line(complete("d1"))
            .line(beat(60_000))
            .line(batch(&[ended(TABLET)]))
            .refuses(&["phone", "tablet"], REVOKED)
            .accepts(&["later"])
            .at(2_000)
            .line(beat(1_500))
            .refuses(&["tablet"], REVOKED)
            .accepts(&["phone", "later"])
            .close()
            .at(2_100)
            .open("d1"),
        stream("a snapshot that is older than the last news waits, however old the set is by its heartbeats")
            .begun(&[ended(PHONE)])
            .at(500)
            .line(batch(&[ended(TABLET)]))
            .close()
            .at(1_000)
            .open("c1")
            .line(BEGIN)
            .line(complete("d1"))
            .line(beat(600))
            .refuses(&["phone", "tablet"], REVOKED)
            .line(beat(400))
            .accepts(&["phone", "tablet"])
            .close()
            .at(1_100)
            .open("d1"),
        stream("what comes while a snapshot waits counts up to an entry of an unknown kind")
            .begun(&[ended(PHONE)])
            .close()
            .at(1_000)
            .open("c1")
            .line(BEGIN)
            .line(complete("d1"))
            .line(beat(60_000))
            .last(batch(&[ended(TABLET), r#"{"some_future_kind":{}}"#.into()]), "unknown_revocation")
            .refuses(&["phone", "tablet"], REVOKED)
            .accepts(&["later"]),
        stream("the snapshot of a replica that is left does not count")
            .begun(&[ended(PHONE)])
            .at(1_000)
            .line(beat(6_000))
            .at(4_000)
            .line(BEGIN)
            .line(complete("d1"))
            .at(6_000)
            .last(beat(12_000), "stale")
            .refuses(&["phone"], REVOKED)
            .at(6_100)
            .open("c1"),
        stream("the snapshot of a replica that is left counts if it is more recent than the set")
            .begun(&[ended(PHONE)])
            .close()
            .at(60_000)
            .open("c1")
            .line(beat(50_000))
            .at(62_500)
            .line(beat(50_000))
            .line(BEGIN)
            .line(complete("d1"))
            .at(65_000)
            .last(beat(6_000), "stale")
            .accepts(&["phone"])
            .at(65_100)
            .open("d1"),
        stream("silence for three seconds")
            .begun(&[])
            .at(3_000)
            .line(beat(0))
            .at(6_001)
            .last(beat(0), "silence")
            .at(6_100)
            .open("c1"),
        stream("heartbeats that were held up count as older")
            .begun(&[])
            .at(1_000)
            .line(beat(0))
            .at(3_900)
            .line(beat(0))
            // It left at the earliest 1.9 s after it was due, less the tolerance of 0.1 s.
            .at(3_900 + 8_200)
            .accepts(&["phone"])
            .at(3_900 + 8_201)
            .undecided(&["phone"], "stale_feed"),
        stream("the rest of them arrive at once, and the delay ends")
            .begun(&[])
            .at(1_000)
            .line(beat(0))
            .at(3_900)
            .line(beat(0))
            .line(beat(0))
            .line(beat(0))
            .at(3_900 + 10_000)
            .accepts(&["phone"])
            .at(3_900 + 10_001)
            .undecided(&["phone"], "stale_feed"),
        stream("a stream that opens slowly")
            .begun(&[])
            .close()
            .at(1_000)
            .open("c1")
            .at(3_500)
            .line(beat(0))
            .at(3_500 + 8_600)
            .accepts(&["phone"])
            .at(3_500 + 8_601)
            .undecided(&["phone"], "stale_feed"),
        stream("a proxy passes the stream on more slowly than it comes")
            .begun(&[])
            .at(2_900)
            .line(sent_at(1_000))
            .at(5_800)
            .line(sent_at(2_000))
            .at(8_700)
            .line(sent_at(3_000))
            .at(11_600)
            .line(sent_at(4_000))
            .at(14_000)
            .accepts(&["phone"])
            .at(14_001)
            .undecided(&["phone"], "stale_feed")
            .at(14_500)
            .last(sent_at(5_000), "stale")
            .at(15_000)
            .accepts(&["phone"])
            .at(15_001)
            .undecided(&["phone"], "stale_feed"),
        // Each heartbeat is within the tolerance, and all of them together are not.
        (1..=55)
            .fold(stream("a proxy passes the stream on a little more slowly").begun(&[]), |stream, beat| {
                stream.at(1_100 * beat).line(sent_at(1_000 * beat))
            })
            .at(1_100 * 56)
            .last(sent_at(1_000 * 56), "stale"),
        stream("heartbeats that were held up arrive at once, with the age of their stream")
            .begun(&[])
            .at(2_900)
            .line(sent_at(1_000))
            .line(sent_at(2_000))
            .line(sent_at(2_900))
            .at(2_900 + 10_000)
            .accepts(&["phone"])
            .at(2_900 + 10_001)
            .undecided(&["phone"], "stale_feed"),
        stream("a server that stands still for a moment delays nothing")
            .begun(&[])
            .at(1_000)
            .line(sent_at(1_000))
            .at(3_900)
            .line(sent_at(3_900))
            .at(3_900 + 10_000)
            .accepts(&["phone"])
            .at(3_900 + 10_001)
            .undecided(&["phone"], "stale_feed"),
        stream("a stream that is older than its request, and one that is younger than it can be")
            .begun(&[])
            .at(1_000)
            .line(sent_at(i64::MAX))
            .at(1_000 + 10_000)
            .accepts(&["phone"])
            .at(1_000 + 10_001)
            .undecided(&["phone"], "stale_feed")
            .close()
            .at(20_000)
            .open("c1")
            .at(21_000)
            .line(sent_at(i64::MIN))
            .at(21_000 + 9_000)
            .accepts(&["phone"])
            .at(21_000 + 9_001)
            .undecided(&["phone"], "stale_feed"),
        stream("the loop was blocked for ten seconds")
            .begun(&[])
            .at(1_000)
            .line(beat(0))
            .at(11_001)
            .undecided(&["phone"], "stale_feed")
            .last(batch(&[ended(PHONE)]), "silence")
            .at(11_100)
            .open("c1")
            .line(batch(&[ended(PHONE)]))
            .line(beat(0))
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet"]),
    ]
}

fn clocks() -> Vec<Stream> {
    const HOUR: i64 = 60 * 60 * 1_000;
    vec![
        stream("the clock is set ahead by an hour: the feed seems old until the next heartbeat")
            .begun(&[])
            .at(500)
            .clock(HOUR)
            .undecided(&["phone"], "stale_feed")
            .at(1_000)
            .line(beat(0))
            .accepts(&["phone"])
            .at(1_500)
            .clock(0)
            .accepts(&["phone"])
            .at(2_000)
            .line(beat(0))
            .accepts(&["phone"]),
        stream("the clock is set back by an hour: nothing changes")
            .begun(&[ended(TABLET)])
            .at(500)
            .clock(-HOUR)
            .accepts(&["phone"])
            .refuses(&["tablet"], REVOKED)
            .at(1_000)
            .line(beat(0))
            .at(11_000)
            .accepts(&["phone"])
            .at(11_001)
            .undecided(&["phone"], "stale_feed"),
        stream("set back by an hour, and no heartbeat follows")
            .begun(&[])
            .clock(-HOUR)
            .at(10_000)
            .accepts(&["phone"])
            .at(10_001)
            .undecided(&["phone"], "stale_feed"),
        stream("set ahead by a day and an hour: tokens expire, and no expired token revives")
            .begun(&[])
            .at(500)
            .clock(25 * HOUR)
            .refuses(&["phone"], "ACCESS_TOKEN_EXPIRED")
            .clock(0)
            .accepts(&["phone"]),
    ]
}

fn unknowns() -> Vec<Stream> {
    let ends = |name, line: String| {
        stream(name)
            .begun(&[])
            .last(line, "unknown_revocation")
            .accepts(&["phone"])
            .at(10_001)
            .undecided(&["phone"], "stale_feed")
            .open("c1")
    };
    vec![
        ends(
            "a revocation of an unknown kind",
            batch(&[r#"{"some_future_kind":{"x":1},"user_id":"ada","retain_seconds":901}"#.into()]),
        ),
        ends("a revocation of nothing", batch(&[r#"{"user_id":"ada","retain_seconds":901}"#.into()])),
        ends("a session whose id is malformed", batch(&[ended("phone")])),
        ends("a session whose id is in capitals", batch(&[ended("01990000-0000-7000-8000-00000000000A")])),
        ends("a cut-off of a user without a name", batch(&[cut_off("", 4, None)])),
        ends("a cut-off that spares a malformed session", batch(&[cut_off("ada", 4, Some("tablet"))])),
        ends("a key whose id is malformed", batch(&[r#"{"signing_key_id":"1","retain_seconds":901}"#.into()])),
        ends(
            "an unknown kind with a cursor",
            r#"{"revocations":{"revocations":[{"some_future_kind":{}}]},"cursor":"c2"}"#.into(),
        ),
        stream("what came before an unknown kind in the same batch still counts")
            .begun(&[])
            .last(batch(&[ended(PHONE), r#"{"some_future_kind":{}}"#.into(), ended(TABLET)]), "unknown_revocation")
            .refuses(&["phone"], REVOKED)
            .at(100)
            .open("c1"),
        stream("an unknown kind within a snapshot")
            .open("")
            .line(BEGIN)
            .last(batch(&[ended(PHONE), r#"{"some_future_kind":{}}"#.into()]), "unknown_revocation")
            .undecided(&["phone"], "no_feed")
            .at(100)
            .open(""),
        stream("an unknown event is ignored, and its cursor counts")
            .begun(&[])
            .line(r#"{"some_future_event":{"x":1},"cursor":"c2"}"#)
            .line(r#"{"cursor":"c3"}"#)
            .line("{}")
            .accepts(&["phone"])
            .at(100)
            .line(beat(0))
            .close()
            .at(200)
            .open("c3"),
        stream("a reason for a snapshot that is unknown")
            .open("")
            .line(r#"{"snapshot_begin":{"reason":"SNAPSHOT_REASON_OF_A_LATER_RELEASE"}}"#)
            .line(complete("c1"))
            .line(beat(0))
            .accepts(&["phone"]),
    ]
}

/// What this release has added to the feed.
fn growth() -> Vec<Stream> {
    let session = |id: &str| withheld(&format!(r#","session_id":"{id}""#));
    vec![
        stream("a session's tokens are superseded")
            .begun(&[])
            .line(batch(&[superseded(PHONE, 1)]))
            .refuses(&["phone"], SUPERSEDED)
            .accepts(&["phone 1", "phone 2", "tablet"])
            .line(batch(&[superseded(PHONE, 2)]))
            .refuses(&["phone", "phone 1"], SUPERSEDED)
            .accepts(&["phone 2"])
            .line(batch(&[superseded(PHONE, 1)]))
            .refuses(&["phone 1"], SUPERSEDED)
            .entries(1),
        stream("superseded, and then revoked")
            .begun(&[superseded(PHONE, 2)])
            .line(batch(&[ended(PHONE)]))
            .refuses(&["phone", "phone 2"], REVOKED)
            .entries(2),
        stream("superseded tokens are forgotten")
            .begun(&[])
            .line(batch(&[superseded(PHONE, 1).replace("901", "2")]))
            .at(2_500)
            .line(beat(0))
            .at(3_000)
            .forget()
            .accepts(&["phone"])
            .entries(0),
        stream("something about a session is withheld")
            .begun(&[])
            .line(batch(&[session(PHONE)]))
            .undecided(&["phone", "phone 2"], "withheld")
            .accepts(&["tablet", "bob"])
            .entries(1),
        stream("something about a user is withheld")
            .begun(&[withheld(r#","user_id":"ada""#)])
            .undecided(&["phone", "tablet", "later"], "withheld")
            .accepts(&["bob"]),
        stream("something about a key is withheld")
            .begun(&[withheld(&format!(r#","signing_key_id":"{}""#, TWO.kid))])
            .undecided(&["bob"], "withheld")
            .accepts(&["phone", "next"]),
        stream("something about the project is withheld")
            .begun(&[withheld("")])
            .undecided(&["phone", "bob", "next"], "withheld")
            .entries(1),
        stream("withheld, and revoked: what is known counts")
            .begun(&[withheld(""), ended(PHONE)])
            .refuses(&["phone"], REVOKED)
            .undecided(&["tablet"], "withheld"),
        stream("withheld, and the feed is too old")
            .begun(&[withheld("")])
            .at(10_001)
            .undecided(&["phone"], "stale_feed"),
        stream("withheld for two seconds")
            .begun(&[])
            .line(batch(&[session(PHONE).replace("901", "2")]))
            .at(2_500)
            .line(beat(0))
            .at(3_000)
            .forget()
            .accepts(&["phone"])
            .entries(0),
        stream("withheld, where the guard asks")
            .set("fail_mode", "introspect")
            .begun(&[session(PHONE)])
            .refuses(&["phone"], "introspect"),
        stream("withheld, where the guard accepts")
            .set("fail_mode", "accept_until_expiry")
            .begun(&[session(PHONE)])
            .accepts(&["phone"]),
        stream("a session whose id is malformed is withheld")
            .begun(&[])
            .last(batch(&[session("phone")]), "unknown_revocation")
            .at(100)
            .open("c1"),
        stream("more entries than the guard can hold")
            .set("max_entries", 2)
            .begun(&[ended(PHONE)])
            .line(batch(&[ended(TABLET)]))
            .refuses(&["phone", "tablet"], REVOKED)
            .entries(2)
            .last(batch(&[ended(BOB)]), "too_many_entries")
            .entries(3)
            .refuses(&["bob"], REVOKED)
            .accepts(&["later"])
            .at(10_001)
            .undecided(&["later"], "stale_feed")
            .refuses(&["phone"], REVOKED)
            .open("c1")
            .last(batch(&[]), "too_many_entries"),
        stream("a snapshot with more entries than the guard can hold")
            .set("max_entries", 2)
            .open("")
            .line(BEGIN)
            .line(batch(&[ended(PHONE), ended(TABLET)]))
            .last(batch(&[ended(BOB)]), "too_many_entries")
            .undecided(&["later"], "no_feed")
            .entries(0)
            .at(100)
            .open(""),
    ]
}

fn modes() -> Vec<Stream> {
    vec![
        stream("accepted until expiry, where that was chosen")
            .set("fail_mode", "accept_until_expiry")
            .undecided(&["phone"], "no_feed")
            .begun(&[ended(TABLET)])
            .accepts(&["phone"])
            .at(60_000)
            .accepts(&["phone"])
            .refuses(&["tablet"], REVOKED),
        stream("asked about, where that was chosen")
            .set("fail_mode", "introspect")
            .refuses(&["phone"], "introspect")
            .begun(&[ended(TABLET)])
            .accepts(&["phone"])
            .at(10_001)
            .refuses(&["phone"], "introspect")
            .refuses(&["tablet"], REVOKED),
    ]
}

/// Lines that are not the feed's.
fn damaged() -> Vec<Stream> {
    let ends = |name, line: &str| {
        stream(name)
            .lines_only()
            .begun(&[])
            .last(line, "malformed")
            .accepts(&["phone"])
            .at(10_001)
            .undecided(&["phone"], "stale_feed")
            .open("c1")
    };
    let broken = batch(&[ended(PHONE)]);
    let not_utf8 = STANDARD.encode([b"{\"x\":\"".as_slice(), &[0xff], b"\"}"].concat());
    vec![
        ends("a line that breaks off", &broken[..broken.len() - 3]),
        ends("a page of a proxy", "<html><body>502 Bad Gateway</body></html>"),
        ends("a line that is a list", "[]"),
        ends("a line that is a text", "\"heartbeat\""),
        ends("a line that is null", "null"),
        ends("two messages in a line", r#"{"heartbeat":{"age_ms":0}} {"heartbeat":{"age_ms":0}}"#),
        ends("revocations that are no list", r#"{"revocations":{"revocations":{}}}"#),
        ends("a revocation that is no object", r#"{"revocations":{"revocations":["x"]}}"#),
        ends(
            "an epoch that is no number",
            r#"{"revocations":{"revocations":[{"user_cut_off":{"user_id":"ada","epoch":"x"}}]}}"#,
        ),
        ends(
            "an epoch with a fraction",
            r#"{"revocations":{"revocations":[{"user_cut_off":{"user_id":"ada","epoch":"1.5"}}]}}"#,
        ),
        ends("an age that is no number", r#"{"heartbeat":{"age_ms":"x"}}"#),
        ends("a cursor that is no text", r#"{"heartbeat":{"age_ms":0},"cursor":5}"#),
        ends("an age that 64 bits do not hold", r#"{"heartbeat":{"age_ms":1000000000000000000000000000000}}"#),
        ends("a stream's age that is no number", r#"{"heartbeat":{"age_ms":0,"stream_age_ms":"x"}}"#),
        ends("an age with a plus sign", r#"{"heartbeat":{"age_ms":"+5"}}"#),
        ends("a number that JSON does not have", r#"{"heartbeat":{"age_ms":0},"x":NaN}"#),
        ends("an empty line", ""),
        ends("a byte order mark", "\u{feff}{\"heartbeat\":{\"age_ms\":0}}"),
        stream("a line that ends with a carriage return too")
            .lines_only()
            .begun(&[])
            .at(2_500)
            .line(format!("{}\r", beat(0)))
            .line(format!("{}\r", batch(&[ended(PHONE)])))
            .refuses(&["phone"], REVOKED)
            .accepts(&["tablet"]),
        stream("a member that is null is absent")
            .lines_only()
            .begun(&[])
            .line(r#"{"heartbeat":{"age_ms":null},"revocations":null,"snapshot_begin":null,"cursor":null}"#)
            .line(r#"{"revocations":{"revocations":null}}"#)
            .line(batch(
                &[cut_off("ada", 4, None).replace(r#""epoch":"4""#, r#""epoch":"4","spared_session_id":null"#)],
            ))
            .refuses(&["phone", "tablet"], REVOKED)
            .accepts(&["later", "bob"])
            .close()
            .at(100)
            .open("c1"),
        stream("retained for longer than 32 bits of seconds")
            .lines_only()
            .begun(&[])
            .line(batch(&[
                ended(PHONE).replace("901", "4294967296"),
                ended(TABLET).replace("901", r#""9223372036854775807""#),
            ]))
            .at(2_000)
            .line(beat(0))
            .forget()
            .entries(2)
            .refuses(&["phone", "tablet"], REVOKED),
        stream("a line that is not UTF-8")
            .lines_only()
            .begun(&[])
            .step(json!({ "line_base64": not_utf8, "end": "malformed" }))
            .at(100)
            .open("c1"),
        stream("a stream that breaks off within a line")
            .lines_only()
            .begun(&[])
            .step(json!({ "part": &broken[..broken.len() - 3] }))
            .close()
            .accepts(&["phone"])
            .at(100)
            .open("c1"),
        stream("a line that breaks off, and one after it")
            .lines_only()
            .begun(&[])
            .step(json!({ "part": &broken[..broken.len() - 3] }))
            .last(broken.clone(), "malformed")
            .at(100)
            .open("c1"),
        stream("a line of 100 MB")
            .lines_only()
            .begun(&[])
            .step(json!({ "long_line": 100_000_000, "end": "line_too_long" }))
            .accepts(&["phone"])
            .at(100)
            .open("c1"),
    ]
}
