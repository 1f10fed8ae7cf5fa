"""What PyJWT and joserfc say about each token of the vectors that is good or bad by signature and claims: the same as the guards."""

import json
import sys
from unittest import mock

import joserfc.jws
import joserfc.jwt
import jwt
from joserfc.jwk import KeySet

FILE = json.load(open(sys.argv[1]))
ISSUER = f"{FILE['issuer']}/projects/{FILE['project']}"


def pyjwt(token, now):
    class At(jwt.api_jwt.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(now, tz)

    header = jwt.get_unverified_header(token)
    if str(header.get("typ")).lower() not in ("at+jwt", "application/at+jwt"):
        raise ValueError("typ")
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(FILE["jwks"]).keys}
    with mock.patch.object(jwt.api_jwt, "datetime", At):
        jwt.decode(token, keys[header["kid"]], algorithms=["ES256"], audience=FILE["project"], issuer=ISSUER)


def joserfc_(token, now):
    decoded = joserfc.jwt.decode(token, KeySet.import_key_set(FILE["jwks"]), algorithms=["ES256"])
    if str(decoded.header.get("typ")).lower() not in ("at+jwt", "application/at+jwt") or "kid" not in decoded.header:
        raise ValueError("typ")
    essential = {"iss": {"essential": True, "value": ISSUER}, "aud": {"essential": True, "value": FILE["project"]}}
    joserfc.jwt.JWTClaimsRegistry(now=int(now), **essential).validate(decoded.claims)


def main():
    disagreed = 0
    for name, oracle in (("pyjwt", pyjwt), ("joserfc", joserfc_)):
        agreed = 0
        for case in FILE["tokens"]:
            if case["oracle"] is None:
                continue
            try:
                oracle(case["token"], case["now_ms"] / 1000)
                says = "good"
            except Exception:
                says = "bad"
            if says == case["oracle"]:
                agreed += 1
            else:
                disagreed += 1
                print(f"{name} says {says} of: {case['name']}", file=sys.stderr)
        print(f"{name}: agrees on {agreed} tokens")
    sys.exit(1 if disagreed else 0)


main()
