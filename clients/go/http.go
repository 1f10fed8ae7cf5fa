package guard

import (
	"context"
	"errors"
	"net/http"
)

// HandlerOption changes what a handler asks for.
type HandlerOption func(*route)

type route struct {
	isOptional  bool
	requirement Requirement
}

// Optional also lets requests without a token through; they have no principal. Requests with an invalid token are refused.
func Optional() HandlerOption { return func(r *route) { r.isOptional = true } }

// WithRequirement asks for a recent or strong authentication (RFC 9470).
func WithRequirement(requirement Requirement) HandlerOption {
	return func(r *route) { r.requirement = requirement }
}

// Handler passes on requests with a valid "Authorization: Bearer <access token>", with a principal in their context; see
// [PrincipalOf]. It refuses all others. A CORS preflight has no credential, so CORS belongs outside of it.
func (g *Guard) Handler(next http.Handler, options ...HandlerOption) http.Handler {
	var r route
	for _, option := range options {
		option(&r)
	}
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		principal, err := g.check(request, &r)
		var refusal *Refusal
		switch {
		case errors.As(err, &refusal):
			refusal.ServeHTTP(writer, request)
		case err != nil:
			// None today; whatever it may be, nobody is let in by it.
			http.Error(writer, "unavailable", http.StatusServiceUnavailable)
		case principal == nil:
			next.ServeHTTP(writer, request)
		default:
			next.ServeHTTP(writer, request.WithContext(context.WithValue(request.Context(), principalKey{}, principal)))
		}
	})
}

type principalKey struct{}

// PrincipalOf returns the signed-in user of a request that a [Guard.Handler] has passed on; nil if there is none.
func PrincipalOf(ctx context.Context) *Principal {
	principal, _ := ctx.Value(principalKey{}).(*Principal)
	return principal
}

func (g *Guard) check(request *http.Request, r *route) (*Principal, error) {
	token, isThere, refusal := bearer(request.Header.Values("Authorization"))
	if refusal == nil && !isThere {
		if r.isOptional {
			return nil, nil
		}
		refusal = credentialsMissing
	}
	if refusal != nil {
		g.counts.refused.Add(1)
		return nil, refusal
	}
	principal, err := g.Verify(WithTrace(request.Context(), request.Header), token)
	if err != nil {
		return nil, err
	}
	return principal, g.Require(principal, r.requirement)
}
