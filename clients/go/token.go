package guard

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// The longest access token that is parsed, in bytes.
	tokenBytesMax = 16 * 1024
	// How deeply the JSON of a token may be nested.
	depthMax = 127
	// How many verified tokens are cached, in two generations.
	tokensMax = 16_384
)

// lowSMax is the largest low s of P-256: half of the order.
var lowSMax, _ = new(big.Int).SetString("7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a8", 16)

// isUUID returns whether a text is an id in its canonical form: other spellings are refused, so that ids can be compared as
// text.
func isUUID(text string) bool {
	_, ok := parseUUID(text)
	return ok
}

// parseUUID returns the bytes of an id in its canonical form.
func parseUUID(text string) (id [16]byte, ok bool) {
	if len(text) != 36 {
		return id, false
	}
	at := 0
	for i := 0; i < 36; {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if text[i] != '-' {
				return id, false
			}
			i++
			continue
		}
		high, low := digit(text[i]), digit(text[i+1])
		if high > 15 || low > 15 {
			return id, false
		}
		id[at] = high<<4 | low
		at++
		i += 2
	}
	return id, true
}

func digit(character byte) byte {
	switch {
	case '0' <= character && character <= '9':
		return character - '0'
	case 'a' <= character && character <= 'f':
		return character - 'a' + 10
	default:
		return 255
	}
}

// isProject returns whether a text is the name of a project.
func isProject(text string) bool {
	allowed := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
	}
	return 1 <= len(text) && len(text) <= 64 && strings.IndexFunc(text, func(r rune) bool { return !allowed(r) }) < 0
}

// isUser returns whether a text is the id of a user: 1 to 255 bytes without control characters, and not "me".
func isUser(text string) bool {
	return 1 <= len(text) && len(text) <= 255 && text != "me" && strings.IndexFunc(text, unicode.IsControl) < 0
}

var encoding = base64.RawURLEncoding.Strict()

// decode decodes base64url without padding. Returns nil for any other spelling, so that every value has one.
func decode(text string) []byte {
	// The library skips line feeds.
	if strings.ContainsAny(text, "\r\n") {
		return nil
	}
	decoded, err := encoding.DecodeString(text)
	if err != nil {
		return nil
	}
	return decoded
}

// Principal is the signed-in user of an accepted access token.
type Principal struct {
	// UserID as the application chose it.
	UserID    string
	SessionID string
	ProjectID string
	// ImpersonatorID names who acts as the user, in an impersonation.
	ImpersonatorID string
	// ACR is the authentication context class; empty if it is not known.
	ACR string
	// Claims, each as JSON. Those of the application are among them.
	Claims map[string]json.RawMessage

	kid     string
	session [16]byte
	// In seconds since the Unix epoch.
	expiresAt    int64
	authTime     int64
	hasAuthTime  bool
	epoch        [2]int64
	sessionEpoch int64
	issuer       string
	audience     string
}

// ExpiresAt is when the token expires. Half-open: at this moment exactly, it has expired.
func (principal *Principal) ExpiresAt() time.Time { return time.Unix(principal.expiresAt, 0) }

// isExpired compares in seconds, because any exp of 64 bits is accepted.
func (principal *Principal) isExpired(now time.Duration) bool {
	return principal.expiresAt <= int64(now/time.Second)
}

// verified is the result of a verification: one of a principal, a refusal, unknownKey and noKeys.
type verified struct {
	principal  *Principal
	refusal    *Refusal
	unknownKey bool
	noKeys     bool
}

// tokenVerifier verifies tokens: everything but the time and the revocations. Caches those that verified.
type tokenVerifier struct {
	project string
	// The iss of the project's tokens.
	issuer string

	mutex sync.RWMutex
	// Tokens that were used recently, and those used before. A token that is used moves to the recent ones.
	recent, before map[string]*Principal
}

func newTokenVerifier(project, issuer string) *tokenVerifier {
	return &tokenVerifier{project: project, issuer: issuer, recent: map[string]*Principal{}}
}

func (verifier *tokenVerifier) verify(text string, published *jwks) verified {
	if known := verifier.find(text); known != nil {
		// Its key may have left the set since.
		if published.find(known.kid) == nil {
			return verified{unknownKey: true}
		}
		return verified{principal: known}
	}
	if len(text) > tokenBytesMax {
		return verified{refusal: unparsable}
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return verified{refusal: unparsable}
	}
	kid := readHeader(parts[0])
	if kid == "" {
		return verified{refusal: unparsable}
	}
	if !published.isThere() {
		return verified{noKeys: true}
	}
	key := published.find(kid)
	if key == nil {
		// A token of another project, whose keys are never cached here.
		foreign := readClaims(parts[1])
		if foreign != nil && verifier.isForeign(foreign) && isProject(foreign.audience) {
			return verified{refusal: wrongProject(verifier.project, foreign.audience)}
		}
		return verified{unknownKey: true}
	}
	if !isSigned(text[:strings.LastIndexByte(text, '.')], parts[2], key) {
		return verified{refusal: unparsable}
	}
	read := verifier.read(parts[1], kid)
	if read.principal != nil {
		verifier.remember(text, read.principal)
	}
	return read
}

// parseUnverified reads a token whose signature sessiond has checked.
func (verifier *tokenVerifier) parseUnverified(text string) verified {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return verified{refusal: unparsable}
	}
	kid := readHeader(parts[0])
	if kid == "" {
		return verified{refusal: unparsable}
	}
	return verifier.read(parts[1], kid)
}

func (verifier *tokenVerifier) read(payload, kid string) verified {
	principal := readClaims(payload)
	if principal == nil {
		return verified{refusal: unparsable}
	}
	if verifier.isForeign(principal) {
		return verified{refusal: wrongProject(verifier.project, principal.audience)}
	}
	session, isID := parseUUID(principal.SessionID)
	if principal.issuer != verifier.issuer || !isUser(principal.UserID) || !isID {
		return verified{refusal: unparsable}
	}
	principal.kid, principal.session = kid, session
	return verified{principal: principal}
}

func (verifier *tokenVerifier) isForeign(principal *Principal) bool {
	return principal.audience != verifier.project || principal.ProjectID != verifier.project
}

func (verifier *tokenVerifier) find(text string) *Principal {
	verifier.mutex.RLock()
	known, isRecent := verifier.recent[text]
	if !isRecent {
		known = verifier.before[text]
	}
	verifier.mutex.RUnlock()
	if known != nil && !isRecent {
		verifier.remember(text, known)
	}
	return known
}

func (verifier *tokenVerifier) remember(text string, principal *Principal) {
	verifier.mutex.Lock()
	defer verifier.mutex.Unlock()
	if len(verifier.recent) >= tokensMax/2 {
		verifier.before, verifier.recent = verifier.recent, map[string]*Principal{}
	}
	// A copy, because the text may be a part of a larger one.
	verifier.recent[strings.Clone(text)] = principal
}

// readHeader returns the kid of a header with ES256, typ at+jwt, a well-formed kid and no crit; empty for any other.
func readHeader(encoded string) string {
	header := readObject(encoded)
	text := func(name string) string {
		value, _ := textOf(header[name])
		return value
	}
	// RFC 7515 §4.1.9: application/ may be omitted. §4.1.11: extensions in crit must be supported, and none is.
	typ := text("typ")
	kid := text("kid")
	isTyped := strings.EqualFold(typ, "at+jwt") || strings.EqualFold(typ, "application/at+jwt")
	if !isTyped || text("alg") != "ES256" || !isNull(header["crit"]) || !isUUID(kid) {
		return ""
	}
	return kid
}

// isSigned returns whether the signature is good, and its s low: of (r, s) and (r, n - s), only one is accepted.
func isSigned(message, signature string, key *ecdsa.PublicKey) bool {
	// Checked first, so that a long text is never decoded.
	if len(signature) != 86 {
		return false
	}
	raw := decode(signature)
	if len(raw) != 64 {
		return false
	}
	r, s := new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])
	digest := sha256.Sum256([]byte(message))
	return s.Cmp(lowSMax) <= 0 && ecdsa.Verify(key, digest[:], r, s)
}

// readClaims returns the claims of a payload; nil if one of ours is missing, there twice, or of another type.
func readClaims(payload string) *Principal {
	claims := readObject(payload)
	if claims == nil {
		return nil
	}
	isGood := true
	text := func(name string) string {
		value, ok := textOf(claims[name])
		isGood = isGood && ok
		return value
	}
	integer := func(raw json.RawMessage) int64 {
		value, ok := integerOf(raw)
		isGood = isGood && ok
		return value
	}
	principal := &Principal{
		issuer: text("iss"), UserID: text("sub"), audience: text("aud"), SessionID: text("sid"), ProjectID: text("project_id"),
		expiresAt: integer(claims["exp"]), Claims: claims,
	}
	for _, name := range []string{"client_id", "jti", "refresh_token_id"} {
		text(name)
	}
	integer(claims["iat"])
	var epoch, amr []json.RawMessage
	if json.Unmarshal(claims["epoch"], &epoch) != nil || len(epoch) != 2 {
		return nil
	}
	principal.epoch = [2]int64{integer(epoch[0]), integer(epoch[1])}
	if !isNull(claims["auth_time"]) {
		principal.authTime, principal.hasAuthTime = integer(claims["auth_time"]), true
	}
	if !isNull(claims["acr"]) {
		principal.ACR = text("acr")
	}
	if raw, ok := claims["session_epoch"]; ok {
		principal.sessionEpoch = integer(raw)
	}
	if raw, ok := claims["amr"]; ok {
		if json.Unmarshal(raw, &amr) != nil || amr == nil {
			return nil
		}
		for _, method := range amr {
			_, ok := textOf(method)
			isGood = isGood && ok
		}
	}
	if raw := claims["act"]; !isNull(raw) {
		// A map, because the names of fields are compared without regard to case.
		var act map[string]json.RawMessage
		if json.Unmarshal(raw, &act) != nil {
			return nil
		}
		actor, ok := textOf(act["sub"])
		principal.ImpersonatorID, isGood = actor, isGood && ok
	}
	if !isGood {
		return nil
	}
	return principal
}

// single has the names of which there may be only one. Of the application's own claims the last one counts, as everywhere.
var single = func() map[string]bool {
	names := map[string]bool{}
	for _, name := range strings.Fields("typ alg kid crit iss sub aud client_id iat exp jti sid epoch project_id refresh_token_id " +
		"auth_time acr amr act session_epoch") {
		names[name] = true
	}
	return names
}()

// readObject returns the members of a JSON object in base64url, each as JSON: a decoded object keeps the last of two members
// with one name, and forgets how a number was written. Returns nil if it is no object, or nested too deeply.
func readObject(encoded string) map[string]json.RawMessage {
	text := decode(encoded)
	if text == nil || !utf8.Valid(text) || !isShallow(text) {
		return nil
	}
	// Fails for a number that is too large, too.
	var whole interface{}
	if json.Unmarshal(text, &whole) != nil {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return nil
	}
	members := map[string]json.RawMessage{}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil
		}
		key, isText := name.(string)
		var raw json.RawMessage
		if !isText || decoder.Decode(&raw) != nil {
			return nil
		}
		if _, isThere := members[key]; isThere && single[key] {
			return nil
		}
		members[key] = raw
	}
	return members
}

// isShallow returns whether a JSON text is not nested too deeply, and no text in it has half of a surrogate pair: that is not
// Unicode, and the library would replace it.
func isShallow(text []byte) bool {
	depth, isText := 0, false
	for at := 0; at < len(text); at++ {
		switch character := text[at]; {
		case isText && character == '\\':
			unit := escape(text[at:])
			if 0xDC00 <= unit && unit < 0xE000 {
				return false
			}
			if 0xD800 <= unit && unit < 0xDC00 {
				at += 6
				if next := escape(text[min(at, len(text)):]); next < 0xDC00 || 0xE000 <= next {
					return false
				}
			}
			at++
		case character == '"':
			isText = !isText
		case isText:
		case character == '{' || character == '[':
			depth++
			if depth > depthMax {
				return false
			}
		case character == '}' || character == ']':
			depth--
		}
	}
	return true
}

// escape returns the code unit of an escape \uXXXX at the beginning of a text; 0 if there is none.
func escape(text []byte) uint64 {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	unit, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return 0
	}
	return unit
}

func min(one, other int) int {
	if one < other {
		return one
	}
	return other
}

// isNull returns whether a member is absent or null.
func isNull(raw json.RawMessage) bool { return raw == nil || string(raw) == "null" }

// textOf returns the text in valid JSON, and whether it is one.
func textOf(raw json.RawMessage) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	var text string
	isText := json.Unmarshal(raw, &text) == nil
	return text, isText
}

// integerOf returns the integer in a JSON text, and whether it is one that is exact in every language, without fraction and
// exponent.
func integerOf(raw json.RawMessage) (int64, bool) {
	value, err := strconv.ParseInt(string(raw), 10, 64)
	isExact := -1<<53 < value && value < 1<<53
	return value, err == nil && isExact && string(raw) != "-0"
}
