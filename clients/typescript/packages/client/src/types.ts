import type { SessiondError, ServerReason } from "./errors.js";

/** The tokens of a session, as `CreateSession` returns them. Other fields are ignored. */
export interface Tokens {
    access_token: string;
    refresh_token: string;
}

/**
 * Why this client is signed out: it signed out itself, another tab did, the server says so, or nobody has signed in.
 */
export type SignedOutReason =
    | "SIGNED_OUT"
    | "SIGNED_OUT_IN_ANOTHER_TAB"
    | "NEVER_SIGNED_IN"
    | Extract<ServerReason, "SESSION_REVOKED" | "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED">;

/** Who is signed in, from the access token. Not verified: decide nothing by it that the server does not check. */
export interface Identity {
    userId: string;
    sessionId: string;
    /** All claims of the access token, or in cookie mode the session's own. */
    claims: Readonly<Record<string, unknown>>;
}

/**
 * What the client knows.
 *
 * - `signed-in`: it holds a token that has not expired, and nothing says that the session has ended.
 * - `unknown`: it cannot tell: it is starting, or the token has expired and the server does not answer. Show what the
 *   user had, or a notice that the network is down; never the login page.
 * - `signed-out`: certain. By the user, by another tab, or by the server's word.
 *
 * An object is replaced when anything changes, and never modified.
 */
export type State =
    | ({ readonly status: "signed-in" } & Readonly<Identity>)
    | ({ readonly status: "unknown"; readonly error?: SessiondError } & Readonly<Partial<Identity>>)
    | { readonly status: "signed-out"; readonly reason: SignedOutReason };

/** A session in a list, as the API returns it (docs/reference, `Session`). Times are RFC 3339. */
export interface Session {
    id: string;
    project_id: string;
    user_id: string;
    created_at: string;
    last_used_at: string;
    expires_at: string;
    idle_expires_at: string;
    revoked_at?: string;
    revoke_reason?: string;
    is_current_session: boolean;
    is_impersonation: boolean;
    impersonator_id?: string;
    ip: string;
    user_agent: string;
    device_name?: string;
    labels: Record<string, string>;
    claims?: Record<string, unknown>;
}

/** A page of sessions, newest first. `next_page_token` is empty on the last page. */
export interface SessionPage {
    items: Session[];
    next_page_token: string;
}

/**
 * Where tokens are kept: `localStorage`, React Native's `AsyncStorage`, or your own. May be synchronous or not. A method
 * that throws counts as a storage that is empty and keeps nothing.
 */
export interface TokenStorage {
    getItem(key: string): string | null | Promise<string | null>;
    setItem(key: string, value: string): unknown;
    removeItem(key: string): unknown;
}

export interface ClientOptions {
    /** The URL of sessiond, with its base path if it has one. */
    url: string;
    /**
     * Whether the tokens are in cookies (docs/guides/cookies.md): then `url` is of the page's own origin, and no script sees
     * a token. Default: no.
     */
    cookies?: boolean;
    /** The project, needed if pages of the origin use several: in cookie mode it selects the cookies. */
    project?: string;
    /** Default: `localStorage` where it works, else memory, which is lost on reload and not shared between tabs. */
    storage?: TokenStorage | "memory";
    /** The storage key, and the channel's name. Default: `sessiond`, or `sessiond.` and the project if that is given. */
    storageKey?: string;
    /** Origins that `fetch` sends the token to, besides the page's own and sessiond's. */
    apiOrigins?: readonly string[];
    /** Whether to follow the user's stream of revocations while the page is visible. Default: in browsers. */
    watch?: boolean;
    /** The timeout of each call to sessiond, in milliseconds. Default: 10,000. */
    timeoutMs?: number;
    /** The `fetch` to use. Default: the global one. */
    fetch?: typeof globalThis.fetch;
}
