package guard

import (
	"sort"
	"sync"
	"time"
)

// Clock has the clocks of the machine. Replaced in tests.
type Clock interface {
	// Elapsed is the monotonic clock.
	Elapsed() time.Duration
	// Now is the time of day, since the Unix epoch.
	Now() time.Duration
}

type systemClock struct{}

var processStart = time.Now()

func (systemClock) Elapsed() time.Duration { return time.Since(processStart) }

func (systemClock) Now() time.Duration { return time.Duration(time.Now().UnixNano()) }

const (
	// How many observations are kept. The median counts, so that a single wrong one has no effect.
	observationsMax = 5
	// How many observations are needed for the median to count: of two, either may be wrong.
	observationsMin = 3
	// How far two observations may differ and still agree. A Date has whole seconds, and takes a moment to arrive.
	dateTolerance = 5 * time.Second
)

// timeOfDay is the later of the system's time of day and the time of day expected from the monotonic clock. If the system's
// clock is set back, no expired token becomes valid again; if it is set ahead, tokens expire early until it is corrected.
type timeOfDay struct {
	clock Clock
	mutex sync.RWMutex
	// The expected time of day minus the monotonic clock.
	offset time.Duration
	// The last observations of this offset: the system clock's at the start, then one per response.
	observations []time.Duration
}

func newTime(clock Clock) *timeOfDay {
	offset := clock.Now() - clock.Elapsed()
	return &timeOfDay{clock: clock, offset: offset, observations: []time.Duration{offset}}
}

// observe takes in the issuer's time of day, from the Date of a response. Returns whether it agrees with the others; if not,
// observe again soon.
func (t *timeOfDay) observe(now time.Duration) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	observed := now - t.clock.Elapsed()
	t.observations = append(t.observations, observed)
	if len(t.observations) > observationsMax {
		t.observations = t.observations[1:]
	}
	if len(t.observations) >= observationsMin {
		sorted := append([]time.Duration(nil), t.observations...)
		sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
		t.offset = sorted[(len(sorted)-1)/2]
	}
	apart := observed - t.offset
	return -dateTolerance <= apart && apart <= dateTolerance
}

// now is the time of day, since the Unix epoch.
func (t *timeOfDay) now() time.Duration {
	t.mutex.RLock()
	expected := t.clock.Elapsed() + t.offset
	t.mutex.RUnlock()
	if now := t.clock.Now(); now > expected {
		return now
	}
	return expected
}

// elapsed is the monotonic clock.
func (t *timeOfDay) elapsed() time.Duration { return t.clock.Elapsed() }
