package guard

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

type targetKind int

const (
	// A session.
	targetSession targetKind = iota
	// All sessions of a user that were opened under a smaller epoch, but for one.
	targetUser
	// All sessions of the project that were opened under a smaller epoch.
	targetProject
	// All tokens under a signing key.
	targetKey
	// The tokens that were issued before a session changed.
	targetSuperseded
	// Something that this version does not understand concerns a session, a user or a key, or the whole project.
	targetWithheld
)

// target is what a revocation revokes.
type target struct {
	kind    targetKind
	session [16]byte
	// The user or key; for what is withheld, "s", "u" or "k" and the id, and empty for the project.
	name   string
	epoch  int64
	spared *[16]byte
}

// userCutOff has all revocations of a user's sessions, merged: only the one with the greatest epoch can spare a session.
type userCutOff struct {
	epoch  int64
	spared *[16]byte
	// The greatest epoch among those that do not spare that session.
	epochForSpared int64
	until          uint32
}

type cutOff struct {
	epoch int64
	until uint32
}

// shards is how many parts the sessions are in: forgetting those of a part blocks the verification of its sessions alone.
const shards = 64

// shard has the sessions with the same last bits, which are random.
type shard struct {
	mutex sync.RWMutex
	until map[[16]byte]uint32
}

// revokedSet is a set of revocations. Each is kept until a second on the monotonic clock. A session takes about 50 bytes.
type revokedSet struct {
	sessions [shards]shard
	// Guards the others, of which there are few.
	mutex      sync.RWMutex
	users      map[string]userCutOff
	keys       map[string]uint32
	superseded map[[16]byte]cutOff
	withheld   map[string]uint32
	project    *cutOff
}

func newRevokedSet() *revokedSet {
	set := &revokedSet{
		users: map[string]userCutOff{}, keys: map[string]uint32{}, superseded: map[[16]byte]cutOff{}, withheld: map[string]uint32{},
	}
	for at := range set.sessions {
		set.sessions[at].until = map[[16]byte]uint32{}
	}
	return set
}

func (set *revokedSet) shardOf(session [16]byte) *shard { return &set.sessions[session[15]%shards] }

func (s *shard) insert(session [16]byte, second uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.until[session] = later(s.until[session], second)
}

func (s *shard) has(session [16]byte) bool {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	_, ok := s.until[session]
	return ok
}

func (s *shard) forget(second uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for id, until := range s.until {
		if until <= second {
			delete(s.until, id)
		}
	}
}

func (s *shard) size() int {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return len(s.until)
}

// insert keeps a revocation until a moment, rounded up to a second.
func (set *revokedSet) insert(t target, until time.Duration) {
	second := uint32(math.MaxUint32)
	if seconds := (until + time.Second - 1) / time.Second; seconds < math.MaxUint32 {
		second = uint32(seconds)
	}
	if t.kind == targetSession {
		set.shardOf(t.session).insert(t.session, second)
		return
	}
	set.mutex.Lock()
	defer set.mutex.Unlock()
	switch t.kind {
	case targetUser:
		cut := userCutOff{epoch: t.epoch, spared: t.spared, epochForSpared: math.MinInt64, until: second}
		if known, ok := set.users[t.name]; ok {
			cut = merged(known, cut)
		}
		set.users[t.name] = cut
	case targetProject:
		known := cutOff{math.MinInt64, 0}
		if set.project != nil {
			known = *set.project
		}
		raised := known.raised(t.epoch, second)
		set.project = &raised
	case targetKey:
		set.keys[t.name] = later(set.keys[t.name], second)
	case targetSuperseded:
		known, ok := set.superseded[t.session]
		if !ok {
			known.epoch = math.MinInt64
		}
		set.superseded[t.session] = known.raised(t.epoch, second)
	case targetWithheld:
		set.withheld[t.name] = later(set.withheld[t.name], second)
	}
}

// find returns whether a token is revoked, superseded, or concerned by something that is withheld.
func (set *revokedSet) find(principal *Principal) (isRevoked, isSuperseded, isWithheld bool) {
	if set.shardOf(principal.session).has(principal.session) {
		return true, false, false
	}
	set.mutex.RLock()
	defer set.mutex.RUnlock()
	if len(set.keys) > 0 {
		if _, ok := set.keys[principal.kid]; ok {
			return true, false, false
		}
	}
	if set.project != nil && principal.epoch[0] < set.project.epoch {
		return true, false, false
	}
	if len(set.users) > 0 {
		if cut, ok := set.users[principal.UserID]; ok && cut.revokes(principal) {
			return true, false, false
		}
	}
	if len(set.superseded) > 0 {
		known, ok := set.superseded[principal.session]
		isSuperseded = ok && principal.sessionEpoch < known.epoch
	}
	if len(set.withheld) > 0 {
		for _, scope := range []string{"s" + principal.SessionID, "u" + principal.UserID, "k" + principal.kid, ""} {
			_, ok := set.withheld[scope]
			isWithheld = isWithheld || ok
		}
	}
	return false, isSuperseded, isWithheld
}

// forget removes entries that every token has outlived.
func (set *revokedSet) forget(now time.Duration) {
	second := uint32(now / time.Second)
	for at := range set.sessions {
		set.sessions[at].forget(second)
	}
	set.mutex.Lock()
	defer set.mutex.Unlock()
	for user, cut := range set.users {
		if cut.until <= second {
			delete(set.users, user)
		}
	}
	for kid, until := range set.keys {
		if until <= second {
			delete(set.keys, kid)
		}
	}
	for id, known := range set.superseded {
		if known.until <= second {
			delete(set.superseded, id)
		}
	}
	for scope, until := range set.withheld {
		if until <= second {
			delete(set.withheld, scope)
		}
	}
	if set.project != nil && set.project.until <= second {
		set.project = nil
	}
}

// size returns the number of entries.
func (set *revokedSet) size() int {
	set.mutex.RLock()
	defer set.mutex.RUnlock()
	size := len(set.users) + len(set.keys) + len(set.superseded) + len(set.withheld)
	for at := range set.sessions {
		size += set.sessions[at].size()
	}
	if set.project != nil {
		size++
	}
	return size
}

func later(one, other uint32) uint32 {
	if one > other {
		return one
	}
	return other
}

func (known cutOff) raised(epoch int64, until uint32) cutOff {
	if epoch > known.epoch {
		known.epoch = epoch
	}
	return cutOff{known.epoch, later(known.until, until)}
}

func (cut userCutOff) revokes(principal *Principal) bool {
	if cut.spared != nil && *cut.spared == principal.session {
		return principal.epoch[1] < cut.epochForSpared
	}
	return principal.epoch[1] < cut.epoch
}

func merged(one, other userCutOff) userCutOff {
	greater, smaller := one, other
	if one.epoch < other.epoch {
		greater, smaller = other, one
	}
	// The epoch of the smaller one for the session that the greater one spares.
	ofSpared := smaller.epoch
	if isSame(smaller.spared, greater.spared) {
		ofSpared = smaller.epochForSpared
	}
	if ofSpared > greater.epochForSpared {
		greater.epochForSpared = ofSpared
	}
	greater.until = later(greater.until, smaller.until)
	return greater
}

func isSame(one, other *[16]byte) bool {
	return one == other || one != nil && other != nil && *one == *other
}

// revocations are those that a guard knows, and how recent they are.
type revocations struct {
	set atomic.Pointer[revokedSet]
	// A snapshot was received completely, so the set has every revocation up to currentUntil.
	isComplete atomic.Bool
	// The moment up to which the set is current: on the monotonic clock, and as the time of day. The first stops while the
	// machine sleeps, and the second may be set: the older of the two counts.
	currentUntil [2]atomic.Int64
	// When the set last learned something, by the monotonic clock.
	newsAt atomic.Int64
}

func newRevocations() *revocations {
	r := &revocations{}
	r.set.Store(newRevokedSet())
	for at := range r.currentUntil {
		r.currentUntil[at].Store(math.MinInt64 / 2)
	}
	return r
}

// age returns the age of the set, once there is a complete snapshot.
func (r *revocations) age(t *timeOfDay) (time.Duration, bool) {
	if !r.isComplete.Load() {
		return 0, false
	}
	age := t.elapsed() - time.Duration(r.currentUntil[0].Load())
	if byTimeOfDay := t.now() - time.Duration(r.currentUntil[1].Load()); byTimeOfDay > age {
		age = byTimeOfDay
	}
	if age < 0 {
		age = 0
	}
	return age, true
}

// setAge records that the set is at most this old.
func (r *revocations) setAge(t *timeOfDay, age time.Duration) {
	r.currentUntil[1].Store(int64(t.now() - age))
	r.currentUntil[0].Store(int64(t.elapsed() - age))
}

// ageOfNews returns how old a snapshot may be that has all that the set has, once there is a complete one: between two heartbeats, the
// set knows more than its age says.
func (r *revocations) ageOfNews(t *timeOfDay) (time.Duration, bool) {
	age, isComplete := r.age(t)
	if since := t.elapsed() - time.Duration(r.newsAt.Load()); since < age {
		age = since
	}
	return age, isComplete
}

// noteNews records that the set has learned something.
func (r *revocations) noteNews(t *timeOfDay) {
	r.newsAt.Store(int64(t.elapsed()))
}

// replace replaces the set by a complete snapshot.
func (r *revocations) replace(t *timeOfDay, set *revokedSet) {
	r.set.Store(set)
	r.noteNews(t)
	r.isComplete.Store(true)
}
