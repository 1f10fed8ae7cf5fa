//! Tokens, good and bad, each with the verdict of a guard that has the published keys and no revocations.

use jwt_compact::Algorithm as _;
use jwt_compact::AlgorithmSignature as _;
use jwt_compact::alg::Hs256;
use jwt_compact::alg::Hs256Key;
use serde_json::Value;
use serde_json::json;

use crate::ISSUER;
use crate::NOW;
use crate::PROJECT;
use crate::file;
use crate::keys::Claims;
use crate::keys::ONE;
use crate::keys::SESSION;
use crate::keys::STRANGER;
use crate::keys::TWO;
use crate::keys::claims;
use crate::keys::encode;
use crate::keys::other;

const UNPARSABLE: &str = "UNPARSABLE_ACCESS_TOKEN";
const WRONG_PROJECT: &str = "INVALID_PROJECT_FOR_ACCESS_TOKEN";
const EXPIRED: &str = "ACCESS_TOKEN_EXPIRED";
const STEP_UP: &str = "INSUFFICIENT_USER_AUTHENTICATION";

/// What JWT libraries say about a token, by its signature, `iss`, `aud`, `exp` and `typ`.
#[derive(Clone, Copy)]
enum Oracle {
    Good,
    Bad,
    /// It is good or bad by a rule that is ours alone.
    Silent,
}

fn case(name: &str, token: impl Into<String>, verdict: &str, oracle: Oracle) -> Value {
    let oracle = match oracle {
        Oracle::Good => json!("good"),
        Oracle::Bad => json!("bad"),
        Oracle::Silent => Value::Null,
    };
    json!({ "name": name, "token": token.into(), "now_ms": NOW * 1_000, "verdict": verdict, "oracle": oracle })
}

/// A token of ours with claims that are accepted.
fn good(name: &str, claims: &Claims) -> Value {
    accepted(case(name, ONE.token(claims), "accepted", Oracle::Good), "ada", SESSION)
}

fn accepted(mut case: Value, user: &str, session: &str) -> Value {
    case["user"] = user.into();
    case["session"] = session.into();
    case
}

/// A genuine signature over claims that are not accepted. JWT libraries do not look at them.
fn odd(name: &str, claims: &Claims) -> Value {
    case(name, ONE.token(claims), UNPARSABLE, Oracle::Silent)
}

fn bad(name: &str, token: impl Into<String>) -> Value {
    case(name, token, UNPARSABLE, Oracle::Bad)
}

/// A genuine signature under a header that is not accepted.
fn header(name: &str, header: &str) -> Value {
    bad(name, ONE.jwt(header.replace("KID", ONE.kid), claims().json()))
}

fn at(mut case: Value, now_ms: i64) -> Value {
    case["now_ms"] = now_ms.into();
    case
}

fn silent(mut case: Value) -> Value {
    case["oracle"] = Value::Null;
    case
}

pub(crate) fn vectors() -> Value {
    let groups =
        [accepted_tokens(), encodings(), headers(), signatures(), claims_of_others(), malformed_claims(), step_up()];
    file("tokens", groups.into_iter().flatten())
}

fn accepted_tokens() -> Vec<Value> {
    let base = claims();
    let long = "é".repeat(127);
    vec![
        good("a token as sessiond signs it", &base),
        accepted(case("under the second key", TWO.token(&base), "accepted", Oracle::Good), "ada", SESSION),
        good(
            "with the application's own claims",
            &base.with("role", r#""admin""#).with("tags", r#"["a",{"b":[1,2.5,null,true]}]"#),
        ),
        good(
            "with auth_time, acr and amr",
            &base.with("auth_time", "1799999900").with("acr", r#""aal2""#).with("amr", r#"["pwd","otp"]"#),
        ),
        good("with auth_time and acr that are null", &base.with("auth_time", "null").with("acr", "null")),
        {
            let mut case = good("an impersonation", &base.with("act", r#"{"sub":"support","more":1}"#));
            case["impersonator"] = "support".into();
            case
        },
        good("with act that is null", &base.with("act", "null")),
        good("with a session_epoch", &base.with("session_epoch", "4")),
        good("with spaces and line feeds in the claims", &base.with("iat", " \n\t1800000000 ")),
        accepted(
            case(
                "with an escape in the name of a claim",
                ONE.jwt(ONE.header(), base.json().replace("\"sub\"", r#""\u0073ub""#)),
                "accepted",
                Oracle::Good,
            ),
            "ada",
            SESSION,
        ),
        accepted(
            case("with escapes in the user", ONE.token(&base.with("sub", r#""\u0061da""#)), "accepted", Oracle::Good),
            "ada",
            SESSION,
        ),
        accepted(
            case(
                "a surrogate pair in the user",
                ONE.token(&base.with("sub", r#""\ud83d\ude00""#)),
                "accepted",
                Oracle::Good,
            ),
            "😀",
            SESSION,
        ),
        accepted(
            case(
                "a user of 254 bytes in 127 characters",
                ONE.token(&base.with("sub", format!("\"{long}\""))),
                "accepted",
                Oracle::Good,
            ),
            &long,
            SESSION,
        ),
        good("a duplicate of the application's own claim", &base.and("role", r#""a""#).and("role", r#""b""#)),
        good("nested 100 deep", &base.with("deep", format!("{}{}", "[".repeat(100), "]".repeat(100)))),
        good("negative epochs", &base.with("epoch", "[-1,-9007199254740991]")),
        silent(good("a future nbf, which sessiond never issues", &base.with("nbf", "1900000000"))),
        {
            let mut case = good(
                "the actor's id twice, of which the last counts",
                &base.with("act", r#"{"sub":"eve","sub":"bob"}"#),
            );
            case["impersonator"] = "bob".into();
            case
        },
        good(
            "a number of 309 digits in the application's own claim",
            &base.with("role", format!("1{}", "0".repeat(308))),
        ),
        good("the latest exp that there is", &base.with("exp", "9007199254740991")),
        {
            let token = ONE.jwt(ONE.header().replace("at+jwt", "application/at+jwt"), base.json());
            silent(accepted(
                case("typ with the prefix that may be omitted", token, "accepted", Oracle::Good),
                "ada",
                SESSION,
            ))
        },
        {
            let token = ONE.jwt(ONE.header().replace("at+jwt", "AT+JWT"), base.json());
            silent(accepted(case("typ in capitals", token, "accepted", Oracle::Good), "ada", SESSION))
        },
        {
            let token = ONE.jwt(ONE.header().replace('}', r#","jku":"https://evil.example/keys"}"#), base.json());
            accepted(case("a jku, which is ignored", token, "accepted", Oracle::Good), "ada", SESSION)
        },
        {
            let other = r#","cty":1,"jku":{},"jwk":"x","url":null,"x5c":[1]}"#;
            let token = ONE.jwt(ONE.header().replace('}', other), base.json());
            silent(accepted(
                case("other header parameters of any type", token, "accepted", Oracle::Good),
                "ada",
                SESSION,
            ))
        },
        {
            // Some libraries refuse what they do not know.
            let token = ONE.jwt(ONE.header().replace('}', r#","some_parameter":[1]}"#), base.json());
            silent(accepted(case("an unknown header parameter", token, "accepted", Oracle::Good), "ada", SESSION))
        },
        at(good("in the last millisecond", &base), (NOW + 600) * 1_000 - 1),
        silent(at(good("issued in the future", &base), (NOW - 60) * 1_000)),
        {
            // Exactly the longest token: the filler is sized so that its base64 fits.
            let with = |length: usize| base.with("filler", format!("\"{}\"", "x".repeat(length)));
            let length = |claims: &Claims| encode(ONE.header()).len() + encode(claims.json()).len() + 86 + 2;
            let filler = (11_000..12_400).map(with).take_while(|claims| length(claims) <= 16_384).last();
            let filler = filler.map(|claims| ONE.token(&claims));
            accepted(case("as long as a token may be", filler.expect("fits"), "accepted", Oracle::Good), "ada", SESSION)
        },
    ]
}

fn encodings() -> Vec<Value> {
    let token = ONE.token(&claims());
    let (message, signature) = token.rsplit_once('.').expect("a signature");
    let (head, payload) = message.split_once('.').expect("a payload");
    let cut = |bytes: usize| &token[..bytes];
    let mut cases = vec![
        bad("nothing", ""),
        bad("a word", "x"),
        bad("only dots", ".."),
        bad("one part", head),
        bad("two parts", message),
        bad("four parts", format!("{token}.{signature}")),
        bad("five parts, as an encrypted token", format!("{token}.{payload}.{signature}")),
        bad("an empty header", format!(".{payload}.{signature}")),
        bad("an empty payload", format!("{head}..{signature}")),
        bad("an empty signature", format!("{message}.")),
        bad("a server key", format!("sdsk_{}", "a".repeat(64))),
        bad("a refresh token", format!("sdrt_{}", "b".repeat(120))),
        bad("one character less", cut(token.len() - 1)),
        bad("half", cut(token.len() / 2)),
        bad("one character more", format!("{token}A")),
        silent(bad("padding behind the signature", format!("{token}=="))),
        silent(bad("padding behind the header", format!("{head}=.{payload}.{signature}"))),
        silent(bad("a space behind", format!("{token} "))),
        silent(bad(
            "a line feed within the signature",
            format!("{message}.{}\n{}", &signature[..40], &signature[40..]),
        )),
        silent(bad(
            "a line feed within the payload",
            format!("{head}.{}\n{}.{signature}", &payload[..40], &payload[40..]),
        )),
        {
            // The last character of 64 bytes encodes four bits; its other two are zero.
            let last = signature.chars().last().expect("a character");
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let at = alphabet.find(last).expect("of the alphabet");
            let stray = &alphabet[at + 1..at + 2];
            silent(bad(
                "stray bits at the end of the signature",
                format!("{message}.{}{stray}", &signature[..signature.len() - 1]),
            ))
        },
        bad("a token that is too long", {
            let filler = format!("\"{}\"", "x".repeat(12_400));
            ONE.token(&claims().with("filler", filler))
        }),
        bad("100 kB of dots", ".".repeat(100_000)),
        bad("100 kB of a", "a".repeat(100_000)),
    ];
    // By a rule of ours alone.
    let last = cases.len() - 3;
    cases[last]["oracle"] = Value::Null;
    cases
}

fn headers() -> Vec<Value> {
    let payload = claims().json();
    let (x, y) = ONE.point();
    let unsigned = |header: &str, signature: &str| {
        format!("{}.{}.{signature}", encode(header.replace("KID", ONE.kid)), encode(&payload))
    };
    let hmac = |secret: &[u8], kid: &str| {
        let message =
            format!("{}.{}", encode(format!(r#"{{"typ":"at+jwt","alg":"HS256","kid":"{kid}"}}"#)), encode(&payload));
        let signature = Hs256.sign(&Hs256Key::new(secret), message.as_bytes());
        format!("{message}.{}", encode(signature.as_bytes()))
    };
    vec![
        bad("alg none, no signature", unsigned(r#"{"typ":"at+jwt","alg":"none","kid":"KID"}"#, "")),
        bad("alg none, a signature", unsigned(r#"{"typ":"at+jwt","alg":"none","kid":"KID"}"#, "AA")),
        header("alg none, a genuine signature", r#"{"typ":"at+jwt","alg":"none","kid":"KID"}"#),
        header("alg None", r#"{"typ":"at+jwt","alg":"None","kid":"KID"}"#),
        bad("HS256 with the public point as the secret", hmac(&[&[4], x.as_slice(), &y].concat(), ONE.kid)),
        bad("HS256 with the compressed point as the secret", hmac(&ONE.compressed(), ONE.kid)),
        bad("HS256 with the JWK as the secret", hmac(ONE.jwk().to_string().as_bytes(), ONE.kid)),
        bad("HS256 with an empty secret", hmac(b"", ONE.kid)),
        header("RS256 over an ES256 signature", r#"{"typ":"at+jwt","alg":"RS256","kid":"KID"}"#),
        header("ES384 over an ES256 signature", r#"{"typ":"at+jwt","alg":"ES384","kid":"KID"}"#),
        header("ES256K over an ES256 signature", r#"{"typ":"at+jwt","alg":"ES256K","kid":"KID"}"#),
        header("alg in small letters", r#"{"typ":"at+jwt","alg":"es256","kid":"KID"}"#),
        header("alg that is a list", r#"{"typ":"at+jwt","alg":["ES256"],"kid":"KID"}"#),
        header("no alg", r#"{"typ":"at+jwt","kid":"KID"}"#),
        header("typ of an ID token", r#"{"typ":"JWT","alg":"ES256","kid":"KID"}"#),
        header("typ of a logout token", r#"{"typ":"logout+jwt","alg":"ES256","kid":"KID"}"#),
        header("no typ", r#"{"alg":"ES256","kid":"KID"}"#),
        header("typ that is null", r#"{"typ":null,"alg":"ES256","kid":"KID"}"#),
        header("typ that is a number", r#"{"typ":1,"alg":"ES256","kid":"KID"}"#),
        header("typ with a space", r#"{"typ":"at+jwt ","alg":"ES256","kid":"KID"}"#),
        silent(header("no kid", r#"{"typ":"at+jwt","alg":"ES256"}"#)),
        header("kid that is a number", r#"{"typ":"at+jwt","alg":"ES256","kid":1}"#),
        header("kid that is empty", r#"{"typ":"at+jwt","alg":"ES256","kid":""}"#),
        header("kid that is a path", r#"{"typ":"at+jwt","alg":"ES256","kid":"../../etc/passwd"}"#),
        bad("kid without hyphens", ONE.jwt(ONE.header().replace("-4111-", "4111"), &payload)),
        {
            let upper = "AAAAAAAA-1111-4111-8111-111111111111";
            bad("kid in capitals", ONE.jwt(ONE.header().replace(ONE.kid, upper), &payload))
        },
        bad("kid of the other key", ONE.jwt(TWO.header(), &payload)),
        bad("an unknown kid", STRANGER.token(&claims())),
        bad("an unknown key under a known kid", STRANGER.jwt(ONE.header(), &payload)),
        bad("a jwk in the header", {
            let jwk = STRANGER.jwk().to_string();
            STRANGER.jwt(ONE.header().replace('}', &format!(",\"jwk\":{jwk}}}")), &payload)
        }),
        header("crit", r#"{"typ":"at+jwt","alg":"ES256","kid":"KID","crit":["exp"],"exp":1}"#),
        header("crit with b64", r#"{"typ":"at+jwt","alg":"ES256","kid":"KID","crit":["b64"],"b64":false}"#),
        silent(header("crit that is empty", r#"{"typ":"at+jwt","alg":"ES256","kid":"KID","crit":[]}"#)),
        silent(header("kid twice", r#"{"typ":"at+jwt","alg":"ES256","kid":"x","kid":"KID"}"#)),
        silent(header("alg twice", r#"{"typ":"at+jwt","alg":"none","alg":"ES256","kid":"KID"}"#)),
        header("a header that is a list", r#"["at+jwt","ES256","KID"]"#),
        header("a header that is no JSON", r#"{typ:"at+jwt",alg:"ES256",kid:"KID"}"#),
        silent(header(
            "a byte order mark before the header",
            "\u{feff}{\"typ\":\"at+jwt\",\"alg\":\"ES256\",\"kid\":\"KID\"}",
        )),
    ]
}

fn signatures() -> Vec<Value> {
    let message = format!("{}.{}", encode(ONE.header()), encode(claims().json()));
    let signature = ONE.sign(&message);
    let with = |bytes: &[u8]| format!("{message}.{}", encode(bytes));
    let (r, s) = signature.split_at(32);
    let zero = [0_u8; 32];
    let eve = format!("{}.{}", encode(ONE.header()), encode(claims().with("sub", "\"eve\"").json()));
    vec![
        silent(bad("the other signature: n - s", with(&other(signature)))),
        bad("a signature of zeros", with(&[0; 64])),
        bad("r of zero", with(&[&zero, s].concat())),
        bad("s of zero", with(&[r, &zero].concat())),
        bad("a signature of ones", with(&[0xff; 64])),
        bad("r and s exchanged", with(&[s, r].concat())),
        bad("one bit flipped", {
            let mut flipped = signature;
            flipped[0] ^= 1;
            with(&flipped)
        }),
        bad("a signature in DER", with(&der(r, s))),
        bad("63 bytes", with(&signature[..63])),
        bad("65 bytes", with(&[signature.as_slice(), &[0]].concat())),
        bad("96 bytes, as of P-384", with(&[signature.as_slice(), &zero].concat())),
        bad("the signature of another token", format!("{eve}.{}", encode(signature))),
    ]
}

/// The signature in the encoding of X.509 (RFC 3279 §2.2.3).
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| {
        let sign: &[u8] = if bytes[0] >= 0x80 { &[0] } else { &[] };
        let body = [sign, bytes].concat();
        [&[2, u8::try_from(body.len()).expect("short")], body.as_slice()].concat()
    };
    let body = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(body.len()).expect("short")], body.as_slice()].concat()
}

fn claims_of_others() -> Vec<Value> {
    let base = claims();
    let foreign = |name: &str, token: String, actual: &str| {
        let mut case = case(name, token, WRONG_PROJECT, Oracle::Bad);
        case["expected_project"] = PROJECT.into();
        case["actual_project"] = actual.into();
        case
    };
    let other = base.with("aud", r#""other""#).with("project_id", r#""other""#).with("client_id", r#""other""#);
    let other = other.with("iss", format!("\"{ISSUER}/projects/other\""));
    let expired = |case: Value, at_ms: i64, expired_ms: i64| {
        let mut case = at(case, at_ms);
        case["verdict"] = EXPIRED.into();
        case["oracle"] = "bad".into();
        case["expired_at_ms"] = expired_ms.into();
        case
    };
    let bad_claims = |name: &str, claims: &Claims| bad(name, ONE.token(claims));
    vec![
        bad_claims("another issuer", &base.with("iss", r#""https://evil.example/projects/demo""#)),
        bad_claims("the issuer without the project", &base.with("iss", format!("\"{ISSUER}\""))),
        bad_claims("the issuer with a slash behind", &base.with("iss", format!("\"{ISSUER}/projects/demo/\""))),
        bad_claims("the issuer in capitals", &base.with("iss", r#""HTTPS://SESSIONS.EXAMPLE.ORG/projects/demo""#)),
        foreign("another project under our key", ONE.token(&other), "other"),
        foreign("another aud", ONE.token(&base.with("aud", r#""other""#)), "other"),
        foreign("another aud that is no project", ONE.token(&base.with("aud", r#""a/b""#)), "a/b"),
        silent(foreign("another project_id", ONE.token(&base.with("project_id", r#""other""#)), "demo")),
        foreign("another project under its own key", STRANGER.token(&other), "other"),
        bad_claims("aud that is a list of others", &base.with("aud", r#"["other"]"#)),
        silent(bad_claims("aud that is a list with us", &base.with("aud", r#"["demo"]"#))),
        bad("an unknown key, and an aud that is no project", STRANGER.token(&base.with("aud", r#""a/b""#))),
        bad("an unknown key, and no claims", STRANGER.jwt(STRANGER.header(), "{}")),
        expired(good("at the moment of exp", &base), (NOW + 600) * 1_000, (NOW + 600) * 1_000),
        expired(good("an hour after exp", &base), (NOW + 4_200) * 1_000, (NOW + 600) * 1_000),
        expired(good("exp of zero", &base.with("exp", "0")), NOW * 1_000, 0),
        expired(good("exp before 1970", &base.with("exp", "-1")), NOW * 1_000, -1_000),
    ]
}

fn malformed_claims() -> Vec<Value> {
    let base = claims();
    let mut cases = vec![];
    for name in
        ["iss", "sub", "aud", "client_id", "iat", "exp", "jti", "sid", "epoch", "project_id", "refresh_token_id"]
    {
        cases.push(odd(&format!("no {name}"), &base.without(name)));
        cases.push(odd(&format!("{name} that is null"), &base.with(name, "null")));
        cases.push(odd(&format!("{name} that is an object"), &base.with(name, "{}")));
    }
    for name in ["sub", "exp", "epoch"] {
        let value = match name {
            "sub" => "\"eve\"",
            "exp" => "1900000000",
            _ => "[9,9]",
        };
        cases.push(odd(&format!("{name} twice"), &base.and(name, value)));
    }
    cases.push(silent(bad(
        "sub twice, once with an escape",
        ONE.jwt(ONE.header(), base.and("sub", "\"eve\"").json().replacen("\"sub\"", r#""\u0073ub""#, 1)),
    )));
    let own: [(&str, &'static str, String); 37] = [
        ("sub that is empty", "sub", r#""""#.into()),
        ("sub of the caller", "sub", r#""me""#.into()),
        ("sub with a line feed", "sub", r#""a\nb""#.into()),
        ("sub with a delete character", "sub", r#""a\u007fb""#.into()),
        ("sub with a C1 control character", "sub", r#""a\u0085b""#.into()),
        ("sub of 256 bytes", "sub", format!("\"{}\"", "x".repeat(256))),
        ("sub of 256 bytes in 128 characters", "sub", format!("\"{}\"", "é".repeat(128))),
        ("sub that is a number", "sub", "1".into()),
        ("sub with half of a surrogate pair", "sub", r#""\ud83d""#.into()),
        ("sub with the other half", "sub", r#""\ude00x""#.into()),
        ("half of a surrogate pair in another claim", "role", r#"["\ud83d"]"#.into()),
        ("sid in capitals", "sid", r#""01990000-0000-7000-8000-00000000000A""#.into()),
        ("sid without hyphens", "sid", r#""01990000000070008000000000000001""#.into()),
        ("sid that is no UUID", "sid", r#""01990000-0000-7000-8000-00000000000g""#.into()),
        ("sid with hyphens in other places", "sid", r#""019900000-000-7000-8000-000000000001""#.into()),
        ("sid in braces", "sid", r#""{1990000-0000-7000-8000-000000000001}""#.into()),
        ("iat with a fraction", "iat", "1800000000.5".into()),
        ("iat in text", "iat", r#""1800000000""#.into()),
        ("exp with a fraction of zero", "exp", "1800000600.0".into()),
        ("exp with an exponent", "exp", "18000006e2".into()),
        ("exp in text", "exp", r#""1800000600""#.into()),
        ("exp beyond 64 bits", "exp", "9223372036854775808".into()),
        ("exp that is true", "exp", "true".into()),
        ("exp that JavaScript cannot represent", "exp", "9007199254740992".into()),
        ("epoch that JavaScript cannot represent", "epoch", "[0,9007199254740993]".into()),
        ("epoch of the least 64 bits", "epoch", "[-9223372036854775808,3]".into()),
        ("session_epoch that JavaScript cannot represent", "session_epoch", "9007199254740992".into()),
        ("epoch of one number", "epoch", "[0]".into()),
        ("epoch of three numbers", "epoch", "[0,3,0]".into()),
        ("epoch in text", "epoch", r#"["0","3"]"#.into()),
        ("epoch with a fraction", "epoch", "[0,3.0]".into()),
        ("auth_time in text", "auth_time", r#""1799999900""#.into()),
        ("auth_time with a fraction", "auth_time", "1799999900.5".into()),
        ("acr that is a number", "acr", "2".into()),
        ("amr in text", "amr", r#""pwd""#.into()),
        ("amr that is null", "amr", "null".into()),
        ("amr of numbers", "amr", "[1]".into()),
    ];
    cases.extend(own.into_iter().map(|(name, claim, value)| odd(name, &base.with(claim, value))));
    cases.extend([
        odd("act without sub", &base.with("act", r#"{"iss":"x"}"#)),
        odd("act in text", &base.with("act", r#""support""#)),
        odd("act with a sub that is a number", &base.with("act", r#"{"sub":1}"#)),
        odd("act that is a list", &base.with("act", r#"["bob"]"#)),
        odd("act with SUB", &base.with("act", r#"{"SUB":"bob"}"#)),
        odd("act with half of a surrogate pair", &base.with("act", r#"{"sub":"bob","x":"\ud83d"}"#)),
        odd("act with a number that is too large", &base.with("act", r#"{"sub":"bob","x":1e400}"#)),
        odd("a number that is too large", &base.with("role", "[-1e400]")),
        odd("a number that is too large, and the name again", &base.with("role", "1e400").and("role", "1")),
        odd("half of a surrogate pair, and the name again", &base.with("role", r#""\ud83d""#).and("role", "1")),
        odd("a number of 400 digits", &base.with("role", "9".repeat(400))),
        silent(bad(
            "a number that is too large in the header",
            ONE.jwt(ONE.header().replace('}', r#","x":1e400}"#), base.json()),
        )),
        silent(bad(
            "typ with a letter that is an i in small letters only",
            ONE.jwt(ONE.header().replace("at+jwt", "appl\u{130}cation/at+jwt"), base.json()),
        )),
        odd("nested 200 deep", &base.with("deep", format!("{}{}", "[".repeat(200), "]".repeat(200)))),
    ]);
    let raw = |name: &str, payload: &[u8]| silent(bad(name, ONE.jwt(ONE.header(), payload)));
    let json = base.json();
    cases.extend([
        raw("claims that are a list", format!("[{json}]").as_bytes()),
        raw("claims that are null", b"null"),
        raw("claims that are no JSON", b"ada"),
        raw("something behind the claims", format!("{json}x").as_bytes()),
        raw("the claims twice", format!("{json}{json}").as_bytes()),
        raw("a comma too many", json.replace('}', ",}").as_bytes()),
        raw("a comment", json.replace("{", "{/* */").as_bytes()),
        raw("names without quotes", json.replace("\"sub\"", "sub").as_bytes()),
        raw("single quotes", json.replace('"', "'").as_bytes()),
        raw("a number that is not one", json.replace('}', ",\"x\":NaN}").as_bytes()),
        raw("a number with a plus", json.replace('}', ",\"x\":+1}").as_bytes()),
        raw("a number with a zero before", json.replace('}', ",\"x\":01}").as_bytes()),
        raw("a line feed within a text", json.replace("ada", "a\nb").as_bytes()),
        raw("an unknown escape", json.replace("ada", r"a\x64a").as_bytes()),
        raw("a byte order mark before the claims", format!("\u{feff}{json}").as_bytes()),
        raw("a zero byte behind the claims", format!("{json}\0").as_bytes()),
        raw(
            "claims that are not UTF-8",
            &json.bytes().map(|byte| if byte == b'd' { 0xff } else { byte }).collect::<Vec<u8>>(),
        ),
        raw("claims in UTF-16", &json.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()),
    ]);
    cases
}

fn step_up() -> Vec<Value> {
    let base = claims().with("auth_time", (NOW - 300).to_string()).with("acr", r#""aal2""#);
    let require = |name: &str, claims: &Claims, acr: &[&str], max_age: Option<i64>, is_met: bool| {
        let mut case = good(name, claims);
        case["require"] = json!({ "acr": acr, "max_age": max_age });
        if !is_met {
            case["verdict"] = STEP_UP.into();
            case["oracle"] = Value::Null;
        }
        case
    };
    let expired = {
        let mut case =
            at(require("a requirement on an expired token", &base, &["aal3"], None, false), (NOW + 600) * 1_000);
        case["verdict"] = EXPIRED.into();
        case["expired_at_ms"] = ((NOW + 600) * 1_000).into();
        case
    };
    vec![
        require("no requirement", &base, &[], None, true),
        require("acr is the one that is asked for", &base, &["aal2"], None, true),
        require("acr is one of those that are asked for", &base, &["aal3", "aal2"], None, true),
        require("acr is another one", &base, &["aal3"], None, false),
        require("acr in capitals", &base, &["AAL2"], None, false),
        require("acr that begins like it", &base, &["aal"], None, false),
        require("acr is asked for, and there is none", &base.without("acr"), &["aal2"], None, false),
        require("one second younger than max_age", &base, &[], Some(301), true),
        require("exactly max_age old", &base, &[], Some(300), false),
        require("max_age is asked for, and there is no auth_time", &base.without("auth_time"), &[], Some(300), false),
        require("auth_time in the future", &base.with("auth_time", (NOW + 60).to_string()), &[], Some(1), true),
        require("acr is met and max_age is not", &base, &["aal2"], Some(60), false),
        require("max_age is met and acr is not", &base, &["aal3"], Some(600), false),
        require("both are met", &base, &["aal2"], Some(600), true),
        expired,
    ]
}
