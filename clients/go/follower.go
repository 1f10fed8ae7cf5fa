package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	// A stream without a line for this long is considered dead.
	silenceMax = 3 * time.Second
	// The longest line: four times the longest that sessiond sends.
	lineBytesMax = 4 * 1024 * 1024
	// How often sessiond sends a heartbeat, and how late it may be.
	heartbeatInterval = time.Second
	heartbeatLate     = 100 * time.Millisecond
	// The guard leaves a replica whose feed is older than the maximum staleness divided by this.
	staleDivisor = 2
	// If every replica is stale, how long the guard stays with one before it tries the next.
	staleStay = 5 * time.Second
	// How long to wait before reconnecting: doubled with each failure, minus a random part.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// accepts has the kinds of revocations that this version understands. sessiond sends others as withheld.
var accepts = []string{"session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"}

// feed is what the streams of a guard share.
type feed struct {
	time         *timeOfDay
	revocations  *revocations
	maxStaleness time.Duration
	maxEntries   int
	replicas     int
	// A heartbeat has confirmed the set.
	onFresh func()
	// The set has been replaced by a snapshot.
	onSnapshot func()
	// Something of this kind was withheld, which this version does not understand.
	onWithheld func(kind string)
}

// progress is what one stream leaves to the next.
type progress struct {
	// Where to resume; empty to begin with a snapshot.
	cursor   string
	failures int
	// How many replicas were left since the feed was last fresh.
	left int
	// Since when the present replica is known to be stale.
	staleSince *time.Duration
}

func (p *progress) begin() { p.staleSince = nil }

// retryAfter returns how long to wait before the next stream.
func (p *progress) retryAfter() time.Duration {
	wait := backoff(retryMin, retryMax, p.failures)
	p.failures++
	return wait
}

// backoff returns the least wait, doubled with each failure up to the greatest, minus a random part of at most half: clients
// that failed together would retry together.
func backoff(least, greatest time.Duration, failures int) time.Duration {
	whole := greatest
	if failures < 16 && least<<failures < greatest {
		whole = least << failures
	}
	return whole/2 + time.Duration(rand.Int63n(int64(whole/2)+1))
}

func (p *progress) succeed() { p.failures = 0 }

// refuse takes in the response with which sessiond has refused to open the stream. Returns whether it was because of the
// cursor.
func (p *progress) refuse(status int, body []byte) bool {
	var refusal struct {
		Details []struct {
			Violations []struct {
				Field string `json:"field"`
			} `json:"field_violations"`
		} `json:"details"`
	}
	if status != 400 || json.Unmarshal(body, &refusal) != nil {
		return false
	}
	for _, detail := range refusal.Details {
		for _, violation := range detail.Violations {
			if violation.Field == "cursor" {
				p.cursor = ""
				return true
			}
		}
	}
	return false
}

// shouldLeave returns whether to leave the present replica, whose feed has this age: at once while another one has not been
// tried, and then after a while, because a single address may have several replicas behind it.
func (p *progress) shouldLeave(age, now time.Duration, f *feed) bool {
	if age <= f.maxStaleness/staleDivisor {
		p.left, p.staleSince = 0, nil
		return false
	}
	if p.staleSince == nil {
		p.staleSince = &now
	}
	if f.replicas > 1 && p.left < f.replicas {
		p.left++
		return true
	}
	return now-*p.staleSince >= staleStay
}

// streamEnd says why a stream ended; empty while it goes on.
type streamEnd string

// streamReader applies what arrives on one stream. The caller says when it arrived, so the result depends on nothing else.
type streamReader struct {
	feed     *feed
	progress *progress
	// The beginning of a line whose rest has not arrived.
	part []byte
	// When the last line arrived.
	lineAt atomic.Int64
	// The snapshot that is being received, or waits for a heartbeat, which says how old it is.
	snapshot *revokedSet
	// Whether the snapshot is complete, and where to resume once it has replaced the set.
	isWhole bool
	cursor  *string
	// Whether this stream has replaced the set by a snapshot.
	hasNewSnapshot bool
	// When the request was sent.
	begunAt time.Duration
	// When the last heartbeat arrived, and how long it was delayed at least.
	heartbeatAt, delay time.Duration
}

// newStreamReader begins a stream whose request was sent at this moment on the monotonic clock: the first line may have been
// delayed too.
func newStreamReader(f *feed, p *progress, at time.Duration) *streamReader {
	p.begin()
	reader := &streamReader{feed: f, progress: p, begunAt: at, heartbeatAt: at}
	reader.open(at)
	return reader
}

// open records that the response has arrived, and lines follow.
func (reader *streamReader) open(at time.Duration) { reader.lineAt.Store(int64(at)) }

// isSilent returns whether there was no line for too long.
func (reader *streamReader) isSilent(at time.Duration) bool {
	return at-time.Duration(reader.lineAt.Load()) > silenceMax
}

// read reads some bytes. Returns why nothing more may be read from this stream.
func (reader *streamReader) read(chunk []byte, at time.Duration) streamEnd {
	for {
		end := bytes.IndexByte(chunk, '\n')
		length := end
		if end < 0 {
			length = len(chunk)
		}
		if len(reader.part)+length > lineBytesMax {
			return "line_too_long"
		}
		if end < 0 {
			reader.part = append(reader.part, chunk...)
			return ""
		}
		line := chunk[:end]
		if len(reader.part) > 0 {
			line = append(reader.part, line...)
			reader.part = nil
		}
		if why := reader.line(line, at); why != "" {
			return why
		}
		chunk = chunk[end+1:]
	}
}

func (reader *streamReader) line(line []byte, at time.Duration) streamEnd {
	// This process may have been suspended: the line has waited for an unknown time.
	if reader.isSilent(at) {
		return "silence"
	}
	reader.open(at)
	if !utf8.Valid(line) || !json.Valid(line) {
		return "malformed"
	}
	m, isObject := splitObject(line, nil)
	if !isObject {
		return "malformed"
	}
	why, err := reader.apply(m, at)
	if err != nil {
		return "malformed"
	}
	return why
}

func (reader *streamReader) apply(m object, at time.Duration) (streamEnd, error) {
	var p parser
	hasCursor := !isNull(m.get("cursor"))
	next := p.text(m.get("cursor"))
	if p.err != nil {
		return "", p.err
	}
	if m.get("error") != nil {
		return "error", nil
	}
	switch {
	case !isNull(m.get("snapshot_begin")):
		reader.snapshot, reader.isWhole, reader.cursor = newRevokedSet(), false, nil
	case !isNull(m.get("revocations")):
		batch := p.object(m.get("revocations")).get("revocations")
		if p.err != nil {
			return "", p.err
		}
		if why, err := reader.insert(batch); why != "" || err != nil {
			return why, err
		}
	case !isNull(m.get("snapshot_complete")):
		reader.isWhole = reader.snapshot != nil
		// What it revokes counts at once if nothing else is known.
		if !reader.feed.revocations.isComplete.Load() {
			reader.useSnapshot()
		}
	case !isNull(m.get("heartbeat")):
		heartbeat := p.object(m.get("heartbeat"))
		millis := p.integer(heartbeat.get("age_ms"))
		hasStreamAge := !isNull(heartbeat.get("stream_age_ms"))
		streamAge := p.integer(heartbeat.get("stream_age_ms"))
		if p.err != nil {
			return "", p.err
		}
		// A heartbeat within a snapshot says nothing about the set that is in use.
		if reader.isWhole || reader.feed.revocations.isComplete.Load() && reader.snapshot == nil {
			var delay time.Duration
			if hasStreamAge {
				delay = reader.delayOf(at, streamAge)
			} else {
				delay = reader.estimatedDelay(at)
			}
			if reader.isStale(positive(millis)*time.Millisecond+delay, at) {
				return "stale", nil
			}
			reader.progress.succeed()
			reader.feed.onFresh()
		}
	}
	// A stream cannot be resumed within a snapshot.
	if hasCursor {
		if reader.snapshot == nil {
			reader.progress.cursor = next
		} else if reader.isWhole {
			reader.cursor = &next
		}
	}
	return "", nil
}

// isStale records the age of the feed, and lets a snapshot that is complete replace the set. Returns whether to leave this
// replica because of the age.
func (reader *streamReader) isStale(age, at time.Duration) bool {
	leaves := reader.progress.shouldLeave(age, at, reader.feed)
	// Not one that is older than the set in use: it may lack what is known to be revoked.
	if news, isComplete := reader.feed.revocations.ageOfNews(reader.feed.time); !isComplete || age <= news {
		reader.useSnapshot()
	}
	// The set is at least as recent as it was before this stream, unless the stream has replaced it. While a snapshot waits, the age
	// is the snapshot's.
	if reader.snapshot == nil && (!leaves || reader.hasNewSnapshot) {
		reader.feed.revocations.setAge(reader.feed.time, age)
	}
	return leaves
}

// useSnapshot replaces the set by the snapshot, if one is complete.
func (reader *streamReader) useSnapshot() {
	if !reader.isWhole {
		return
	}
	reader.feed.revocations.replace(reader.feed.time, reader.snapshot)
	if reader.cursor != nil {
		reader.progress.cursor = *reader.cursor
	}
	reader.snapshot, reader.isWhole, reader.hasNewSnapshot = nil, false, true
	reader.feed.onSnapshot()
}

// delayOf returns how long a heartbeat was delayed on the way, at most: a proxy may pass the stream on more slowly than it
// comes. A heartbeat says how old its stream was when it was sent, in milliseconds; what is missing from the time since the
// request is its delay.
func (reader *streamReader) delayOf(at time.Duration, streamAge int64) time.Duration {
	if streamAge < 0 {
		streamAge = 0
	}
	delay := (at - reader.begunAt).Milliseconds() - streamAge
	if delay < 0 {
		delay = 0
	}
	return time.Duration(delay) * time.Millisecond
}

// estimatedDelay returns the same for a server that does not say it. Heartbeats are sent one second apart, so one that arrives
// earlier than that after the previous one was delayed less, and one that arrives later was delayed more.
func (reader *streamReader) estimatedDelay(at time.Duration) time.Duration {
	delay := reader.delay + at - reader.heartbeatAt - heartbeatInterval - heartbeatLate
	reader.heartbeatAt = at
	if delay < 0 {
		delay = 0
	}
	if delay > silenceMax {
		delay = silenceMax
	}
	reader.delay = delay
	return delay
}

func (reader *streamReader) insert(batch json.RawMessage) (why streamEnd, err error) {
	var sets []*revokedSet
	if reader.snapshot != nil {
		sets = append(sets, reader.snapshot)
	}
	// What comes while a snapshot waits is news for the set in use too.
	if reader.snapshot == nil || reader.isWhole {
		sets = append(sets, reader.feed.revocations.set.Load())
	}
	isFull := func() bool {
		for _, set := range sets {
			if set.size() > reader.feed.maxEntries {
				return true
			}
		}
		return false
	}
	if isFull() {
		return "too_many_entries", nil
	}
	if reader.snapshot == nil {
		reader.feed.revocations.noteNews(reader.feed.time)
	}
	now := reader.feed.time.elapsed()
	// Reused, because there may be a million.
	var revocation object
	isList := splitList(batch, func(one json.RawMessage) bool {
		var p parser
		var isObject bool
		if revocation, isObject = splitObject(one, revocation[:0]); !isObject {
			err = errMalformed
			return false
		}
		t, isKnown := p.target(revocation)
		retain := p.integer(revocation.get("retain_seconds"))
		switch {
		case p.err != nil:
			err = p.err
		case !isKnown:
			// Ignoring it would accept revoked tokens.
			why = "unknown_revocation"
		default:
			if t.kind == targetWithheld {
				kind, _ := textOf(p.object(revocation.get("withheld")).get("kind"))
				reader.feed.onWithheld(kind)
			}
			until := now + positive(retain)*time.Second
			for _, set := range sets {
				set.insert(t, until)
			}
		}
		return err == nil && why == ""
	})
	if !isList && !isNull(batch) {
		err = errMalformed
	}
	if err != nil || why != "" {
		return why, err
	}
	if isFull() {
		return "too_many_entries", nil
	}
	return "", nil
}

// positive returns a number of units, at most 32 bits, as a duration of nanoseconds.
func positive(number int64) time.Duration {
	if number < 0 {
		return 0
	}
	if number > 1<<31 {
		return 1 << 31
	}
	return time.Duration(number)
}

var errMalformed = errors.New("not a message of the feed")

// parser reads values of messages, and keeps whether one was malformed. One that is null is absent (ProtoJSON).
type parser struct{ err error }

func (p *parser) object(raw json.RawMessage) object {
	o, isObject := splitObject(raw, nil)
	if !isObject {
		p.err = errMalformed
	}
	return o
}

// text returns a text; an absent one is empty.
func (p *parser) text(raw json.RawMessage) string {
	text, isText := textOf(raw)
	if !isNull(raw) && !isText {
		p.err = errMalformed
	}
	return text
}

// integer returns an integer, written as a number or as text (ProtoJSON). An absent one is 0.
func (p *parser) integer(raw json.RawMessage) int64 {
	if isNull(raw) {
		return 0
	}
	digits := string(raw)
	if text, isText := textOf(raw); isText {
		digits = text
	}
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || digits[0] == '+' {
		p.err = errMalformed
	}
	return number
}

// target returns what a revocation revokes, and whether this version knows its kind.
func (p *parser) target(revocation object) (t target, isKnown bool) {
	switch {
	case !isNull(revocation.get("session_id")):
		id, isID := parseUUID(p.text(revocation.get("session_id")))
		return target{kind: targetSession, session: id}, isID
	case !isNull(revocation.get("user_cut_off")):
		cut := p.object(revocation.get("user_cut_off"))
		t := target{kind: targetUser, name: p.text(cut.get("user_id")), epoch: p.integer(cut.get("epoch"))}
		if !isNull(cut.get("spared_session_id")) {
			id, isID := parseUUID(p.text(cut.get("spared_session_id")))
			if !isID {
				return t, false
			}
			t.spared = &id
		}
		return t, isUser(t.name)
	case !isNull(revocation.get("project_cut_off")):
		return target{kind: targetProject, epoch: p.integer(p.object(revocation.get("project_cut_off")).get("epoch"))}, true
	case !isNull(revocation.get("signing_key_id")):
		kid := p.text(revocation.get("signing_key_id"))
		return target{kind: targetKey, name: kid}, isUUID(kid)
	case !isNull(revocation.get("superseded")):
		members := p.object(revocation.get("superseded"))
		id, isID := parseUUID(p.text(members.get("session_id")))
		return target{kind: targetSuperseded, session: id, epoch: p.integer(members.get("session_epoch"))}, isID
	case !isNull(revocation.get("withheld")):
		return p.withheld(p.object(revocation.get("withheld")))
	}
	return target{}, false
}

func (p *parser) withheld(members object) (target, bool) {
	scopes := []struct {
		member, prefix string
		isGood         func(string) bool
	}{{"session_id", "s", isUUID}, {"user_id", "u", isUser}, {"signing_key_id", "k", isUUID}}
	for _, scope := range scopes {
		if raw := members.get(scope.member); !isNull(raw) {
			concerned := p.text(raw)
			return target{kind: targetWithheld, name: scope.prefix + concerned}, scope.isGood(concerned)
		}
	}
	return target{kind: targetWithheld}, true
}
