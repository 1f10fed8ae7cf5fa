import { Clock } from "./clock.js";
import { SessiondError, notSignedIn } from "./errors.js";
import { memoryStorage, usableLocalStorage } from "./storage.js";
import { type Held, decode, encode, isStale, parse } from "./tokens.js";
import type {
    ClientOptions, Session, SessionPage, SignedOutReason, State, TokenStorage, Tokens,
} from "./types.js";
import { type Wire, call, follow } from "./wire.js";

const CURRENT = "/auth/sessions/current";

/** How long the stream may be silent: it has a heartbeat every second. In milliseconds. */
const SILENCE_MS = 10_000;

/** The first and the longest delay before a repeat that nobody waits for, in milliseconds. */
const RETRY_MS = 500;
const RETRY_MS_MAX = 30_000;

/** The longest time for which calls fail at once after a failed refresh: a user may be waiting. In milliseconds. */
const PAUSE_MS_MAX = 4_000;

/** A 401 to a token that was renewed this recently is not about its age. In milliseconds. */
const FRESH_MS = 2_000;

/** The most ended sessions that are remembered. */
const ENDED_MAX = 16;

const isBrowser = typeof document !== "undefined";

/** Whether the server says that the session has ended, or that there are no cookies. */
const isOver = ({ reason }: SessiondError): boolean =>
    ["SESSION_REVOKED", "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED", "CREDENTIALS_MISSING"].includes(reason);

/** A delay that doubles, with jitter, so that the tabs of a recovering server do not come back at the same moment. */
const delay = (tries: number): number => Math.min(RETRY_MS * 2 ** tries, RETRY_MS_MAX) * (0.5 + Math.random() / 2);

/** What tabs tell each other: never a token. */
interface News {
    /** This session has ended. */
    ended?: string;
    reason?: SignedOutReason;
    /** In cookie mode: the cookies are of this session, and until when its access token is good. */
    session?: string;
    until?: number;
}

type Listener<T> = (value: T) => void;

/** Calls each listener. One that throws does not stop the others, or the client. */
function tell<T>(listeners: Set<Listener<T>>, value: T): void {
    for (const listener of [...listeners]) {
        try {
            listener(value);
        } catch (error) {
            queueMicrotask(() => {
                throw error;
            });
        }
    }
}

function added<T>(listeners: Set<Listener<T>>, listener: Listener<T>): () => void {
    listeners.add(listener);
    return () => void listeners.delete(listener);
}

/** Keeps one user signed in. One client per page and project; tabs that share a storage share the session. */
export class Client {
    readonly #wire: Wire;
    readonly #storage: TokenStorage;
    readonly #key: string;
    readonly #origins: Set<string>;
    /** In cookie mode: the headers of each call. Elsewhere absent. */
    readonly #cookie: Record<string, string> | undefined;
    readonly #channel: BroadcastChannel | undefined;
    readonly #closed = new AbortController();
    readonly #ready: Promise<void>;

    readonly #stateListeners = new Set<Listener<State>>();
    readonly #outListeners = new Set<Listener<SignedOutReason>>();
    readonly #sessionListeners = new Set<Listener<void>>();

    #state: State = { status: "unknown" };
    #held: Held | undefined;
    /** Grows with each sign-in and sign-out. What began in an earlier one changes nothing. */
    #epoch = 0;
    /** A refresh, or in cookie mode the question whose the cookies are. */
    #refreshing: Promise<void> | undefined;
    #failures = 0;
    #pausedUntil = -Infinity;
    #lastError: SessiondError | undefined;
    /** Sessions that ended here: tokens of theirs that another tab still stores are ignored. */
    readonly #ended = new Map<string, Held | undefined>();
    readonly #waiting = new Set<() => void>();
    #stopStream: () => void = () => {};

    constructor(options: ClientOptions) {
        const { url, storage, project, storageKey = project ? `sessiond.${project}` : "sessiond", apiOrigins = [], watch = isBrowser, timeoutMs = 10_000 } = options;
        const base = isBrowser ? location.href : undefined;
        const own = new URL(url, base);
        this.#wire = {
            url: own.href.replace(/\/+$/, ""),
            fetch: options.fetch ?? ((...given) => globalThis.fetch(...given)),
            clock: new Clock(),
            timeoutMs,
        };
        this.#storage = (storage === "memory" ? undefined : (storage ?? usableLocalStorage())) ?? memoryStorage();
        this.#key = storageKey;
        if (options.cookies) this.#cookie = { "x-sessiond-csrf": "1", ...(project && { "x-sessiond-project": project }) };
        this.#origins = new Set([own, ...(base ? [base] : []), ...apiOrigins].map((one) => new URL(one, base).origin));
        if (isBrowser && storage !== "memory" && typeof BroadcastChannel !== "undefined") {
            this.#channel = new BroadcastChannel(storageKey);
            this.#channel.onmessage = ({ data }) => this.#hear(data);
        }
        if (isBrowser) {
            const { signal } = this.#closed;
            const changed = ({ key }: StorageEvent) => key === storageKey && !this.#cookie && this.#adoptStored(true);
            addEventListener("storage", changed, { signal });
            const back = () => {
                this.#pausedUntil = -Infinity;
                this.#wakeAll();
                if (document.hidden) this.#stopStream();
                // A page in the back-forward cache has heard of nothing.
                else if (!this.#cookie) void this.#adoptStored();
            };
            addEventListener("online", back, { signal });
            addEventListener("pageshow", back, { signal });
            document.addEventListener("visibilitychange", back, { signal });
        }
        this.#ready = this.#start();
        if (watch) void this.#watch();
    }

    // State

    /** What the client knows at this moment. */
    get state(): State {
        return this.#state;
    }

    /** Calls back on every change of `state`. Returns a function that stops it. */
    readonly subscribe = (listener: (state: State) => void): (() => void) => added(this.#stateListeners, listener);

    /** Calls back once when the user is signed out: here, in another tab, or anywhere else. Never because the network is down. */
    onSignedOut(listener: (reason: SignedOutReason) => void): () => void {
        return added(this.#outListeners, listener);
    }

    /** Calls back when the list of the user's sessions may have changed. */
    onSessionsChanged(listener: () => void): () => void {
        return added(this.#sessionListeners, listener);
    }

    /** Resolves when the storage has been read. */
    ready(): Promise<void> {
        return this.#ready;
    }

    /** Stops the stream, the listeners and the repeats of this client. The session goes on. */
    close(): void {
        this.#closed.abort();
        this.#stopStream();
        this.#wakeAll();
        this.#channel?.close();
    }

    #show(state: State): void {
        const before = this.#state;
        this.#state = state;
        if (JSON.stringify(before) === JSON.stringify(state)) return;
        tell(this.#stateListeners, state);
        if (state.status === "signed-out" && before.status !== "signed-out" && state.reason !== "NEVER_SIGNED_IN") {
            tell(this.#outListeners, state.reason);
        }
        this.#wakeAll();
    }

    /** Shows the held tokens. Without an error they may still be confirmed. */
    #showHeld(error?: SessiondError): void {
        const held = this.#held!;
        const { userId, sessionId, claims } = held;
        const identity = { userId, sessionId, claims };
        const isGood = this.#wire.clock.now() < held.expiresAt;
        this.#show(isGood ? { status: "signed-in", ...identity } : { status: "unknown", ...identity, ...(error && { error }) });
    }

    // Tokens, here and in the storage

    async #start(): Promise<void> {
        const epoch = this.#epoch;
        const ending = await this.#read(`${this.#key}.ending`);
        if (this.#cookie) {
            for (const sessionId of ending?.split("\n") ?? []) this.#remember(sessionId);
            await this.#probe().catch(() => {});
            return;
        }
        for (const line of ending?.split("\n") ?? []) {
            const held = parse(line);
            if (held) void this.#end(held);
        }
        const stored = await this.#stored();
        if (epoch !== this.#epoch) return;
        if (stored) this.#hold(stored);
        else this.#show({ status: "signed-out", reason: "NEVER_SIGNED_IN" });
    }

    async #read(key: string): Promise<string | null> {
        try {
            return await this.#storage.getItem(key);
        } catch {
            return null;
        }
    }

    /** Begins at once: the page may be closing. */
    async #write(key: string, value: string | null): Promise<void> {
        try {
            await (value === null ? this.#storage.removeItem(key) : this.#storage.setItem(key, value));
        } catch {}
    }

    /** The stored tokens. Those of a session that has ended here are removed: a tab that is late has stored them. */
    async #stored(): Promise<Held | undefined> {
        const stored = parse(await this.#read(this.#key));
        if (!stored || !this.#ended.has(stored.sessionId)) return stored;
        await this.#write(this.#key, null);
        return undefined;
    }

    #hold(held: Held): void {
        this.#wire.clock.isPast(held.issuedAt);
        if (held.sessionId !== this.#held?.sessionId) this.#stopStream();
        this.#held = held;
        this.#showHeld();
    }

    /** In cookie mode: asks whose the cookies are. Shows `unknown` and rejects if that cannot be told. */
    #probe(): Promise<void> {
        return this.#refreshing ?? this.#single(this.#ask());
    }

    async #ask(): Promise<void> {
        const epoch = this.#epoch;
        try {
            const [session, until] = await this.#cookieSession();
            if (epoch !== this.#epoch) return;
            this.#failures = 0;
            this.#holdCookies(session, until);
        } catch (error) {
            if (epoch !== this.#epoch) return;
            if (isOver(error as SessiondError)) return this.#drop(this.#held ? "SESSION_REVOKED" : "NEVER_SIGNED_IN");
            if (this.#held) this.#showHeld(error as SessiondError);
            else {
                this.#hesitate(error as SessiondError);
                this.#show({ status: "unknown", error: error as SessiondError });
            }
            throw error;
        }
    }

    #holdCookies({ id: sessionId, user_id: userId, claims = {} }: Session, until: number): void {
        const now = this.#wire.clock.now();
        const before = this.#held?.sessionId === sessionId ? this.#held : undefined;
        const isKnown = before && until === Infinity && now < before.expiresAt;
        const age = isKnown ? before : { access: `${performance.now()}`, issuedAt: until < Infinity ? now : 0, expiresAt: until };
        const held = { ...age, userId, sessionId, claims, refresh: "" };
        // A sign-out of an earlier page that the server has not confirmed.
        if (this.#ended.has(sessionId)) {
            void this.#end(held);
            return this.#drop("SIGNED_OUT");
        }
        if (this.#ended.size > 0) this.#writeEnding();
        // Signed in as somebody else: a refresh that has begun for the earlier session changes nothing.
        if (!before) this.#epoch++;
        this.#hold(held);
        this.#publish({ session: sessionId, until });
    }

    /** The session of the cookies, and until when its access token is good, if known. Refreshes if needed. */
    async #cookieSession(): Promise<[Session, number]> {
        const ask = () => call(this.#wire, "GET", CURRENT, { headers: this.#cookie! });
        try {
            return [await ask(), Infinity];
        } catch (error) {
            // An access cookie that is missing or no good does not say that the refresh cookie is.
            if ((error as SessiondError).status !== 401 || (error as SessiondError).reason === "SESSION_REVOKED") throw error;
            const until = await this.#refreshCookies();
            return [await ask(), until];
        }
    }

    /** Returns until when the new access token is good, by the server's clock. */
    async #refreshCookies(): Promise<number> {
        const { expires_in } = await call(this.#wire, "POST", `${CURRENT}/refresh`, { headers: this.#cookie! });
        return this.#wire.clock.now() + expires_in * 1e3;
    }

    /**
     * Another tab changed the storage. An empty one is not a sign-out: that is announced, and the server knows. If the
     * other tab removed its session while this one stored another, it is stored again.
     */
    async #adoptStored(isRemoved = false): Promise<void> {
        const stored = await this.#stored();
        if (stored && stored.access !== this.#held?.access) this.#hold(stored);
        else if (!stored && isRemoved && this.#held && this.#channel) await this.#save(this.#held);
    }

    /** News of another tab: a session has ended, or the storage has changed. */
    async #hear(news?: News): Promise<void> {
        const { ended, reason, session, until } = news ?? {};
        if (ended) {
            this.#remember(ended);
            if (ended === this.#held?.sessionId) this.#drop(reason ?? "SIGNED_OUT_IN_ANOTHER_TAB");
        }
        if (!this.#cookie) return this.#adoptStored(Boolean(ended));
        if (session && session !== this.#held?.sessionId) {
            // Not by what was asked before this.
            this.#refreshing = undefined;
            await this.#probe().catch(() => {});
        } else if (until && until < Infinity && this.#held) {
            this.#hold({ ...this.#held, access: `${performance.now()}`, issuedAt: this.#wire.clock.now(), expiresAt: until });
        }
    }

    #publish(news: News): void {
        if (!this.#closed.signal.aborted) this.#channel?.postMessage(news);
    }

    async #save(held: Held): Promise<void> {
        await this.#write(this.#key, encode(held));
        this.#publish({});
    }

    #remember(sessionId: string, held?: Held): void {
        this.#ended.set(sessionId, held);
        if (this.#ended.size > ENDED_MAX) this.#ended.delete(this.#ended.keys().next().value!);
    }

    /** Signed out, for certain. */
    #drop(reason: SignedOutReason): void {
        this.#epoch++;
        this.#held = this.#refreshing = undefined;
        this.#stopStream();
        this.#show({ status: "signed-out", reason });
    }

    /** The server says that a session has ended. */
    async #over(held: Held, reason: SignedOutReason): Promise<void> {
        this.#remember(held.sessionId);
        if (this.#cookie) {
            // A sign-in in another tab may have replaced it: then the cookies are of another session.
            const epoch = this.#epoch;
            const found = await this.#cookieSession().catch(() => undefined);
            if (epoch !== this.#epoch) return;
            if (found && !this.#ended.has(found[0].id)) return this.#holdCookies(...found);
        }
        const stored = this.#cookie ? undefined : parse(await this.#read(this.#key));
        if (stored?.sessionId === held.sessionId) void this.#write(this.#key, null);
        this.#publish({ ended: held.sessionId, reason });
        if (this.#held?.sessionId !== held.sessionId) return;
        if (stored && stored.sessionId !== held.sessionId && !this.#ended.has(stored.sessionId)) this.#hold(stored);
        else this.#drop(reason);
    }

    // Signing in and out

    /**
     * Begins to use a session's tokens, which your backend got from `CreateSession`. In cookie mode without tokens, after
     * the response that set the cookies: it asks whose they are.
     */
    async signIn(tokens?: Tokens): Promise<void> {
        const held = decode(tokens ?? null);
        if (!held && !this.#cookie) throw new SessiondError("MALFORMED_TOKENS", "signIn needs an access token and a refresh token");
        this.#epoch++;
        this.#refreshing = undefined;
        this.#failures = 0;
        this.#pausedUntil = -Infinity;
        if (this.#cookie || !held) return this.#probe();
        this.#hold(held);
        await this.#save(held);
    }

    /**
     * Signs out: at once in all tabs, then at the server. Resolves when the server has confirmed it. Repeats until then
     * while the page lives, and after a reload; the request outlives the page. Do not wait for it to show the login page.
     */
    async signOut(): Promise<void> {
        if (!this.#held && !this.#cookie) await this.#ready;
        const held = this.#held;
        if (!held) {
            // The cookies may be of a session, although it is not known yet.
            if (!this.#cookie || this.#state.status === "signed-out") return;
            this.#drop("SIGNED_OUT");
            return this.#end();
        }
        const isOurs = (text: string | null) => (parse(text)?.sessionId ?? held.sessionId) === held.sessionId;
        const forget = async (text: string | null) => {
            if (isOurs(text)) await this.#write(this.#key, null);
        };
        // Without an `await` if the storage needs none: the page may be closing.
        try {
            const stored = this.#cookie ? null : this.#storage.getItem(this.#key);
            if (stored instanceof Promise) void stored.then(forget, () => {});
            else void forget(stored);
        } catch {}
        this.#publish({ ended: held.sessionId });
        const ended = this.#end(held);
        this.#drop("SIGNED_OUT");
        await ended;
    }

    /** Revokes a session until the server has confirmed it; in cookie mode without one, that of the cookies. */
    async #end(held?: Held): Promise<void> {
        const began = performance.now();
        if (held) {
            this.#remember(held.sessionId, held);
            this.#writeEnding();
        }
        for (let tries = 0; !this.#closed.signal.aborted; tries++) {
            try {
                if (tries && this.#cookie) {
                    const [{ id, created_at }] = await this.#cookieSession();
                    // The cookies may be of another session by now.
                    if (held ? id !== held.sessionId : Date.parse(created_at) > this.#wire.clock.now() - performance.now() + began) break;
                    this.#remember(id, held);
                    if (id === this.#held?.sessionId) this.#drop("SIGNED_OUT");
                }
                const headers = this.#cookie ?? { authorization: `Bearer ${held!.access}`, "x-refresh-token": held!.refresh };
                await call(this.#wire, "DELETE", CURRENT, { headers, keepalive: true });
                break;
            } catch (error) {
                // Neither token was accepted: there is nothing to revoke.
                if (!(error as SessiondError).isTransient) break;
                await this.#pause(Math.max(delay(tries), (error as SessiondError).retryAfterMs));
            }
        }
        if (this.#closed.signal.aborted || !held) return;
        this.#remember(held.sessionId);
        this.#writeEnding();
    }

    /** Stores the sign-outs that the server has not confirmed; in cookie mode the session, else its tokens. */
    #writeEnding(): void {
        const lines = [...this.#ended.values()].flatMap((held) => (held ? (this.#cookie ? held.sessionId : encode(held)) : []));
        void this.#write(`${this.#key}.ending`, lines.join("\n") || null);
    }

    /** Waits, but not longer than until the network is back or something else has changed. */
    async #pause(ms: number): Promise<void> {
        await new Promise<void>((go) => {
            const end = () => {
                clearTimeout(timer);
                this.#waiting.delete(end);
                go();
            };
            const timer = setTimeout(end, ms);
            this.#waiting.add(end);
        });
    }

    #wakeAll(): void {
        for (const end of [...this.#waiting]) end();
    }

    // Refreshing

    /** An access token that the server accepts at this moment, as far as known. Refreshes if needed. Meaningless in cookie mode. */
    accessToken(): Promise<string> {
        return this.#token();
    }

    /** Refreshes now. Parallel calls share one request. */
    async refresh(): Promise<void> {
        await this.#ready;
        this.#pausedUntil = -Infinity;
        await this.#renew();
    }

    /** A token other than `refused`. */
    async #token(refused?: string): Promise<string> {
        await this.#ready;
        if (this.#cookie && !this.#held && this.#state.status === "unknown") await this.#renew();
        const held = this.#held;
        if (!held) throw notSignedIn();
        const { clock } = this.#wire;
        if (held.access === refused || isStale(held, clock.now())) {
            try {
                await this.#renew(refused);
            } catch (error) {
                // Early renewal is a convenience: the token is still good.
                if (this.#held !== held || held.access === refused || clock.now() >= held.expiresAt) throw error;
            }
        }
        if (!this.#held) throw notSignedIn();
        return this.#held.access;
    }

    #renew(refused?: string): Promise<void> {
        if (this.#refreshing) return this.#refreshing;
        if (performance.now() < this.#pausedUntil) {
            // The token may have expired since the last attempt.
            if (this.#held) this.#showHeld(this.#lastError);
            return Promise.reject(this.#lastError);
        }
        return this.#single(this.#held || !this.#cookie ? this.#exchange(refused) : this.#ask());
    }

    #single(run: Promise<void>): Promise<void> {
        const running = run.finally(() => {
            if (this.#refreshing === running) this.#refreshing = undefined;
        });
        return (this.#refreshing = running);
    }

    /** Lets calls fail at once for a while. */
    #hesitate(error: SessiondError): void {
        this.#lastError = error;
        this.#pausedUntil = performance.now() + Math.max(Math.min(delay(this.#failures++), PAUSE_MS_MAX), error.retryAfterMs);
    }

    async #exchange(refused?: string): Promise<void> {
        const epoch = this.#epoch;
        const { clock } = this.#wire;
        const mine = this.#held;
        if (!mine) throw notSignedIn();
        const held = (!this.#cookie && (await this.#stored())) || mine;
        if (epoch !== this.#epoch) throw notSignedIn();
        // Another tab was faster.
        if (held.access !== mine.access && held.access !== refused && !isStale(held, clock.now())) return this.#hold(held);
        try {
            if (this.#cookie) {
                const until = await this.#refreshCookies();
                if (epoch !== this.#epoch) throw notSignedIn();
                this.#failures = 0;
                this.#hold({ ...held, access: `${performance.now()}`, issuedAt: clock.now(), expiresAt: until });
                return this.#publish({ session: held.sessionId, until });
            }
            const headers = { "x-refresh-token": held.refresh };
            const next = decode(await call(this.#wire, "POST", `${CURRENT}/refresh`, { headers }));
            if (!next) throw new SessiondError("BAD_RESPONSE", "a refresh without tokens");
            const stored = await this.#stored();
            // Signed out, or in as someone else, in the meantime: the result is discarded.
            if (epoch !== this.#epoch) throw notSignedIn();
            this.#failures = 0;
            // This tab may have slept since the response. Tokens of another tab that are newer must not be overwritten:
            // an old refresh token whose successor was used looks stolen.
            if (stored && ![held.refresh, next.refresh].includes(stored.refresh)) return this.#hold(stored);
            this.#hold(next);
            await this.#save(next);
        } catch (caught) {
            const error = caught as SessiondError;
            if (epoch !== this.#epoch) throw notSignedIn();
            if (isOver(error)) {
                const stored = this.#cookie ? undefined : await this.#stored();
                if (epoch !== this.#epoch) throw notSignedIn();
                if (stored && stored.refresh !== held.refresh) return this.#hold(stored);
                await this.#over(held, "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED");
                if (this.#held) return;
            } else {
                // In cookie mode a refused token may be the only sign that it has expired.
                if (refused && held.expiresAt === Infinity) this.#held = { ...held, expiresAt: 0 };
                this.#hesitate(error);
                this.#showHeld(error);
            }
            throw error;
        }
    }

    // Calls

    /**
     * `fetch` for your API: adds the access token, and after a 401 refreshes and repeats once. A body that can be read
     * only once is not repeated: the 401 is returned. Calls only the page's own origin, sessiond's and `apiOrigins`.
     *
     * Throws what `fetch` throws, and a `SessiondError` if no token can be obtained.
     */
    readonly fetch = async (input: string | URL | Request, init: RequestInit = {}): Promise<Response> => {
        const request = input instanceof Request ? input : undefined;
        const url = new URL(request?.url ?? String(input), isBrowser ? location.href : undefined);
        if (!this.#origins.has(url.origin)) {
            throw new SessiondError("ORIGIN_NOT_ALLOWED", `${url.origin} is not in apiOrigins`);
        }
        const { body } = init;
        const isStream = body instanceof ReadableStream || (typeof body === "object" && body && Symbol.asyncIterator in body);
        const isOnce = isStream || (request && !body && !["GET", "HEAD"].includes(request.method));
        const send = (token: string) => {
            const headers = new Headers(init.headers ?? request?.headers);
            if (!this.#cookie) headers.set("authorization", `Bearer ${token}`);
            return this.#wire.fetch(input, { ...init, headers });
        };
        const token = await this.#token();
        const response = await send(token);
        if (response.status !== 401 || isOnce || !this.#helps(token, response)) return response;
        try {
            const next = await this.#token(token);
            void response.body?.cancel().catch(() => {});
            return await send(next);
        } catch (error) {
            // Signed out by the server's word: the 401 was right.
            if (this.#state.status === "signed-out") return response;
            throw error;
        }
    };

    /** Whether a new token may change a 401: not if the token is new, or the user has to authenticate again (RFC 9470). */
    #helps(token: string, response: Response): boolean {
        const held = this.#held;
        const now = this.#wire.clock.now();
        const isNew = held?.access === token && now - held.issuedAt < FRESH_MS && now < held.expiresAt;
        return !isNew && !response.headers.get("www-authenticate")?.includes("insufficient_user_authentication");
    }

    /** Calls sessiond as the user, and once more after a refresh if the token was refused. */
    async #call(method: string, path: string, body?: unknown): Promise<any> {
        const ask = (token: string) => call(this.#wire, method, path, {
            headers: { ...(this.#cookie ?? { authorization: `Bearer ${token}` }), ...(body ? { "content-type": "application/json" } : {}) },
            ...(body ? { body: JSON.stringify(body) } : {}),
        });
        const token = await this.#token();
        const held = this.#held!;
        try {
            return await ask(token);
        } catch (error) {
            const { reason, status } = error as SessiondError;
            if (reason === "SESSION_REVOKED") await this.#over(held, reason);
            if (status !== 401 || reason === "SESSION_REVOKED" || reason === "INSUFFICIENT_USER_AUTHENTICATION") throw error;
            return await ask(await this.#token(token));
        }
    }

    /** Lists the user's live sessions, newest first. A page may have fewer than asked for, even none, before the last one. */
    listSessions(page: { pageSize?: number; pageToken?: string } = {}): Promise<SessionPage> {
        const query = new URLSearchParams({ page_size: String(page.pageSize ?? 0), page_token: page.pageToken ?? "" });
        return this.#call("GET", `/auth/sessions?${query}`);
    }

    /** The current session, as the server has it. */
    currentSession(): Promise<Session> {
        return this.#call("GET", CURRENT);
    }

    /** Revokes a session of the user; the current one by signing out. Succeeds if it has already ended. */
    async revokeSession(id: string): Promise<void> {
        if (this.#held?.sessionId === id) await this.signOut();
        else await this.#call("DELETE", `/auth/sessions/${encodeURIComponent(id)}`);
    }

    /** Revokes all sessions of the user but this one. Returns how many were live. */
    async revokeOtherSessions(): Promise<number> {
        return (await this.#call("POST", "/auth/sessions:revokeAll", { except_current: true })).revoked_count;
    }

    // The stream

    /** Follows the user's stream while signed in and visible. */
    async #watch(): Promise<void> {
        const { signal } = this.#closed;
        await this.#ready;
        let isFirst = true;
        for (let tries = 0; !signal.aborted; ) {
            if (this.#state.status === "signed-out" || (isBrowser && document.hidden)) {
                tries = 0;
                await this.#pause(2 ** 31 - 1);
                continue;
            }
            let held: Held | undefined;
            try {
                // Pages without this client may have signed out, or somebody else in, while this one did not look.
                if (this.#cookie && this.#held && !isFirst) await this.#probe();
                isFirst = false;
                const token = await this.#token();
                held = this.#held!;
                const stop = new AbortController();
                this.#stopStream = () => stop.abort();
                if (signal.aborted || (isBrowser && document.hidden)) continue;
                const headers = { ...(this.#cookie ?? { authorization: `Bearer ${token}` }), accept: "application/x-ndjson" };
                await follow(this.#wire, "/auth/revocations:watch", { headers }, SILENCE_MS, stop.signal, (message) => {
                    tries = 0;
                    // What was revoked earlier is not sent: list once when the stream begins.
                    if (message.revocations || message.snapshot_complete) tell(this.#sessionListeners, undefined);
                });
            } catch (caught) {
                const error = caught as SessiondError;
                if (held && error.reason === "SESSION_REVOKED") await this.#over(held, error.reason);
                else if (held && ["ACCESS_TOKEN_EXPIRED", "ACCESS_TOKEN_SUPERSEDED", "UNPARSABLE_ACCESS_TOKEN"].includes(error.reason)) {
                    await this.#token(held.access).catch(() => {});
                }
                // With other tokens at once.
                if (!held || this.#held === held) await this.#pause(Math.max(delay(tries++), error.retryAfterMs ?? 0));
            }
        }
    }
}
