package guard

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// How long a replica may take to respond, and to accept a connection.
	responseTimeout = 2 * time.Second
	connectTimeout  = 2 * time.Second
	// The largest response body that is read.
	responseBytesMax = 1024 * 1024
)

// ConfigurationError is an error that only an operator can correct.
type ConfigurationError struct{ message string }

// Error describes it.
func (err *ConfigurationError) Error() string { return err.message }

func misconfigured(format string, values ...any) *ConfigurationError {
	return &ConfigurationError{fmt.Sprintf(format, values...)}
}

// replica is one address of sessiond.
type replica struct {
	url string
	// Its issuer and our server key were checked.
	isChecked atomic.Bool
}

// response is a response, read completely.
type response struct {
	status int
	header http.Header
	body   []byte
}

// upstream has the replicas of sessiond.
type upstream struct {
	replicas []*replica
	client   *http.Client
	project  string
	// The iss of the project's tokens.
	issuer    string
	serverKey string
	// The index of the replica that answered last.
	preferred atomic.Int64
}

func newUpstream(options *Options, issuer string) *upstream {
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: connectTimeout}).DialContext, TLSHandshakeTimeout: connectTimeout,
		TLSClientConfig: options.TLS, DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
		// Over HTTP/1.1 alone: a request that is given up takes its connection with it. One of HTTP/2 would stay, with all that
		// is sent on it, if what is in between has swallowed it.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	// Redirects would send the server key elsewhere.
	never := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	u := &upstream{
		client: &http.Client{Transport: transport, CheckRedirect: never}, project: options.Project, issuer: issuer,
		serverKey: options.ServerKey,
	}
	for _, address := range options.URLs {
		u.replicas = append(u.replicas, &replica{url: strings.TrimSuffix(address, "/")})
	}
	return u
}

// hasCertificate returns whether connections present a certificate, which can stand in for a server key.
func hasCertificate(config *tls.Config) bool {
	return config != nil && (len(config.Certificates) > 0 || config.GetClientCertificate != nil)
}

// authorize adds the bearer credential; none if a client certificate stands in for it.
func (u *upstream) authorize(header http.Header) {
	if u.serverKey != "" {
		header.Set("Authorization", "Bearer "+u.serverKey)
	}
}

// send sends a request, and reads the whole response.
func (u *upstream) send(ctx context.Context, r *replica, method, path string, header http.Header, body string) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, responseTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, r.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	answer, err := u.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, responseBytesMax+1))
	if err != nil {
		return nil, err
	}
	if len(text) > responseBytesMax {
		return nil, fmt.Errorf("%s%s: the response is too long", r.url, path)
	}
	return &response{answer.StatusCode, answer.Header, text}, nil
}

// check checks that a replica has the expected issuer, and accepts our server key for the project. Asks each replica once per
// connection.
func (u *upstream) check(ctx context.Context, r *replica) error {
	if r.isChecked.Load() {
		return nil
	}
	issuer, err := url.Parse(u.issuer)
	if err != nil {
		return err
	}
	path := "/.well-known/oauth-authorization-server" + issuer.Path
	metadata, err := u.send(ctx, r, http.MethodGet, path, nil, "")
	if err != nil {
		return err
	}
	const hint = "is it another sessiond, or is the issuer or the project misspelt?"
	switch metadata.status {
	case http.StatusOK:
		// A proxy's error page is no evidence of another issuer.
		var found struct {
			Issuer *string `json:"issuer"`
		}
		if json.Unmarshal(metadata.body, &found) != nil || found.Issuer == nil {
			return fmt.Errorf("%s%s is not authorization server metadata", r.url, path)
		}
		if *found.Issuer != u.issuer {
			return misconfigured("%s does not issue tokens as `%s`: %s", r.url, u.issuer, hint)
		}
	case http.StatusNotFound:
		return misconfigured("%s does not issue tokens as `%s`: %s", r.url, u.issuer, hint)
	default:
		return unexpected(r, path, metadata.status)
	}
	return u.checkKey(ctx, r)
}

func (u *upstream) checkKey(ctx context.Context, r *replica) error {
	// RFC 7662 with Basic, or with a certificate by RFC 8705: the request that names the project together with the credential.
	credential, form := "client certificate", "token=none&client_id="+u.project
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	if u.serverKey != "" {
		credential, form = "server key", "token=none"
		request := http.Request{Header: header}
		request.SetBasicAuth(u.project, u.serverKey)
	}
	const path = "/oauth2/introspect"
	answer, err := u.send(ctx, r, http.MethodPost, path, header, form)
	if err != nil {
		return err
	}
	switch answer.status {
	case http.StatusOK:
		r.isChecked.Store(true)
		return nil
	case http.StatusUnauthorized:
		const why = "it is unknown, revoked, or not one of project"
		return misconfigured("%s rejects the %s: %s `%s`", r.url, credential, why, u.project)
	default:
		return unexpected(r, path, answer.status)
	}
}

// jwks fetches the project's JWK Set from the first replica that answers.
func (u *upstream) jwks(ctx context.Context) (answer *response, err error) {
	err = u.first(func(r *replica) error {
		if err := u.check(ctx, r); err != nil {
			return err
		}
		path := "/projects/" + u.project + "/.well-known/jwks.json"
		if answer, err = u.send(ctx, r, http.MethodGet, path, nil, ""); err != nil {
			return err
		}
		if answer.status != http.StatusOK {
			return unexpected(r, path, answer.status)
		}
		return nil
	})
	return answer, err
}

// introspect asks the first replica that answers whether a token is active.
func (u *upstream) introspect(ctx context.Context, token string) (isActive bool, err error) {
	body, err := json.Marshal(map[string]string{"token": token})
	if err != nil {
		return false, err
	}
	err = u.first(func(r *replica) error {
		if err := u.check(ctx, r); err != nil {
			return err
		}
		header := http.Header{"Content-Type": {"application/json"}}
		u.authorize(header)
		addTrace(ctx, header)
		const path = "/auth/tokens:introspect"
		answer, err := u.send(ctx, r, http.MethodPost, path, header, string(body))
		if err != nil {
			return err
		}
		if answer.status != http.StatusOK {
			return unexpected(r, path, answer.status)
		}
		var found struct{ Active *bool }
		// An answer of a proxy is no verdict.
		if json.Unmarshal(answer.body, &found) != nil || found.Active == nil {
			return fmt.Errorf("%s%s does not say whether a token is active", r.url, path)
		}
		isActive = *found.Active
		return nil
	})
	return isActive, err
}

// first sends a request to one replica after the other until one answers, beginning with the one that answered last.
func (u *upstream) first(send func(*replica) error) (err error) {
	preferred := int(u.preferred.Load())
	for step := range u.replicas {
		at := (preferred + step) % len(u.replicas)
		if err = send(u.replicas[at]); err == nil {
			u.preferred.Store(int64(at))
			return nil
		}
	}
	return err
}

func unexpected(r *replica, path string, status int) error {
	return fmt.Errorf("%s%s returned %d", r.url, path, status)
}
