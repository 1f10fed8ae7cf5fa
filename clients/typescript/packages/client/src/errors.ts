/** The reasons that the server gives (docs/reference/errors.md). A test finds those that are missing. */
export type ServerReason =
    | "CREDENTIALS_MISSING"
    | "UNPARSABLE_ACCESS_TOKEN"
    | "ACCESS_TOKEN_EXPIRED"
    | "ACCESS_TOKEN_SUPERSEDED"
    | "INVALID_PROJECT_FOR_ACCESS_TOKEN"
    | "SESSION_REVOKED"
    | "INVALID_SERVER_KEY"
    | "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED"
    | "CLIENT_AUTHENTICATION_REQUIRED"
    | "INSUFFICIENT_USER_AUTHENTICATION"
    | "INSUFFICIENT_ACCESS_TYPE"
    | "NOT_YOUR_USER"
    | "CROSS_ORIGIN_REQUEST"
    | "AMBIGUOUS_COOKIE"
    | "SESSION_NOT_FOUND"
    | "CANNOT_DELETE_CURRENT_SESSION"
    | "SESSION_LIMIT_REACHED"
    | "PROJECT_NOT_FOUND"
    | "SCHEMA_ERROR"
    | "RATE_LIMITED"
    | "FEED_INTERRUPTED"
    | "SUBSCRIBER_TOO_SLOW"
    | "TOO_MANY_ENTRIES"
    | "VERIFICATION_UNAVAILABLE"
    | "STORE_UNAVAILABLE"
    | "DEADLINE_EXCEEDED"
    | "METHOD_NOT_FOUND"
    | "UNSUPPORTED_ENCODING"
    | "INTERNAL"
    | "ROUTE_NOT_FOUND"
    | "METHOD_NOT_ALLOWED"
    | "UNSUPPORTED_MEDIA_TYPE"
    | "BODY_TIMEOUT"
    | "BODY_TOO_LARGE"
    | "BODY_UNREADABLE"
    | "BAD_REPLY";

/**
 * The reasons that the client gives itself:
 *
 * - `UNREACHABLE`: no response, or a broken one: offline, a DNS or TLS failure, CORS.
 * - `TIMED_OUT`: no complete response within `timeoutMs`.
 * - `BAD_RESPONSE`: a response that is not sessiond's, or is too large: a captive portal, a proxy's error page.
 * - `NOT_SIGNED_IN`: no session to act with, or it was signed out during the call.
 * - `ORIGIN_NOT_ALLOWED`: `fetch` was called for an origin that is not in `apiOrigins`.
 * - `MALFORMED_TOKENS`: `signIn` was called with something else than a session's tokens.
 */
export type ClientReason =
    | "UNREACHABLE"
    | "TIMED_OUT"
    | "BAD_RESPONSE"
    | "NOT_SIGNED_IN"
    | "ORIGIN_NOT_ALLOWED"
    | "MALFORMED_TOKENS";

export type Reason = ServerReason | ClientReason;

/** A failed call. Branch on `reason`; the message is for people, and may change. Never contains a token. */
export class SessiondError extends Error {
    override readonly name = "SessiondError";

    constructor(
        readonly reason: Reason,
        message: string,
        /** The HTTP status; 0 without a usable response. */
        readonly status = 0,
        /** How long the server asks to wait before a retry, in milliseconds. */
        readonly retryAfterMs = 0,
        /** The response's `x-request-id`, by which the server's log is searched. */
        readonly requestId = "",
    ) {
        super(message);
    }

    /** Whether a repeat may succeed: an outage, a timeout, a rate limit. Never a reason to show a login page. */
    get isTransient(): boolean {
        const { reason, status } = this;
        return ["UNREACHABLE", "TIMED_OUT", "BAD_RESPONSE"].includes(reason) || status === 408 || status === 429 || status >= 500;
    }
}

export const notSignedIn = (): SessiondError => new SessiondError("NOT_SIGNED_IN", "not signed in");
