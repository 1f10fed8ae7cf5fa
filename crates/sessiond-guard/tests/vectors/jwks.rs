//! JWK Sets, and the keys that a guard takes from them.

use serde_json::Value;
use serde_json::json;

use crate::file;
use crate::keys::ONE;
use crate::keys::TWO;
use crate::keys::encode;

pub(crate) fn vectors() -> Value {
    let set = |keys: &[Value]| json!({ "keys": keys }).to_string();
    let taken = |name: &str, body: String, kids: &[&str]| json!({ "name": name, "body": body, "kids": kids });
    let with = |name: &str, value: Value| {
        let mut key = ONE.jwk();
        key[name] = value;
        key
    };
    let without = |name: &str| {
        let mut key = ONE.jwk();
        key.as_object_mut().expect("an object").remove(name);
        key
    };
    let skipped = |name: &str, key: Value| taken(name, set(&[key, TWO.jwk()]), &[TWO.kid]);
    let no_set = |name: &str, body: &str| json!({ "name": name, "body": body, "kids": null });
    let rsa = json!({ "kty": "RSA", "alg": "RS256", "use": "sig", "kid": ONE.kid, "n": "AQAB", "e": "AQAB" });
    let (x, _) = ONE.point();
    file(
        "sets",
        [
            taken("two keys", set(&[ONE.jwk(), TWO.jwk()]), &[ONE.kid, TWO.kid]),
            taken("no keys", set(&[]), &[]),
            taken("without alg", set(&[without("alg")]), &[ONE.kid]),
            taken("without use", set(&[without("use")]), &[ONE.kid]),
            taken("with alg that is null", set(&[with("alg", Value::Null)]), &[ONE.kid]),
            taken("with members that are ignored", set(&[with("x5c", json!(["AA"]))]), &[ONE.kid]),
            skipped("an RSA key", rsa),
            skipped("a text", json!("key")),
            skipped("a null", Value::Null),
            skipped("another key type", with("kty", json!("OKP"))),
            skipped("another curve", with("crv", json!("P-384"))),
            skipped("another algorithm", with("alg", json!("ES384"))),
            skipped("a key for encryption", with("use", json!("enc"))),
            skipped("kid that is no UUID", with("kid", json!("1"))),
            skipped("kid in capitals", with("kid", json!("AAAAAAAA-1111-4111-8111-111111111111"))),
            skipped("no kid", without("kid")),
            skipped("no x", without("x")),
            skipped("a point that is not on the curve", with("x", json!(encode([1; 32])))),
            skipped("x that is too short", with("x", json!("AA"))),
            skipped("x with a zero before it", with("x", json!(encode([[0].as_slice(), &x].concat())))),
            skipped("x with padding", with("x", json!(format!("{}=", encode(x))))),
            skipped("y that is a number", with("y", json!(1))),
            no_set("nothing", ""),
            no_set("a page", "<html></html>"),
            no_set("a list", "[]"),
            no_set("an empty object", "{}"),
            no_set("keys that are an object", r#"{"keys":{}}"#),
            no_set("keys that are null", r#"{"keys":null}"#),
            no_set("broken off", r#"{"keys":["#),
        ],
    )
}
