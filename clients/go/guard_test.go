package guard

import (
	"context"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// What the vectors do not show. Needs no server.

func TestMemoryOfALine(t *testing.T) {
	var file streamsFile
	readVectors(t, "streams.json", &file)
	_, f := guardOf(t, file.head, &fixedClock{}, settings{})
	reader := newStreamReader(f, &progress{}, 0)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for piece := 0; piece < 400_000; piece++ {
		if end := reader.read([]byte("xx"), 0); end != "" {
			t.Fatal(end)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4_000_000 {
		t.Errorf("%d bytes", grown)
	}
	if end := reader.read([]byte("x\n"), 0); end != "malformed" {
		t.Error(end)
	}
}

func TestTraces(t *testing.T) {
	const parent, long = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 513
	for _, one := range []struct{ given, expected http.Header }{
		{http.Header{"Traceparent": {parent}, "Tracestate": {"a=1"}, "Baggage": {"user=ada"}}, http.Header{"Traceparent": {parent}, "Tracestate": {"a=1"}}},
		{http.Header{"Traceparent": {parent}}, http.Header{"Traceparent": {parent}}},
		{http.Header{"Tracestate": {"a=1"}}, http.Header{}},
		{http.Header{"Traceparent": {parent, parent}}, http.Header{}},
		{http.Header{"Traceparent": {parent}, "Tracestate": {strings.Repeat("x", long)}}, http.Header{"Traceparent": {parent}}},
		{http.Header{"Traceparent": {strings.Repeat("x", long)}, "Tracestate": {"a=1"}}, http.Header{}},
		{http.Header{"Traceparent": {"a\r\nb: c"}}, http.Header{}},
		{http.Header{}, http.Header{}},
	} {
		passed := http.Header{}
		addTrace(WithTrace(context.Background(), one.given), passed)
		if !reflect.DeepEqual(passed, one.expected) {
			t.Errorf("%v: %v", one.given, passed)
		}
	}
}

func TestNobodyHasAuthenticated(t *testing.T) {
	var g Guard
	if err := g.Require(nil, Requirement{ACR: []string{"aal2"}}); err != credentialsMissing || g.counts.refused.Load() != 1 {
		t.Error(err, g.counts.refused.Load())
	}
}
