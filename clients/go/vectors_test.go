package guard

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The vectors of all guards (clients/vectors, with a README), decided by the guard for Go. Needs no server.

type head struct {
	Project string          `json:"project"`
	Issuer  string          `json:"issuer"`
	JWKS    json.RawMessage `json:"jwks"`
}

func readVectors(t *testing.T, name string, file any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, file); err != nil {
		t.Fatal(err)
	}
}

type fixedClock struct{ start, at, ahead time.Duration }

func (clock *fixedClock) Elapsed() time.Duration { return clock.at }
func (clock *fixedClock) Now() time.Duration     { return clock.start + clock.at + clock.ahead }

type settings struct {
	MaxStaleness int64  `json:"max_staleness_ms"`
	MaxEntries   int    `json:"max_entries"`
	FailMode     string `json:"fail_mode"`
}

func millis(number int64) time.Duration { return time.Duration(number) * time.Millisecond }

func guardOf(t *testing.T, file head, clock Clock, set settings) (*state, *feed) {
	t.Helper()
	options := Options{
		URLs: []string{"http://127.0.0.1:1"}, Project: file.Project, Issuer: file.Issuer, ServerKey: "sdsk_" + strings.Repeat("a", 64),
		MaxStaleness: millis(set.MaxStaleness), MaxEntries: set.MaxEntries, Clock: clock,
		FailMode: map[string]FailMode{"introspect": Introspect, "accept_until_expiry": AcceptUntilExpiry}[set.FailMode],
	}
	s, err := newState(&options)
	if err != nil {
		t.Fatal(err)
	}
	s.keys.store(readKeys(file.JWKS), 0, 24*time.Hour)
	nothing := func() {}
	return s, &feed{
		time: s.time, revocations: s.revocations, maxStaleness: s.maxStaleness, maxEntries: options.MaxEntries, replicas: 1,
		onFresh: nothing, onSnapshot: nothing, onWithheld: func(string) {},
	}
}

// decide returns the decision of a guard that has just read the keys, and its name.
func decide(s *state, token string) (decision, string) {
	d := s.decide(token)
	if d.unknownKey {
		d = decision{refusal: unparsable}
	}
	if d.because != "" {
		if s.failMode == Introspect {
			return d, "introspect"
		}
		d = s.decideByFailMode(d)
	}
	if d.refusal != nil {
		return d, string(d.refusal.Reason)
	}
	return d, "accepted"
}

func TestVectorsTokens(t *testing.T) {
	var file struct {
		head
		Tokens []struct {
			Name, Token, Verdict, User, Session, Impersonator string
			Now                                               int64  `json:"now_ms"`
			ExpiredAt                                         *int64 `json:"expired_at_ms"`
			Expected                                          string `json:"expected_project"`
			Actual                                            string `json:"actual_project"`
			Require                                           struct {
				ACR    []string
				MaxAge int64 `json:"max_age"`
			}
		}
	}
	readVectors(t, "tokens.json", &file)
	for _, one := range file.Tokens {
		s, _ := guardOf(t, file.head, &fixedClock{start: millis(one.Now)}, settings{})
		s.revocations.replace(s.time, s.revocations.set.Load())
		s.revocations.setAge(s.time, 0)
		// Twice, because the second time it is found in the cache.
		for range []int{0, 1} {
			d, name := decide(s, one.Token)
			requirement := Requirement{one.Require.ACR, time.Duration(one.Require.MaxAge) * time.Second}
			if name == "accepted" && !meets(d.principal, requirement, s.time.now()) {
				name = string(InsufficientUserAuthentication)
			}
			if name != one.Verdict {
				t.Errorf("%s: %s instead of %s", one.Name, name, one.Verdict)
			}
			if name == "accepted" {
				found := []string{d.principal.UserID, d.principal.SessionID, d.principal.ImpersonatorID}
				if !reflect.DeepEqual(found, []string{one.User, one.Session, one.Impersonator}) {
					t.Errorf("%s: %v", one.Name, found)
				}
			}
			if one.ExpiredAt != nil && d.refusal.Metadata["expired_at_millis"] != strconv.FormatInt(*one.ExpiredAt, 10) {
				t.Errorf("%s: %v", one.Name, d.refusal.Metadata)
			}
			if one.Expected != "" && (d.refusal.Metadata["expected_project_id"] != one.Expected || d.refusal.Metadata["actual_project_id"] != one.Actual) {
				t.Errorf("%s: %v", one.Name, d.refusal.Metadata)
			}
		}
	}
	t.Logf("%d tokens", len(file.Tokens))
}

func TestVectorsJWKS(t *testing.T) {
	var file struct {
		Sets []struct {
			Name, Body string
			Kids       *[]string
		}
	}
	readVectors(t, "jwks.json", &file)
	for _, one := range file.Sets {
		found := readKeys([]byte(one.Body))
		if (found == nil) != (one.Kids == nil) {
			t.Errorf("%s: %v", one.Name, found)
			continue
		}
		kids := []string{}
		for kid := range found {
			kids = append(kids, kid)
		}
		sort.Strings(kids)
		if found != nil && !reflect.DeepEqual(kids, *one.Kids) {
			t.Errorf("%s: %v", one.Name, kids)
		}
	}
	t.Logf("%d sets", len(file.Sets))
}

type setClock struct{ at, system time.Duration }

func (clock *setClock) Elapsed() time.Duration { return clock.at }
func (clock *setClock) Now() time.Duration     { return clock.system }

func TestVectorsClocks(t *testing.T) {
	var file struct {
		Clocks []struct {
			Name  string
			Steps []struct {
				At, System, Now int64
				Date            *int64
				Agrees          bool
			}
		}
	}
	readVectors(t, "clock.json", &file)
	for _, one := range file.Clocks {
		clock := &setClock{system: millis(one.Steps[0].System)}
		now := newTime(clock)
		for _, step := range one.Steps {
			clock.at, clock.system = millis(step.At), millis(step.System)
			if step.Date != nil && now.observe(time.Duration(*step.Date)*time.Second) != step.Agrees {
				t.Errorf("%s at %d: the date", one.Name, step.At)
			}
			if now.now() != millis(step.Now) {
				t.Errorf("%s at %d: %v", one.Name, step.At, now.now())
			}
		}
	}
	t.Logf("%d clocks", len(file.Clocks))
}

type streamsFile struct {
	head
	Now     int64 `json:"now_ms"`
	Tokens  map[string]string
	Streams []streamCase
}

type streamCase struct {
	settings
	Name  string
	Steps []struct {
		At         int64
		Open, Line *string
		Line64     *string `json:"line_base64"`
		Part       *string
		Long       int `json:"long_line"`
		Answer     int
		Body, End  string
		Close      bool
		Ahead      *int64 `json:"clock_ahead"`
		Token      string
		Verdict    string
		Because    string
		Forget     bool
		Entries    *int
	}
}

func TestVectorsStreams(t *testing.T) {
	recorded, err := filepath.Glob(filepath.Join("..", "vectors", "recorded-*.json"))
	if err != nil || len(recorded) == 0 {
		t.Fatal("no recorded streams", err)
	}
	for _, path := range append(recorded, "streams.json") {
		var file streamsFile
		readVectors(t, filepath.Base(path), &file)
		for _, one := range file.Streams {
			followVector(t, &file, &one, true)
			followVector(t, &file, &one, false)
		}
		t.Logf("%s: %d streams, whole and byte by byte", filepath.Base(path), len(file.Streams))
	}
}

func followVector(t *testing.T, file *streamsFile, stream *streamCase, isWhole bool) {
	clock := &fixedClock{start: millis(file.Now)}
	s, f := guardOf(t, file.head, clock, stream.settings)
	var p progress
	var reader *streamReader
	feedBytes := func(chunk []byte) streamEnd {
		if isWhole {
			return reader.read(chunk, clock.at)
		}
		for at := range chunk {
			if end := reader.read(chunk[at:at+1], clock.at); end != "" {
				return end
			}
		}
		return ""
	}
	long := func(size int) streamEnd {
		chunk := bytes.Repeat([]byte("x"), 65_536)
		for sent := 0; sent < size; sent += len(chunk) {
			if end := reader.read(chunk, clock.at); end != "" {
				return end
			}
			if sent > lineBytesMax {
				t.Fatalf("%s: a line of %d bytes", stream.Name, sent)
			}
		}
		return ""
	}
	for _, step := range stream.Steps {
		clock.at = millis(step.At)
		if step.Open != nil {
			if reader != nil || p.cursor != *step.Open {
				t.Errorf("%s at %d: opens with %q", stream.Name, step.At, p.cursor)
			}
			reader = newStreamReader(f, &p, clock.at)
		}
		if step.Answer != 0 {
			p.refuse(step.Answer, []byte(step.Body))
			reader = nil
		}
		var end streamEnd
		switch {
		case step.Line != nil:
			end = feedBytes([]byte(*step.Line + "\n"))
		case step.Line64 != nil:
			line, err := base64.StdEncoding.DecodeString(*step.Line64)
			if err != nil {
				t.Fatal(err)
			}
			end = feedBytes(append(line, '\n'))
		case step.Part != nil:
			end = feedBytes([]byte(*step.Part))
		case step.Long != 0:
			end = long(step.Long)
		}
		if string(end) != step.End {
			t.Errorf("%s at %d: ends with %q instead of %q", stream.Name, step.At, end, step.End)
		}
		if end != "" || step.Close {
			reader = nil
		}
		if step.Ahead != nil {
			clock.ahead = millis(*step.Ahead)
		}
		if step.Forget {
			s.revocations.set.Load().forget(clock.at)
		}
		if size := s.revocations.set.Load().size(); step.Entries != nil && size != *step.Entries {
			t.Errorf("%s at %d: %d entries", stream.Name, step.At, size)
		}
		if step.Token != "" {
			d, name := decide(s, file.Tokens[step.Token])
			because := ""
			if d.refusal != nil {
				because = string(d.refusal.Because)
			}
			if name != step.Verdict || because != step.Because {
				t.Errorf("%s at %d: %s: %s %s instead of %s %s", stream.Name, step.At, step.Token, name, because, step.Verdict, step.Because)
			}
		}
	}
}

func TestVectorsRefusals(t *testing.T) {
	var file struct {
		Refusals []struct {
			Reason Reason
			Given  struct {
				ExpiredAt              int64 `json:"expired_at_ms"`
				Project, User, Session string
				Expected               string `json:"expected_project"`
				Actual                 string `json:"actual_project"`
				ACR                    []string
				MaxAge                 int64 `json:"max_age"`
			}
			Status  int
			Headers map[string]string
			Body    any
		}
		Credentials []struct {
			Headers []string
			Token   *string
			Verdict Reason
		}
	}
	readVectors(t, "refusals.json", &file)
	for _, one := range file.Refusals {
		given := one.Given
		refusal := map[Reason]*Refusal{
			CredentialsMissing: credentialsMissing, UnparsableAccessToken: unparsable, SessionRevoked: revoked,
			AccessTokenSuperseded: superseded, VerificationUnavailable: unavailable(StaleFeed),
			AccessTokenExpired: expired(&Principal{
				ProjectID: given.Project, UserID: given.User, SessionID: given.Session, expiresAt: given.ExpiredAt / 1000,
			}),
			WrongProject: wrongProject(given.Expected, given.Actual),
			InsufficientUserAuthentication: insufficientAuthentication(Requirement{
				given.ACR, time.Duration(given.MaxAge) * time.Second,
			}),
		}[one.Reason]
		recorder := httptest.NewRecorder()
		refusal.ServeHTTP(recorder, nil)
		headers := map[string]string{}
		for name := range recorder.Header() {
			headers[strings.ToLower(name)] = recorder.Header().Get(name)
		}
		var body any
		if err := json.Unmarshal(recorder.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if recorder.Code != one.Status || !reflect.DeepEqual(headers, one.Headers) || !reflect.DeepEqual(body, one.Body) {
			t.Errorf("%s: %d %v %v", one.Reason, recorder.Code, headers, body)
		}
	}
	for _, one := range file.Credentials {
		token, isThere, refusal := bearer(one.Headers)
		if (refusal != nil) != (one.Verdict != "") || isThere != (one.Token != nil) || isThere && token != *one.Token {
			t.Errorf("%v: %q %v %v", one.Headers, token, isThere, refusal)
		}
	}
	t.Logf("%d refusals, %d credentials", len(file.Refusals), len(file.Credentials))
}
