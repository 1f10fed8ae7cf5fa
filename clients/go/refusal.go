package guard

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Reason says why a request is refused: the reasons of sessiond.
type Reason string

// The reasons.
const (
	CredentialsMissing             Reason = "CREDENTIALS_MISSING"
	UnparsableAccessToken          Reason = "UNPARSABLE_ACCESS_TOKEN"
	AccessTokenExpired             Reason = "ACCESS_TOKEN_EXPIRED"
	WrongProject                   Reason = "INVALID_PROJECT_FOR_ACCESS_TOKEN"
	SessionRevoked                 Reason = "SESSION_REVOKED"
	AccessTokenSuperseded          Reason = "ACCESS_TOKEN_SUPERSEDED"
	InsufficientUserAuthentication Reason = "INSUFFICIENT_USER_AUTHENTICATION"
	VerificationUnavailable        Reason = "VERIFICATION_UNAVAILABLE"
)

var messages = map[Reason]string{
	CredentialsMissing:             "No credential was presented.",
	UnparsableAccessToken:          "The access token is not one of ours.",
	AccessTokenExpired:             "The access token has expired.",
	WrongProject:                   "The access token is of another project.",
	SessionRevoked:                 "The session has ended.",
	AccessTokenSuperseded:          "The access token has outdated claims; refresh it.",
	InsufficientUserAuthentication: "A more recent or a stronger authentication is required.",
	VerificationUnavailable:        "Whether the session has ended is not known at the moment; try again.",
}

// UnavailableReason says why a guard cannot decide.
type UnavailableReason string

// Why a guard cannot decide: no complete snapshot has arrived yet; the feed is older than the maximum staleness; the keys
// were never read, or are too old; there is something about this session that this version does not understand; sessiond
// did not answer.
const (
	NoFeed    UnavailableReason = "no_feed"
	StaleFeed UnavailableReason = "stale_feed"
	NoKeys    UnavailableReason = "no_keys"
	Held      UnavailableReason = "withheld"
	NoAnswer  UnavailableReason = "no_answer"
)

// Refusal is the error with which a request is refused.
type Refusal struct {
	Reason Reason
	// Metadata of the reason on the wire.
	Metadata map[string]string
	// Because says why the guard cannot decide, for VerificationUnavailable.
	Because UnavailableReason

	challenge string
}

// Error returns the reason's name and message.
func (refusal *Refusal) Error() string {
	return string(refusal.Reason) + ": " + messages[refusal.Reason]
}

const invalidToken = `Bearer error="invalid_token"`

// Refusals without metadata are shared: they are not changed.
var (
	// RFC 6750 §3.1: a request without a credential gets no error code.
	credentialsMissing = &Refusal{Reason: CredentialsMissing, challenge: "Bearer"}
	unparsable         = &Refusal{Reason: UnparsableAccessToken, challenge: invalidToken}
	revoked            = &Refusal{Reason: SessionRevoked, challenge: invalidToken}
	superseded         = &Refusal{Reason: AccessTokenSuperseded, challenge: invalidToken}
)

func unavailable(because UnavailableReason) *Refusal {
	return &Refusal{Reason: VerificationUnavailable, Because: because}
}

func expired(principal *Principal) *Refusal {
	metadata := map[string]string{
		"expired_at_millis": strconv.FormatInt(principal.expiresAt*1000, 10),
		"project_id":        principal.ProjectID,
		"user_id":           principal.UserID,
		"refresh_token_id":  principal.SessionID,
	}
	return &Refusal{Reason: AccessTokenExpired, Metadata: metadata, challenge: invalidToken}
}

func wrongProject(expected, actual string) *Refusal {
	metadata := map[string]string{"expected_project_id": expected, "actual_project_id": actual}
	return &Refusal{Reason: WrongProject, Metadata: metadata, challenge: invalidToken}
}

// Requirement is what a route asks of the user's authentication (RFC 9470).
type Requirement struct {
	// ACR: one of these values. Empty: any, or none.
	ACR []string
	// MaxAge: the authentication is younger than this, in whole seconds. Half-open: exactly this age is too old. Zero: any
	// age.
	MaxAge time.Duration
}

func insufficientAuthentication(requirement Requirement) *Refusal {
	metadata := map[string]string{}
	challenge := fmt.Sprintf(`Bearer error="insufficient_user_authentication", error_description="%s"`, messages[InsufficientUserAuthentication])
	if len(requirement.ACR) > 0 {
		metadata["acr_values"] = strings.Join(requirement.ACR, " ")
		challenge += fmt.Sprintf(`, acr_values="%s"`, metadata["acr_values"])
	}
	if requirement.MaxAge > 0 {
		metadata["max_age"] = strconv.FormatInt(int64(requirement.MaxAge/time.Second), 10)
		challenge += fmt.Sprintf(`, max_age="%s"`, metadata["max_age"])
	}
	return &Refusal{Reason: InsufficientUserAuthentication, Metadata: metadata, challenge: challenge}
}

// ServeHTTP answers with the refusal: a google.rpc.Status as JSON.
func (refusal *Refusal) ServeHTTP(writer http.ResponseWriter, _ *http.Request) {
	metadata := refusal.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	details := []map[string]any{{
		"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": refusal.Reason, "domain": "sessiond", "metadata": metadata,
	}}
	code, status, header := 16, http.StatusUnauthorized, writer.Header()
	if refusal.Reason == VerificationUnavailable {
		code, status = 14, http.StatusServiceUnavailable
		details = append(details, map[string]any{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "1s"})
		header.Set("Retry-After", "1")
	} else {
		header.Set("WWW-Authenticate", refusal.challenge)
	}
	header.Set("Content-Type", "application/json")
	// The response depends on the moment.
	header.Set("Cache-Control", "no-store")
	writer.WriteHeader(status)
	// The client may be gone.
	_ = json.NewEncoder(writer).Encode(map[string]any{"code": code, "message": messages[refusal.Reason], "details": details})
}

// bearer returns the token of a bearer credential (RFC 6750 §2.1), from the values of the Authorization headers, and whether
// there is one. Other schemes are ignored. Several are refused: which one counts is ambiguous.
func bearer(headers []string) (string, bool, *Refusal) {
	if len(headers) > 1 {
		return "", false, unparsable
	}
	if len(headers) == 0 {
		return "", false, nil
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return "", false, nil
	}
	return strings.Trim(token, " "), true, nil
}
