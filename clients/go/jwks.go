package guard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"math/big"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// Keys remain usable for this many times their max-age: once as cached, and once more to survive an outage.
	usableMaxAges = 2
	// The max-age of a response that has none, and its bounds.
	maxAgeDefault = time.Hour
	maxAgeMin     = time.Second
	maxAgeMax     = 24 * time.Hour
)

type keys map[string]*ecdsa.PublicKey

// readKeys returns the keys of a JWK Set (RFC 7517), by their kid. Skips what is not an ES256 signature key (RFC 7518 §6.2).
// Returns nil if the text is no JWK Set.
func readKeys(text []byte) keys {
	var set map[string]json.RawMessage
	var jwks []json.RawMessage
	if json.Unmarshal(text, &set) != nil || json.Unmarshal(set["keys"], &jwks) != nil || jwks == nil {
		return nil
	}
	found := keys{}
	for _, jwk := range jwks {
		// A map, because the names of fields are compared without regard to case.
		var members map[string]any
		if json.Unmarshal(jwk, &members) != nil {
			continue
		}
		if kid, key := readKey(members); key != nil {
			found[kid] = key
		}
	}
	return found
}

func readKey(jwk map[string]any) (string, *ecdsa.PublicKey) {
	is := func(name, expected string) bool { return jwk[name] == expected }
	if !is("kty", "EC") || !is("crv", "P-256") || !(jwk["alg"] == nil || is("alg", "ES256")) || !(jwk["use"] == nil || is("use", "sig")) {
		return "", nil
	}
	kid, _ := jwk["kid"].(string)
	xText, _ := jwk["x"].(string)
	yText, _ := jwk["y"].(string)
	x, y := decode(xText), decode(yText)
	if !isUUID(kid) || len(x) != 32 || len(y) != 32 {
		return "", nil
	}
	key := &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(x), Y: new(big.Int).SetBytes(y)}
	if !key.Curve.IsOnCurve(key.X, key.Y) {
		return "", nil
	}
	return kid, key
}

var maxAgeDirective = regexp.MustCompile(`(?:^|,)\s*max-age=(\d{1,9})\s*(?:,|$)`)

// maxAge returns the max-age of a Cache-Control header (RFC 9111 §5.2.2.1), within the bounds.
func maxAge(cacheControl string) time.Duration {
	age := maxAgeDefault
	if found := maxAgeDirective.FindStringSubmatch(cacheControl); found != nil {
		seconds, _ := strconv.Atoi(found[1])
		age = time.Duration(seconds) * time.Second
	}
	if age < maxAgeMin {
		return maxAgeMin
	}
	if age > maxAgeMax {
		return maxAgeMax
	}
	return age
}

// jwks has the project's public keys, as last read from its JWK Set.
type jwks struct {
	cached atomic.Pointer[cachedKeys]
}

type cachedKeys struct {
	keys keys
	// When the request was sent, on the monotonic clock.
	requestedAt time.Duration
	maxAge      time.Duration
}

func (j *jwks) store(found keys, requestedAt, maxAge time.Duration) {
	j.cached.Store(&cachedKeys{found, requestedAt, maxAge})
}

// isThere returns whether the keys were ever read.
func (j *jwks) isThere() bool { return j.cached.Load() != nil }

func (j *jwks) find(kid string) *ecdsa.PublicKey {
	if cached := j.cached.Load(); cached != nil {
		return cached.keys[kid]
	}
	return nil
}

// age returns the time since the keys were last read, if they ever were.
func (j *jwks) age(elapsed time.Duration) (time.Duration, bool) {
	cached := j.cached.Load()
	if cached == nil {
		return 0, false
	}
	return elapsed - cached.requestedAt, true
}

// isUsable returns whether the keys are recent enough to verify tokens with.
func (j *jwks) isUsable(elapsed time.Duration) bool {
	cached := j.cached.Load()
	return cached != nil && elapsed-cached.requestedAt <= usableMaxAges*cached.maxAge
}
