// Why a request is refused, and the response: the same as sessiond's own.

/** Why a request is refused: the reasons of sessiond. */
export type Reason = keyof typeof MESSAGES;

const MESSAGES = {
    CREDENTIALS_MISSING: "No credential was presented.",
    UNPARSABLE_ACCESS_TOKEN: "The access token is not one of ours.",
    ACCESS_TOKEN_EXPIRED: "The access token has expired.",
    INVALID_PROJECT_FOR_ACCESS_TOKEN: "The access token is of another project.",
    SESSION_REVOKED: "The session has ended.",
    ACCESS_TOKEN_SUPERSEDED: "The access token has outdated claims; refresh it.",
    INSUFFICIENT_USER_AUTHENTICATION: "A more recent or a stronger authentication is required.",
    VERIFICATION_UNAVAILABLE: "Whether the session has ended is not known at the moment; try again.",
} as const;

/**
 * Why a guard cannot decide: no complete snapshot has arrived yet; the feed is older than the maximum staleness; the keys
 * were never read, or are too old; the feed says that there is something about this session that the guard does not
 * understand; sessiond did not answer.
 */
export type UnavailableReason = "no_feed" | "stale_feed" | "no_keys" | "withheld" | "no_answer";

/** What a route asks of the user's authentication (RFC 9470). */
export interface Requirement {
    /** One of these `acr` values. Empty or absent: any, or none. */
    acr?: readonly string[] | undefined;
    /** The authentication is younger than this, in seconds. Half-open: exactly this age is too old. */
    maxAge?: number | undefined;
}

/** An HTTP response. */
export interface RefusalResponse {
    status: number;
    headers: Record<string, string>;
    body: string;
}

interface Details {
    metadata?: Record<string, string>;
    because?: UnavailableReason;
    challenge?: string;
}

/** A request is refused. */
export class Refusal extends Error {
    override readonly name = "Refusal";
    /** The reason on the wire. */
    readonly reason: Reason;
    /** The metadata of the reason on the wire. */
    readonly metadata: Record<string, string>;
    /** Why the guard cannot decide, for VERIFICATION_UNAVAILABLE. */
    readonly because: UnavailableReason | undefined;
    readonly #challenge: string;

    private constructor(reason: Reason, { metadata = {}, because, challenge = 'Bearer error="invalid_token"' }: Details = {}) {
        // Refusals are ordinary: a stack trace for each would cost more than the verification.
        const limit = Error.stackTraceLimit;
        Error.stackTraceLimit = 0;
        super(`${reason}: ${MESSAGES[reason]}`);
        Error.stackTraceLimit = limit;
        this.reason = reason;
        this.metadata = metadata;
        this.because = because;
        this.#challenge = challenge;
    }

    // RFC 6750 §3.1: a request without a credential gets no error code.
    static credentialsMissing = () => new Refusal("CREDENTIALS_MISSING", { challenge: "Bearer" });
    static unparsable = () => new Refusal("UNPARSABLE_ACCESS_TOKEN");
    static revoked = () => new Refusal("SESSION_REVOKED");
    static superseded = () => new Refusal("ACCESS_TOKEN_SUPERSEDED");
    static unavailable = (because: UnavailableReason) => new Refusal("VERIFICATION_UNAVAILABLE", { because });

    static expired(expiredAt: number, project: string, user: string, session: string): Refusal {
        const metadata = { expired_at_millis: String(expiredAt), project_id: project, user_id: user, refresh_token_id: session };
        return new Refusal("ACCESS_TOKEN_EXPIRED", { metadata });
    }

    static wrongProject(expected: string, actual: string): Refusal {
        const metadata = { expected_project_id: expected, actual_project_id: actual };
        return new Refusal("INVALID_PROJECT_FOR_ACCESS_TOKEN", { metadata });
    }

    static insufficientAuthentication({ acr = [], maxAge }: Requirement): Refusal {
        const metadata: Record<string, string> = {};
        if (acr.length) metadata.acr_values = acr.join(" ");
        if (maxAge !== undefined) metadata.max_age = String(maxAge);
        const message = MESSAGES.INSUFFICIENT_USER_AUTHENTICATION;
        const parameters = { error: "insufficient_user_authentication", error_description: message, ...metadata };
        const challenge = `Bearer ${Object.entries(parameters).map(([name, value]) => `${name}="${value}"`).join(", ")}`;
        return new Refusal("INSUFFICIENT_USER_AUTHENTICATION", { metadata, challenge });
    }

    /** The response, with a `google.rpc.Status` as JSON. */
    response(): RefusalResponse {
        const isUnavailable = this.reason === "VERIFICATION_UNAVAILABLE";
        const { reason, metadata } = this;
        const details: object[] = [{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", reason, domain: "sessiond", metadata }];
        if (isUnavailable) details.push({ "@type": "type.googleapis.com/google.rpc.RetryInfo", retry_delay: "1s" });
        return {
            status: isUnavailable ? 503 : 401,
            headers: {
                ...(isUnavailable ? { "retry-after": "1" } : { "www-authenticate": this.#challenge }),
                "content-type": "application/json",
                // The response depends on the moment.
                "cache-control": "no-store",
            },
            body: JSON.stringify({ code: isUnavailable ? 14 : 16, message: MESSAGES[reason], details }),
        };
    }
}

/**
 * The token of a bearer credential (RFC 6750 §2.1), from the values of the `Authorization` headers; undefined if there is
 * none. Other schemes are ignored.
 *
 * @throws {Refusal} if there are several: which one counts is ambiguous.
 */
export function bearer(headers: readonly string[]): string | undefined {
    if (headers.length > 1) throw Refusal.unparsable();
    const [header = ""] = headers;
    const space = header.indexOf(" ");
    const scheme = space < 0 ? header : header.slice(0, space);
    if (scheme.toLowerCase() !== "bearer") return undefined;
    return space < 0 ? "" : header.slice(space).replace(/^ +| +$/g, "");
}
