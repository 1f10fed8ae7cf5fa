// Package guard verifies sessiond's access tokens where they are used, without a call per request, and refuses the tokens of a
// revoked session within milliseconds of the revocation.
//
//	g, err := guard.Connect(ctx, guard.Options{
//		URLs: []string{"http://sessiond:8080"}, Project: "shop", Issuer: "https://sessions.example.org", ServerKey: key,
//	})
//	http.Handle("/", g.Handler(routes))
//
// Behind the handler, [PrincipalOf] returns the signed-in user of a request.
package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FailMode says what happens to a token when the guard cannot know whether its session is revoked: the feed is too old or has
// not sent a complete snapshot yet, or the keys are missing or too old.
type FailMode int

const (
	// Reject rejects it, and tells the client to try again.
	Reject FailMode = iota
	// Introspect asks sessiond about it on every request. Rejects it if sessiond does not answer.
	Introspect
	// AcceptUntilExpiry accepts it until it expires, unless it is known to be revoked. Rejects it before the first complete
	// snapshot: a guard that has just started knows no revocation.
	AcceptUntilExpiry
)

// Options configure a guard.
type Options struct {
	// URLs of the replicas of sessiond: http:// or https://, a host, and optionally a port.
	URLs []string
	// Project whose tokens are accepted.
	Project string
	// Issuer is the base URL in the tokens' iss, equal to sessiond's --issuer. Default: the first URL.
	Issuer string
	// ServerKey is a server key of the project with the role verifier. May be omitted with a client certificate in TLS.
	ServerKey string
	// TLS for https:// URLs: the certificates to trust, and a client certificate. Default: the system's certificates.
	TLS *tls.Config
	// MaxStaleness is how old the feed of revocations may be for a token to be accepted. At least 2 s. Default: 10 s.
	MaxStaleness time.Duration
	FailMode     FailMode
	// MaxEntries is the most revocations that are held. Beyond it the feed grows old. Default: 1,000,000.
	MaxEntries int
	// StartupTimeout is how long Connect waits for the keys and the first snapshot. Default: 5 s.
	StartupTimeout time.Duration
	// Log gets warnings, which contain neither tokens nor users. Default: the standard logger.
	Log *log.Logger
	// Clock for tests.
	Clock Clock
}

const (
	maxStalenessMin = 2 * time.Second
	replicasMax     = 64
	// How often the stream is checked for silence.
	tick = 250 * time.Millisecond
	// How often entries that every token has outlived are removed.
	forgetInterval = 10 * time.Second
	// The shortest time between two reads of the keys that unknown keys cause: anyone can make up a kid.
	readIntervalMin = time.Second
	// How long a token under an unknown key waits for the keys to be read.
	readTimeout = 3 * time.Second
	// How long to wait after the keys could not be read.
	readRetryMin = 100 * time.Millisecond
	readRetryMax = 10 * time.Second
	// How many responses in a row with an implausible Date are followed by another read at once, to collect more of them.
	implausibleMax = 3
	// The most introspections at once. In an outage every request is one; more are rejected rather than queued.
	introspectionsMax = 256
	// How many bytes of the stream are read at once.
	chunkBytes = 64 * 1024
)

// Stats are a guard's counters and the age of its keys and revocations, at one moment.
type Stats struct {
	// Staleness is the age of the feed; negative before the first complete snapshot.
	Staleness time.Duration
	// Entries in memory.
	Entries int
	// JWKSAge is the time since the keys were last read; negative if they never were.
	JWKSAge time.Duration
	// Accepted tokens.
	Accepted uint64
	// Refused counts requests with no token, a malformed one, or another project's.
	Refused uint64
	// Expired tokens.
	Expired uint64
	// Revoked counts tokens of revoked sessions.
	Revoked uint64
	// Superseded counts tokens that were issued before their session changed.
	Superseded uint64
	// Unavailable counts tokens that the guard could not decide on.
	Unavailable uint64
	// StepUps counts accepted tokens whose user must authenticate again.
	StepUps uint64
	// Introspections requested from sessiond.
	Introspections uint64
	// Connections: streams of revocations that were opened.
	Connections uint64
	// Snapshots that were received completely.
	Snapshots uint64
	// Withheld counts revocations of kinds that this version does not understand.
	Withheld uint64
}

// state is what a guard's goroutines and requests share.
type state struct {
	time         *timeOfDay
	keys         *jwks
	revocations  *revocations
	verifier     *tokenVerifier
	maxStaleness time.Duration
	failMode     FailMode
	// The iss of the project's tokens.
	issuer string
}

// decision on a token, without asking sessiond: one of a principal, a refusal, and unknownKey; or why it is uncertain, then with
// the principal if the signature is good.
type decision struct {
	principal  *Principal
	refusal    *Refusal
	unknownKey bool
	because    UnavailableReason
}

var (
	addressForm = regexp.MustCompile(`^https?://[^/?#]+/?$`)
	issuerForm  = regexp.MustCompile(`^https?://.`)
	keyForm     = regexp.MustCompile(`^sdsk_[A-Za-z0-9_-]{64}$`)
)

func newState(options *Options) (*state, error) {
	if len(options.URLs) < 1 || len(options.URLs) > replicasMax {
		return nil, misconfigured("a guard needs 1 to %d URLs", replicasMax)
	}
	for _, address := range options.URLs {
		if !addressForm.MatchString(address) {
			return nil, misconfigured("invalid URL `%s`: expected http:// or https://, a host, and optionally a port", address)
		}
	}
	issuer := options.Issuer
	if issuer == "" {
		issuer = options.URLs[0]
	}
	if !issuerForm.MatchString(issuer) {
		return nil, misconfigured("invalid issuer `%s`: expected sessiond's base URL, as in its tokens' `iss`", issuer)
	}
	if !isProject(options.Project) {
		return nil, misconfigured("invalid project `%s`: expected 1 to 64 of `A-Z a-z 0-9 - _`", options.Project)
	}
	// Checked before it is sent: the operator may have configured another secret by mistake.
	if options.ServerKey != "" && !keyForm.MatchString(options.ServerKey) {
		return nil, misconfigured("malformed server key: expected `sdsk_` followed by 64 characters")
	}
	if options.ServerKey == "" && !hasCertificate(options.TLS) {
		return nil, misconfigured("a guard needs a server key or a client certificate")
	}
	if options.MaxStaleness == 0 {
		options.MaxStaleness = 10 * time.Second
	}
	if options.MaxStaleness < maxStalenessMin {
		return nil, misconfigured("MaxStaleness must be at least %v", maxStalenessMin)
	}
	if options.MaxEntries == 0 {
		options.MaxEntries = 1_000_000
	}
	if options.Clock == nil {
		options.Clock = systemClock{}
	}
	issuer = strings.TrimRight(issuer, "/") + "/projects/" + options.Project
	return &state{
		time: newTime(options.Clock), keys: &jwks{}, revocations: newRevocations(),
		verifier: newTokenVerifier(options.Project, issuer), maxStaleness: options.MaxStaleness, failMode: options.FailMode,
		issuer: issuer,
	}, nil
}

// decide decides from the cached keys and revocations.
func (s *state) decide(token string) decision {
	verified := s.verifier.verify(token, s.keys)
	principal := verified.principal
	switch {
	case verified.noKeys:
		return decision{because: NoKeys}
	case principal == nil:
		return decision{refusal: verified.refusal, unknownKey: verified.unknownKey}
	case principal.isExpired(s.time.now()):
		return decision{refusal: expired(principal)}
	}
	// Before the set: the one that is asked must not be older than what is believed of it.
	age, isComplete := s.revocations.age(s.time)
	isRevoked, isSuperseded, isWithheld := s.revocations.set.Load().find(principal)
	switch {
	case isRevoked:
		return decision{refusal: revoked}
	case isSuperseded:
		return decision{refusal: superseded}
	case !isComplete:
		return decision{principal: principal, because: NoFeed}
	case age > s.maxStaleness:
		return decision{principal: principal, because: StaleFeed}
	case isWithheld:
		return decision{principal: principal, because: Held}
	case !s.keys.isUsable(s.time.elapsed()):
		return decision{principal: principal, because: NoKeys}
	}
	return decision{principal: principal}
}

// decideByFailMode applies the fail mode without asking sessiond.
func (s *state) decideByFailMode(uncertain decision) decision {
	if uncertain.principal != nil && s.failMode == AcceptUntilExpiry && s.revocations.isComplete.Load() {
		return decision{principal: uncertain.principal}
	}
	return decision{refusal: unavailable(uncertain.because)}
}

// Guard verifies the access tokens of one project. Safe for concurrent use.
type Guard struct {
	*state
	upstream *upstream
	feed     *feed
	log      *log.Logger
	counts   struct {
		accepted, refused, expired, revoked, superseded, unavailable, stepUps atomic.Uint64
		introspections, connections, snapshots, withheld                      atomic.Uint64
	}
	permits chan struct{}
	reads   reads

	ctx    context.Context
	cancel context.CancelFunc
	// Guards startup and what was logged.
	mutex           sync.Mutex
	startup         startup
	withheldKinds   map[string]bool
	hasWarnedOfRole bool
}

// startup says how far the startup has come.
type startup struct {
	hasSnapshot, hasKeys bool
	err                  *ConfigurationError
	// Closed, and replaced, when one of these changes.
	changed chan struct{}
}

// Connect connects to sessiond, and waits until the keys and the first complete snapshot of the revocations have arrived. In an
// outage, returns after StartupTimeout; the fail mode then decides until they arrive. The context limits the wait alone.
//
// Returns a *[ConfigurationError] for invalid options, a server key that is not the project's, or a server that does not issue
// the project's tokens. Returns no error in an outage.
func Connect(ctx context.Context, options Options) (*Guard, error) {
	s, err := newState(&options)
	if err != nil {
		return nil, err
	}
	g := &Guard{state: s, upstream: newUpstream(&options, s.issuer), log: options.Log, withheldKinds: map[string]bool{}}
	if g.log == nil {
		g.log = log.Default()
	}
	g.permits = make(chan struct{}, introspectionsMax)
	g.reads.requested = make(chan struct{}, 1)
	g.reads.changed = make(chan struct{})
	g.startup.changed = make(chan struct{})
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.feed = &feed{
		time: s.time, revocations: s.revocations, maxStaleness: s.maxStaleness, maxEntries: options.MaxEntries,
		replicas: len(options.URLs), onFresh: g.onFresh, onSnapshot: func() { g.counts.snapshots.Add(1) }, onWithheld: g.onWithheld,
	}
	go g.follow()
	go g.readKeys()
	go g.forget()
	timeout := options.StartupTimeout
	if timeout == 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = g.Ready(ctx)
	var wrong *ConfigurationError
	if errors.As(err, &wrong) {
		g.Close()
		return nil, err
	}
	if err != nil {
		g.warn("sessiond is unavailable: the fail mode decides until it answers")
	}
	return g, nil
}

// Ready waits until the keys and the first complete snapshot have arrived. Returns a *[ConfigurationError] as [Connect], or the
// context's error.
func (g *Guard) Ready(ctx context.Context) error {
	for {
		g.mutex.Lock()
		now := g.startup
		g.mutex.Unlock()
		if now.hasSnapshot && now.hasKeys {
			return nil
		}
		if now.err != nil {
			return now.err
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close stops following the feed. The guard decides nothing after that but by its fail mode.
func (g *Guard) Close() {
	g.cancel()
	g.upstream.client.CloseIdleConnections()
}

// Verify verifies a token. Usually returns at once; asks sessiond only in the mode [Introspect] and about unknown keys. The error
// is a *[Refusal].
func (g *Guard) Verify(ctx context.Context, token string) (*Principal, error) {
	d := g.decide(token)
	if d.unknownKey {
		d = decision{because: NoKeys}
		if g.reads.now(ctx) {
			d = g.decide(token)
		}
		// The keys were just read, and this is none of them.
		if d.unknownKey {
			d = decision{refusal: unparsable}
		}
	}
	g.readStaleKeys(d)
	if d.because != "" {
		if g.failMode == Introspect {
			d = g.introspect(ctx, token, d.principal)
		} else {
			d = g.decideByFailMode(d)
		}
	}
	return g.count(d)
}

// VerifyNow verifies a token without waiting: unavailable where [Guard.Verify] would ask sessiond. The error is a *[Refusal].
func (g *Guard) VerifyNow(token string) (*Principal, error) {
	d := g.decide(token)
	if d.unknownKey {
		d = decision{because: NoKeys}
	}
	g.readStaleKeys(d)
	if d.because != "" {
		d = g.decideByFailMode(d)
	}
	return g.count(d)
}

// Require checks that the user has authenticated recently and strongly enough (RFC 9470). The error is a *[Refusal]. Nobody
// has: a nil principal is refused.
func (g *Guard) Require(principal *Principal, requirement Requirement) error {
	if principal == nil {
		g.counts.refused.Add(1)
		return credentialsMissing
	}
	if !meets(principal, requirement, g.time.now()) {
		g.counts.stepUps.Add(1)
		return insufficientAuthentication(requirement)
	}
	return nil
}

// meets returns whether an authentication is sufficient. An unknown value does not meet a requirement.
func meets(principal *Principal, requirement Requirement, now time.Duration) bool {
	isRecent := requirement.MaxAge == 0
	if principal.hasAuthTime && !isRecent {
		isRecent = int64(now/time.Second) < principal.authTime+int64(requirement.MaxAge/time.Second)
	}
	isStrong := len(requirement.ACR) == 0
	for _, acr := range requirement.ACR {
		isStrong = isStrong || principal.ACR != "" && acr == principal.ACR
	}
	return isRecent && isStrong
}

// Stats returns the guard's counters, and the age of its keys and revocations.
func (g *Guard) Stats() Stats {
	counts := &g.counts
	stats := Stats{
		Staleness: -1, Entries: g.revocations.set.Load().size(), JWKSAge: -1,
		Accepted: counts.accepted.Load(), Refused: counts.refused.Load(), Expired: counts.expired.Load(),
		Revoked: counts.revoked.Load(), Unavailable: counts.unavailable.Load(), Introspections: counts.introspections.Load(),
		Connections: counts.connections.Load(), Snapshots: counts.snapshots.Load(), Withheld: counts.withheld.Load(),
		Superseded: counts.superseded.Load(), StepUps: counts.stepUps.Load(),
	}
	if age, isComplete := g.revocations.age(g.time); isComplete {
		stats.Staleness = age
	}
	if age, isThere := g.keys.age(g.time.elapsed()); isThere {
		stats.JWKSAge = age
	}
	return stats
}

// Metrics renders the counters in Prometheus' text exposition format.
func (stats Stats) Metrics() string {
	var page strings.Builder
	seconds := func(age time.Duration) string {
		if age < 0 {
			return "+Inf"
		}
		return strconv.FormatFloat(age.Seconds(), 'f', -1, 64)
	}
	metric := func(name, kind, help string, lines ...string) {
		fmt.Fprintf(&page, "# HELP sessiond_guard_%s %s\n# TYPE sessiond_guard_%s %s\n", name, help, name, kind)
		for _, line := range lines {
			fmt.Fprintf(&page, "sessiond_guard_%s%s\n", name, line)
		}
	}
	count := func(value uint64) string { return " " + strconv.FormatUint(value, 10) }
	metric("staleness_seconds", "gauge", "Age of the feed of revocations", " "+seconds(stats.Staleness))
	metric("entries", "gauge", "Revocations in memory", " "+strconv.Itoa(stats.Entries))
	metric("jwks_age_seconds", "gauge", "Time since the keys were last read", " "+seconds(stats.JWKSAge))
	metric("verifications_total", "counter", "Verified tokens, by outcome",
		`{outcome="accepted"}`+count(stats.Accepted), `{outcome="refused"}`+count(stats.Refused),
		`{outcome="expired"}`+count(stats.Expired), `{outcome="revoked"}`+count(stats.Revoked),
		`{outcome="superseded"}`+count(stats.Superseded), `{outcome="unavailable"}`+count(stats.Unavailable))
	metric("step_ups_total", "counter", "Accepted tokens whose user must authenticate again", count(stats.StepUps))
	metric("introspections_total", "counter", "Introspection requests to sessiond", count(stats.Introspections))
	metric("connections_total", "counter", "Streams of revocations that were opened", count(stats.Connections))
	metric("snapshots_total", "counter", "Complete snapshots received", count(stats.Snapshots))
	metric("withheld_total", "counter", "Revocations of kinds that this version does not understand", count(stats.Withheld))
	return page.String()
}

func (g *Guard) count(d decision) (*Principal, error) {
	if d.refusal == nil {
		g.counts.accepted.Add(1)
		return d.principal, nil
	}
	switch d.refusal.Reason {
	case AccessTokenExpired:
		g.counts.expired.Add(1)
	case SessionRevoked:
		g.counts.revoked.Add(1)
	case AccessTokenSuperseded:
		g.counts.superseded.Add(1)
	case VerificationUnavailable:
		g.counts.unavailable.Add(1)
	default:
		g.counts.refused.Add(1)
	}
	return nil, d.refusal
}

// readStaleKeys has the keys read if they are missing or too old: the machine may have slept, and the next read not be due yet.
func (g *Guard) readStaleKeys(d decision) {
	if d.because == NoKeys {
		g.reads.request()
	}
}

// introspect asks sessiond about one token. The response is not cached.
func (g *Guard) introspect(ctx context.Context, token string, principal *Principal) decision {
	select {
	case g.permits <- struct{}{}:
		defer func() { <-g.permits }()
	default:
		return decision{refusal: unavailable(NoAnswer)}
	}
	g.counts.introspections.Add(1)
	isActive, err := g.upstream.introspect(ctx, token)
	switch {
	case err != nil:
		return decision{refusal: unavailable(NoAnswer)}
	case isActive && principal != nil:
		return decision{principal: principal}
	case isActive:
		read := g.verifier.parseUnverified(token)
		if read.principal != nil && read.principal.isExpired(g.time.now()) {
			return decision{refusal: expired(read.principal)}
		}
		return decision{principal: read.principal, refusal: read.refusal}
	case principal != nil:
		// The signature and the expiry were checked here, so it is the session that has ended.
		return decision{refusal: revoked}
	default:
		return decision{refusal: unparsable}
	}
}

func (g *Guard) warn(format string, values ...any) {
	g.log.Printf("sessiond guard: "+format, values...)
}

// began changes how far the startup has come.
func (g *Guard) began(change func(*startup)) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	change(&g.startup)
	close(g.startup.changed)
	g.startup.changed = make(chan struct{})
}

func (g *Guard) onFresh() {
	g.mutex.Lock()
	isKnown := g.startup.hasSnapshot
	g.mutex.Unlock()
	if !isKnown {
		g.began(func(s *startup) { s.hasSnapshot = true })
	}
}

func (g *Guard) onWithheld(kind string) {
	g.counts.withheld.Add(1)
	g.mutex.Lock()
	defer g.mutex.Unlock()
	// Bounded, because a server could make up names.
	if !g.withheldKinds[kind] && len(g.withheldKinds) < 32 {
		g.withheldKinds[kind] = true
		g.warn("received a revocation of the unknown kind %q: the fail mode decides on what it concerns; upgrade this guard", kind)
	}
}

func (g *Guard) onRole(role string) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if role != "" && role != "verifier" && !g.hasWarnedOfRole {
		g.hasWarnedOfRole = true
		g.warn("the server key has the role `%s`; `verifier` is enough for a guard (`sessiond server-key narrow KEY --role verifier`)", role)
	}
}

// failed keeps an error that only an operator can correct, for Ready.
func (g *Guard) failed(err error) {
	var wrong *ConfigurationError
	if errors.As(err, &wrong) {
		g.began(func(s *startup) { s.err = wrong })
	}
}

// forget removes entries that every token has outlived, for as long as the guard runs.
func (g *Guard) forget() {
	for g.sleep(forgetInterval, nil) {
		g.revocations.set.Load().forget(g.time.elapsed())
	}
}

// sleep waits for so long, or until there is something in the channel. Returns whether the guard is open.
func (g *Guard) sleep(wait time.Duration, other <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-other:
		return true
	case <-g.ctx.Done():
		return false
	}
}

// readKeys reads the keys at the start, at half of their max-age, and whenever a token names an unknown one.
func (g *Guard) readKeys() {
	failures, implausible := 0, 0
	for {
		begunAt := time.Now()
		g.reads.begin(begunAt)
		age, isPlausible, err := g.readKeysOnce()
		g.reads.end(err == nil)
		var due time.Time
		switch {
		case err != nil:
			if g.ctx.Err() == nil {
				g.warn("failed to read the JWK Set: %v", err)
			}
			g.failed(err)
			due = time.Now().Add(backoff(readRetryMin, readRetryMax, failures))
			failures++
		case !isPlausible && implausible < implausibleMax:
			implausible++
			due = time.Now().Add(readRetryMin)
		default:
			failures = 0
			if isPlausible {
				implausible = 0
			}
			due = begunAt.Add(age / 2)
			// Not before: with a wrong clock, expired tokens would pass.
			g.began(func(s *startup) { s.hasKeys = true })
		}
		if !g.sleep(time.Until(due), g.reads.requested) {
			return
		}
		// Unknown keys cause no more than one read a second.
		earliest := begunAt.Add(readIntervalMin)
		if due.Before(earliest) {
			earliest = due
		}
		if !g.sleep(time.Until(earliest), nil) {
			return
		}
	}
}

// readKeysOnce reads the keys. Returns their max-age, and whether the response's Date agrees with the clock.
func (g *Guard) readKeysOnce() (time.Duration, bool, error) {
	requestedAt := g.time.elapsed()
	answer, err := g.upstream.jwks(g.ctx)
	if err != nil {
		return 0, false, err
	}
	found := readKeys(answer.body)
	if found == nil {
		return 0, false, errors.New("the document is not a JWK Set")
	}
	isPlausible := true
	if date, err := http.ParseTime(answer.header.Get("Date")); err == nil {
		isPlausible = g.time.observe(time.Duration(date.UnixNano()))
	}
	age := maxAge(answer.header.Get("Cache-Control"))
	g.keys.store(found, requestedAt, age)
	return age, isPlausible, nil
}

// follow follows one replica at a time, and switches to the next when its stream ends.
func (g *Guard) follow() {
	var p progress
	for attempt := 0; ; attempt++ {
		r := g.upstream.replicas[attempt%len(g.upstream.replicas)]
		end := g.stream(r, &p)
		// Another server may respond at this address now.
		r.isChecked.Store(false)
		wait := p.retryAfter()
		if g.ctx.Err() == nil {
			g.warn("the stream of revocations from %s ended (%s); reconnecting in %v", r.url, end, wait.Round(time.Millisecond))
		}
		if !g.sleep(wait, nil) {
			return
		}
	}
}

// stream follows one replica. Returns why the stream ended.
func (g *Guard) stream(r *replica, p *progress) string {
	if err := g.upstream.check(g.ctx, r); err != nil {
		g.failed(err)
		return err.Error()
	}
	query := url.Values{"accepts": accepts, "max_entries": {strconv.Itoa(g.feed.maxEntries)}}
	if p.cursor != "" {
		query.Set("cursor", p.cursor)
	}
	reader := newStreamReader(g.feed, p, g.time.elapsed())
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	go reader.cancelIfSilent(ctx, cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/auth/revocations:watch?"+query.Encode(), nil)
	if err != nil {
		return err.Error()
	}
	request.Header.Set("Accept", "application/x-ndjson")
	g.upstream.authorize(request.Header)
	answer, err := g.upstream.client.Do(request)
	if err != nil {
		return describe(err, ctx)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(answer.Body, chunkBytes))
		return refused(answer.StatusCode, body, p)
	}
	g.counts.connections.Add(1)
	g.onRole(answer.Header.Get("x-sessiond-key-role"))
	reader.open(g.time.elapsed())
	chunk := make([]byte, chunkBytes)
	for {
		count, err := answer.Body.Read(chunk)
		if end := reader.read(chunk[:count], g.time.elapsed()); end != "" {
			return string(end)
		}
		if err == io.EOF {
			return "closed"
		}
		if err != nil {
			return describe(err, ctx)
		}
	}
}

// describe says why a request failed: it is canceled only for silence, or when the guard is closed.
func describe(err error, ctx context.Context) string {
	if ctx.Err() != nil {
		return "silence"
	}
	return err.Error()
}

func refused(status int, body []byte, p *progress) string {
	switch {
	case p.refuse(status, body):
		return "sessiond does not accept the cursor"
	case status == http.StatusBadRequest && strings.Contains(string(body), "accepts"):
		return "sessiond is older than this guard: upgrade it first"
	}
	if len(body) > 200 {
		body = body[:200]
	}
	return fmt.Sprintf("sessiond returned %d: %s", status, body)
}

// cancelIfSilent ends the stream when there was no line for too long.
func (reader *streamReader) cancelIfSilent(ctx context.Context, cancel context.CancelFunc) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if reader.isSilent(reader.feed.time.elapsed()) {
				cancel()
				return
			}
		}
	}
}

// reads of the keys, which tokens under unknown keys request and wait for.
type reads struct {
	// Has an element if a read is requested.
	requested chan struct{}

	mutex        sync.Mutex
	begun, done  int
	begunAt      time.Time
	hasSucceeded bool
	// Closed, and replaced, when a read ends.
	changed chan struct{}
}

func (r *reads) begin(now time.Time) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.begun++
	r.begunAt = now
}

func (r *reads) end(hasSucceeded bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.done, r.hasSucceeded = r.begun, hasSucceeded
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *reads) wake() {
	select {
	case r.requested <- struct{}{}:
	default:
	}
}

// request requests a read without waiting for it.
func (r *reads) request() {
	r.mutex.Lock()
	isRecent := time.Since(r.begunAt) < readIntervalMin
	r.mutex.Unlock()
	if !isRecent {
		r.wake()
	}
}

// now requests a read and waits for it, unless the keys were read a moment ago. Returns whether the cached keys are now the
// published ones.
func (r *reads) now(ctx context.Context) bool {
	r.mutex.Lock()
	isRecent := time.Since(r.begunAt) < readIntervalMin
	if isRecent && r.begun == r.done {
		defer r.mutex.Unlock()
		return r.hasSucceeded
	}
	// A read in progress may have been sent before the key was published; by the next token it is no longer recent.
	awaited := r.begun
	if r.begun == r.done {
		awaited++
	}
	r.mutex.Unlock()
	r.wake()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	for {
		r.mutex.Lock()
		done, hasSucceeded, changed := r.done, r.hasSucceeded, r.changed
		r.mutex.Unlock()
		if done >= awaited {
			return hasSucceeded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
