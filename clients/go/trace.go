package guard

import (
	"context"
	"net/http"
	"strings"
)

// The longest traceparent and tracestate that are passed on. W3C Trace Context §3.3.1.5 asks for at least 512.
const traceBytesMax = 512

type traceKey struct{}

// WithTrace returns a context for [Guard.Verify] with the trace of a request (W3C Trace Context): if sessiond is asked about its
// token, the call carries the request's traceparent and tracestate. [Guard.Handler] does so.
func WithTrace(ctx context.Context, header http.Header) context.Context {
	if parent := only(header, "Traceparent"); parent != nil {
		return context.WithValue(ctx, traceKey{}, [2][]string{parent, only(header, "Tracestate")})
	}
	return ctx
}

// only returns the values of a header if there is exactly one, which is short. sessiond checks the form.
func only(header http.Header, name string) []string {
	values := header[name]
	isOther := func(character rune) bool { return character < ' ' || character > '~' }
	if len(values) != 1 || len(values[0]) > traceBytesMax || strings.IndexFunc(values[0], isOther) >= 0 {
		return nil
	}
	return values
}

func addTrace(ctx context.Context, header http.Header) {
	trace, _ := ctx.Value(traceKey{}).([2][]string)
	for at, name := range []string{"Traceparent", "Tracestate"} {
		if trace[at] != nil {
			header[name] = trace[at]
		}
	}
}
