// The guard itself: connects, verifies, counts.

import { type Clock, Time, systemClock } from "./clock.js";
import { ACCEPTS, Progress, type StreamEnd, StreamReader } from "./follower.js";
import { Jwks, maxAge, readKeys } from "./jwks.js";
import { Refusal, type Requirement, type UnavailableReason } from "./refusal.js";
import { Revocations, type Target } from "./revocations.js";
import { NO_KEYS, Principal, TokenVerifier, UNKNOWN_KEY, isProject } from "./token.js";
import { ConfigurationError, type Replica, type TlsOptions, type Trace, UnavailableError, Upstream } from "./upstream.js";

/**
 * What happens to a token when the guard cannot know whether its session is revoked: the feed is too old or has not sent a
 * complete snapshot yet, or the keys are missing or too old.
 *
 * - `reject`: rejects it, and tells the client to try again.
 * - `introspect`: asks sessiond about it on every request. Rejects it if sessiond does not answer.
 * - `accept_until_expiry`: accepts it until it expires, unless it is known to be revoked. Rejects it before the first complete
 *   snapshot: a guard that has just started knows no revocation.
 */
export type FailMode = "reject" | "introspect" | "accept_until_expiry";

/** The configuration of a guard. */
export interface GuardOptions {
    /** The base URL of sessiond, or those of its replicas: `http://` or `https://`, a host, and optionally a port. */
    url: string | readonly string[];
    /** The project whose tokens are accepted. */
    project: string;
    /** The base URL in the tokens' `iss`, equal to sessiond's `--issuer`. Default: the first `url`. */
    issuer?: string;
    /** A server key of the project with the role `verifier`. May be omitted with a client certificate in `tls`. */
    serverKey?: string | undefined;
    tls?: TlsOptions;
    /** How old the feed of revocations may be for a token to be accepted, in milliseconds. At least 2,000. Default: 10,000. */
    maxStaleness?: number;
    /** Default: `reject`. */
    failMode?: FailMode;
    /** The most revocations that are held. Beyond it the feed grows old. Default: 1,000,000. */
    maxEntries?: number;
    /** How long `Guard.connect` waits for the keys and the first snapshot, in milliseconds. Default: 5,000. */
    startupTimeout?: number;
    /** Where warnings go. They contain neither tokens nor users. Default: `console.warn`. */
    log?: (message: string) => void;
    /** For tests. */
    clock?: Clock;
}

const MAX_STALENESS_MIN_MS = 2_000;
const REPLICAS_MAX = 64;

/** How often the stream is checked for silence, and watched tokens for their expiry. */
const TICK_MS = 250;

/** How often entries that every token has outlived are removed. */
const FORGET_INTERVAL_MS = 10_000;

/** The shortest time between two reads of the keys that unknown keys cause: anyone can make up a `kid`. */
const READ_INTERVAL_MIN_MS = 1_000;

/** How long a token under an unknown key waits for the keys to be read. */
const READ_TIMEOUT_MS = 3_000;

/** How long to wait after the keys could not be read. */
const READ_RETRY_MIN_MS = 100;
const READ_RETRY_MAX_MS = 10_000;

/** How many responses in a row with an implausible `Date` are followed by another read at once, to collect more of them. */
const IMPLAUSIBLE_MAX = 3;

/** The most introspections at once. In an outage every request is one; more are rejected rather than queued. */
const INTROSPECTIONS_MAX = 256;

/** A guard's counters and the age of its keys and revocations, at one moment. Times are in milliseconds. */
export interface Stats {
    /** The age of the feed; undefined before the first complete snapshot. */
    staleness: number | undefined;
    /** Revocations in memory. */
    entries: number;
    /** The time since the keys were last read; undefined if they never were. */
    jwksAge: number | undefined;
    accepted: number;
    /** Requests with no token, a malformed one, or another project's. */
    refused: number;
    expired: number;
    /** Tokens of revoked sessions. */
    revoked: number;
    /** Tokens that were issued before their session changed. */
    superseded: number;
    /** Tokens that the guard could not decide on. */
    unavailable: number;
    /** Accepted tokens whose user must authenticate again. */
    stepUps: number;
    /** Introspection requests to sessiond. */
    introspections: number;
    /** Streams of revocations that were opened. */
    connections: number;
    /** Complete snapshots received. */
    snapshots: number;
    /** Revocations of kinds that this version does not understand. */
    withheld: number;
}

/** The decision on a token, without asking sessiond. */
export type Decision =
    | Principal
    | Refusal
    | typeof UNKNOWN_KEY
    /** Has the principal if the signature is good. */
    | { because: UnavailableReason; principal: Principal | undefined };

/** The state that a guard's tasks and requests share. */
export class GuardState {
    readonly time: Time;
    readonly revocations = new Revocations();
    readonly jwks = new Jwks();
    readonly verifier: TokenVerifier;
    readonly project: string;
    /** The `iss` of the project's tokens. */
    readonly issuer: string;
    readonly maxStaleness: number;
    readonly maxEntries: number;
    readonly failMode: FailMode;
    readonly replicas: number;

    constructor(options: GuardOptions) {
        const urls = typeof options.url === "string" ? [options.url] : options.url;
        if (urls.length < 1 || urls.length > REPLICAS_MAX) throw new ConfigurationError(`a guard needs 1 to ${REPLICAS_MAX} urls`);
        for (const url of urls) {
            if (!/^https?:\/\/[^/?#]+\/?$/.test(url)) {
                throw new ConfigurationError(`invalid url \`${url}\`: expected http:// or https://, a host, and optionally a port`);
            }
        }
        const issuer = (options.issuer ?? urls[0] ?? "").replace(/\/+$/, "");
        if (!/^https?:\/\/./.test(issuer)) {
            throw new ConfigurationError(`invalid issuer \`${issuer}\`: expected sessiond's base URL, as in its tokens' \`iss\``);
        }
        if (!isProject(options.project)) {
            throw new ConfigurationError(`invalid project \`${options.project}\`: expected 1 to 64 of \`A-Z a-z 0-9 - _\``);
        }
        // Checked before it is sent: the operator may have configured another secret by mistake.
        if (options.serverKey !== undefined && !/^sdsk_[A-Za-z0-9_-]{64}$/.test(options.serverKey)) {
            throw new ConfigurationError("malformed server key: expected `sdsk_` followed by 64 characters");
        }
        if (options.serverKey === undefined && options.tls?.cert === undefined) {
            throw new ConfigurationError("a guard needs a server key or a client certificate");
        }
        this.maxStaleness = options.maxStaleness ?? 10_000;
        if (!(this.maxStaleness >= MAX_STALENESS_MIN_MS)) {
            throw new ConfigurationError(`maxStaleness must be at least ${MAX_STALENESS_MIN_MS} ms`);
        }
        this.maxEntries = options.maxEntries ?? 1_000_000;
        this.failMode = options.failMode ?? "reject";
        this.project = options.project;
        this.issuer = `${issuer}/projects/${this.project}`;
        this.replicas = urls.length;
        this.time = new Time(options.clock ?? systemClock);
        this.verifier = new TokenVerifier(this.project, this.issuer);
    }

    /** Decides from the cached keys and revocations. */
    decide(token: string): Decision {
        const verified = this.verifier.verify(token, this.jwks);
        if (verified === NO_KEYS) return { because: "no_keys", principal: undefined };
        if (!(verified instanceof Principal)) return verified;
        const { revocations, time } = this;
        if (verified.expiresAt <= time.now()) {
            return Refusal.expired(verified.expiresAt, verified.projectId, verified.userId, verified.sessionId);
        }
        const { set } = revocations;
        if (set.has(verified)) return Refusal.revoked();
        if (set.hasSuperseded(verified)) return Refusal.superseded();
        const because = this.#doubt(verified);
        return because ? { because, principal: verified } : verified;
    }

    #doubt(principal: Principal): UnavailableReason | undefined {
        const { revocations, time } = this;
        const age = revocations.age(time);
        if (age === undefined) return "no_feed";
        if (age > this.maxStaleness) return "stale_feed";
        if (revocations.set.hasWithheld(principal)) return "withheld";
        return this.jwks.isUsable(time.elapsed()) ? undefined : "no_keys";
    }

    /** Applies the fail mode without asking sessiond. */
    decideByFailMode(because: UnavailableReason, principal: Principal | undefined): Principal | Refusal {
        const accepts = this.failMode === "accept_until_expiry" && this.revocations.isComplete;
        return principal && accepts ? principal : Refusal.unavailable(because);
    }
}

/** Verifies the access tokens of one project. */
export class Guard {
    readonly #state: GuardState;
    readonly #upstream: Upstream;
    readonly #log: (message: string) => void;
    readonly #closed = new AbortController();
    readonly #counts = {
        accepted: 0,
        refused: 0,
        expired: 0,
        revoked: 0,
        superseded: 0,
        unavailable: 0,
        stepUps: 0,
        introspections: 0,
        connections: 0,
        snapshots: 0,
        withheld: 0,
    };
    readonly #startup: Startup = { hasSnapshot: false, hasKeys: false, error: undefined };
    #startupWaiters: (() => void)[] = [];
    readonly #reads = { begun: 0, done: 0, lastBegunAt: -Infinity, hasLastSucceeded: false };
    #readWaiters: (() => void)[] = [];
    /** Has the keys read again. */
    #wakeReader: () => void = () => undefined;
    #introspecting = 0;
    readonly #withheldKinds = new Set<string>();
    #hasWarnedOfRole = false;
    /** Tokens that are watched, by session. */
    readonly #watched = new Map<string, Set<Watch>>();

    private constructor(options: GuardOptions) {
        this.#state = new GuardState(options);
        this.#log = options.log ?? ((message) => console.warn(`sessiond guard: ${message}`));
        const { url, serverKey, tls } = options;
        const endpoints = typeof url === "string" ? [url] : url;
        this.#upstream = new Upstream({ endpoints, project: options.project, issuer: this.#state.issuer, serverKey, tls });
    }

    /**
     * Connects to sessiond, and waits until the keys and the first complete snapshot of the revocations have arrived. In an
     * outage, returns after `startupTimeout`; the fail mode then decides until they arrive.
     *
     * @throws {ConfigurationError} for invalid options, a server key that is not the project's, or a server that does not
     * issue the project's tokens. Does not throw in an outage.
     */
    static async connect(options: GuardOptions): Promise<Guard> {
        const guard = new Guard(options);
        void guard.#follow();
        void guard.#readKeys();
        const tick = setInterval(() => guard.#checkWatched(), TICK_MS);
        const forget = setInterval(() => guard.#state.revocations.set.forget(guard.#state.time.elapsed()), FORGET_INTERVAL_MS);
        guard.#closed.signal.addEventListener("abort", () => [tick, forget].forEach(clearInterval));
        try {
            const isReady = await within(options.startupTimeout ?? 5_000, guard.ready());
            if (!isReady) guard.#log("sessiond is unavailable: the fail mode decides until it answers");
            return guard;
        } catch (error) {
            guard.close();
            throw error;
        }
    }

    /** Waits until the keys and the first complete snapshot have arrived. Throws as `Guard.connect`. */
    async ready(): Promise<void> {
        const startup = this.#startup;
        const isComplete = () => startup.hasSnapshot && startup.hasKeys;
        while (!isComplete()) {
            if (startup.error) throw startup.error;
            await new Promise<void>((resolve) => this.#startupWaiters.push(resolve));
        }
    }

    /** Stops following the feed, and aborts what is watched. The guard decides nothing after that but by its fail mode. */
    close(): void {
        this.#closed.abort();
        this.#upstream.close();
        const watched = [...this.#watched.values()].flatMap((all) => [...all]);
        for (const { controller } of watched) controller.abort(Refusal.unavailable("no_feed"));
    }

    /**
     * Verifies a token. Usually without waiting; asks sessiond only in the fail mode `introspect` and about unknown keys. That call
     * carries the request's trace.
     *
     * @throws {Refusal} why the token is refused.
     */
    async verify(token: string, trace: Trace = {}): Promise<Principal> {
        let decision = this.#state.decide(token);
        if (decision === UNKNOWN_KEY) {
            decision = (await this.#readKeysNow()) ? this.#state.decide(token) : { because: "no_keys", principal: undefined };
            // The keys were just read, and this is none of them.
            if (decision === UNKNOWN_KEY) decision = Refusal.unparsable();
        }
        if (decision instanceof Principal || decision instanceof Refusal) return this.#count(decision);
        const { because, principal } = decision;
        this.#readStaleKeys(decision);
        const asks = this.#state.failMode === "introspect";
        return this.#count(asks ? await this.#introspect(token, principal, trace) : this.#state.decideByFailMode(because, principal));
    }

    /**
     * Verifies a token without waiting: unavailable where `verify` would ask sessiond.
     *
     * @throws {Refusal} why the token is refused.
     */
    verifyNow(token: string): Principal {
        return this.#count(this.#decideNow(token));
    }

    /**
     * Checks that the user has authenticated recently and strongly enough (RFC 9470).
     *
     * @throws {Refusal} INSUFFICIENT_USER_AUTHENTICATION
     */
    require(principal: Principal | undefined, requirement: Requirement): void {
        if (!principal) {
            this.countRefusal();
            throw Refusal.credentialsMissing();
        }
        if (meets(principal, requirement, this.#state.time.now())) return;
        this.#counts.stepUps += 1;
        throw Refusal.insufficientAuthentication(requirement);
    }

    /** Counts a request that carries no token to verify. */
    countRefusal(): void {
        this.#counts.refused += 1;
    }

    /**
     * A signal that is aborted when the token is no longer accepted: its session ends, it expires, or the feed grows too old.
     * For responses that go on for long. The signal's reason is the `Refusal`. Call `stop` when the response ends.
     */
    watch(token: string): { signal: AbortSignal; stop: () => void } {
        const controller = new AbortController();
        const decision = this.#decideNow(token);
        if (decision instanceof Refusal) controller.abort(decision);
        else if (this.#closed.signal.aborted) controller.abort(Refusal.unavailable("no_feed"));
        const session = decision instanceof Refusal ? "" : decision.sessionId;
        const watch: Watch = { token, controller };
        const stop = () => {
            const all = this.#watched.get(session);
            all?.delete(watch);
            if (all?.size === 0) this.#watched.delete(session);
        };
        if (!controller.signal.aborted) {
            const all = this.#watched.get(session) ?? new Set();
            this.#watched.set(session, all.add(watch));
            controller.signal.addEventListener("abort", stop);
        }
        return { signal: controller.signal, stop };
    }

    /** The guard's counters, and the age of its keys and revocations. */
    stats(): Stats {
        const { revocations, jwks, time } = this.#state;
        return {
            staleness: revocations.age(time),
            entries: revocations.set.size,
            jwksAge: jwks.age(time.elapsed()),
            ...this.#counts,
        };
    }

    /** The counters in Prometheus' text exposition format. */
    metrics(): string {
        const stats = this.stats();
        const seconds = (ms: number | undefined) => (ms === undefined ? "+Inf" : String(ms / 1_000));
        const lines: string[] = [];
        const metric = (name: string, type: string, help: string, values: Record<string, string | number>) => {
            lines.push(`# HELP sessiond_guard_${name} ${help}`, `# TYPE sessiond_guard_${name} ${type}`);
            for (const [labels, value] of Object.entries(values)) lines.push(`sessiond_guard_${name}${labels} ${value}`);
        };
        metric("staleness_seconds", "gauge", "Age of the feed of revocations", { "": seconds(stats.staleness) });
        metric("entries", "gauge", "Revocations in memory", { "": stats.entries });
        metric("jwks_age_seconds", "gauge", "Time since the keys were last read", { "": seconds(stats.jwksAge) });
        const outcomes = ["accepted", "refused", "expired", "revoked", "superseded", "unavailable"] as const;
        const verifications = outcomes.map((outcome) => [`{outcome="${outcome}"}`, stats[outcome]] as const);
        metric("verifications_total", "counter", "Verified tokens, by outcome", Object.fromEntries(verifications));
        metric("step_ups_total", "counter", "Accepted tokens whose user must authenticate again", { "": stats.stepUps });
        metric("introspections_total", "counter", "Introspection requests to sessiond", { "": stats.introspections });
        metric("connections_total", "counter", "Streams of revocations that were opened", { "": stats.connections });
        metric("snapshots_total", "counter", "Complete snapshots received", { "": stats.snapshots });
        metric("withheld_total", "counter", "Revocations of kinds that this version does not understand", { "": stats.withheld });
        return `${lines.join("\n")}\n`;
    }

    #decideNow(token: string): Principal | Refusal {
        const decision = this.#state.decide(token);
        if (decision instanceof Principal || decision instanceof Refusal) return decision;
        const doubt = decision === UNKNOWN_KEY ? ({ because: "no_keys", principal: undefined } as const) : decision;
        this.#readStaleKeys(doubt);
        return this.#state.decideByFailMode(doubt.because, doubt.principal);
    }

    /** Has the keys read if they are missing or too old: the machine may have slept, and the timer of the next read not fired yet. */
    #readStaleKeys({ because }: { because: UnavailableReason }): void {
        if (because === "no_keys" && performance.now() - this.#reads.lastBegunAt >= READ_INTERVAL_MIN_MS) this.#wakeReader();
    }

    #count(outcome: Principal | Refusal): Principal {
        const counts = this.#counts;
        if (outcome instanceof Principal) {
            counts.accepted += 1;
            return outcome;
        }
        const { reason } = outcome;
        if (reason === "ACCESS_TOKEN_EXPIRED") counts.expired += 1;
        else if (reason === "SESSION_REVOKED") counts.revoked += 1;
        else if (reason === "ACCESS_TOKEN_SUPERSEDED") counts.superseded += 1;
        else if (reason === "VERIFICATION_UNAVAILABLE") counts.unavailable += 1;
        else counts.refused += 1;
        throw outcome;
    }

    /** Asks sessiond about one token. The response is not cached. */
    async #introspect(token: string, principal: Principal | undefined, trace: Trace): Promise<Principal | Refusal> {
        if (this.#introspecting >= INTROSPECTIONS_MAX) return Refusal.unavailable("no_answer");
        this.#introspecting += 1;
        this.#counts.introspections += 1;
        try {
            const isActive = await this.#upstream.introspect(token, trace);
            // The signature and the expiry were checked here, so it is the session that has ended.
            if (!isActive) return principal ? Refusal.revoked() : Refusal.unparsable();
            const read = principal ?? this.#state.verifier.parseUnverified(token);
            const isExpired = read instanceof Principal && read.expiresAt <= this.#state.time.now();
            return isExpired ? Refusal.expired(read.expiresAt, read.projectId, read.userId, read.sessionId) : read;
        } catch {
            return Refusal.unavailable("no_answer");
        } finally {
            this.#introspecting -= 1;
        }
    }

    /** Verifies watched tokens again: those of these sessions, or all. */
    #checkWatched(sessions: Iterable<string> = [...this.#watched.keys()]): void {
        for (const session of sessions) {
            for (const { token, controller } of [...(this.#watched.get(session) ?? [])]) {
                const decision = this.#decideNow(token);
                if (decision instanceof Refusal) controller.abort(decision);
            }
        }
    }

    #onRevoked(targets: readonly Target[]): void {
        if (this.#watched.size === 0) return;
        const areSessions = targets.every((target) => "session" in target);
        this.#checkWatched(areSessions ? targets.map((target) => ("session" in target ? target.session : "")) : undefined);
    }

    #startupChanged(change: Partial<Startup>): void {
        Object.assign(this.#startup, change);
        for (const waiter of this.#startupWaiters.splice(0)) waiter();
    }

    /** Reads the keys at the start, at half of their `max-age`, and whenever a token names an unknown one. */
    async #readKeys(): Promise<void> {
        let [failures, implausible] = [0, 0];
        const reads = this.#reads;
        while (!this.#closed.signal.aborted) {
            const begunAt = performance.now();
            reads.begun += 1;
            reads.lastBegunAt = begunAt;
            let due: number;
            const requested = new Promise<void>((resolve) => {
                this.#wakeReader = resolve;
            });
            try {
                const { age, isDatePlausible } = await this.#readKeysOnce();
                reads.hasLastSucceeded = true;
                failures = 0;
                if (isDatePlausible || implausible >= IMPLAUSIBLE_MAX) {
                    implausible = isDatePlausible ? 0 : implausible;
                    due = begunAt + age / 2;
                    // Not before: with a wrong clock, expired tokens would pass.
                    this.#startupChanged({ hasKeys: true });
                } else {
                    implausible += 1;
                    due = performance.now() + READ_RETRY_MIN_MS;
                }
            } catch (error) {
                reads.hasLastSucceeded = false;
                this.#failed("failed to read the JWK Set", error);
                due = performance.now() + Math.min(READ_RETRY_MIN_MS * 2 ** Math.min(failures, 16), READ_RETRY_MAX_MS) * (0.5 + Math.random() / 2);
                failures += 1;
            }
            reads.done = reads.begun;
            for (const waiter of this.#readWaiters.splice(0)) waiter();
            await this.#sleep(due - performance.now(), requested);
            // Unknown keys cause no more than one read a second.
            await this.#sleep(Math.min(begunAt + READ_INTERVAL_MIN_MS, due) - performance.now());
        }
    }

    async #readKeysOnce(): Promise<{ age: number; isDatePlausible: boolean }> {
        const { time, jwks } = this.#state;
        const requestedAt = time.elapsed();
        const { headers, body } = await this.#upstream.jwks();
        const keys = readKeys(body);
        if (!keys) throw new UnavailableError("the document is not a JWK Set");
        const date = Date.parse(headers.date ?? "");
        const isDatePlausible = Number.isNaN(date) || time.observe(date);
        const age = maxAge(headers["cache-control"]);
        jwks.store(keys, requestedAt, age);
        return { age, isDatePlausible };
    }

    /** Reads the keys, unless they were read a moment ago. Returns whether the cached keys are now the published ones. */
    async #readKeysNow(): Promise<boolean> {
        const reads = this.#reads;
        const isRecent = performance.now() - reads.lastBegunAt < READ_INTERVAL_MIN_MS;
        if (isRecent && reads.begun === reads.done) return reads.hasLastSucceeded;
        // A read in progress may have been sent before the key was published; by the next token it is no longer recent.
        const awaited = reads.begun > reads.done ? reads.begun : reads.begun + 1;
        this.#wakeReader();
        const done = async () => {
            while (reads.done < awaited && !this.#closed.signal.aborted) {
                await new Promise<void>((resolve) => this.#readWaiters.push(resolve));
            }
        };
        return (await within(READ_TIMEOUT_MS, done())) && reads.done >= awaited && reads.hasLastSucceeded;
    }

    /** Follows one replica at a time, and switches to the next when its stream ends. */
    async #follow(): Promise<void> {
        const progress = new Progress();
        for (let attempt = 0; !this.#closed.signal.aborted; attempt += 1) {
            const replica = this.#upstream.replicas[attempt % this.#upstream.replicas.length] as Replica;
            let end: string;
            try {
                end = await this.#stream(replica, progress);
            } catch (error) {
                end = this.#failed(undefined, error);
            }
            if (this.#closed.signal.aborted) return;
            // Another server may respond at this address now.
            replica.isChecked = false;
            const wait = progress.retryAfter();
            this.#log(`the stream of revocations from ${replica.url} ended (${end}); reconnecting in ${Math.round(wait)} ms`);
            await this.#sleep(wait);
        }
    }

    async #stream(replica: Replica, progress: Progress): Promise<string> {
        await this.#upstream.check(replica);
        const { time, revocations, maxStaleness, maxEntries, replicas } = this.#state;
        const feed = {
            ...{ time, revocations, maxStaleness, maxEntries, replicas },
            onFresh: () => {
                if (!this.#startup.hasSnapshot) this.#startupChanged({ hasSnapshot: true });
            },
            onSnapshot: () => {
                this.#counts.snapshots += 1;
                this.#checkWatched();
            },
            onRevoked: (targets: readonly Target[]) => this.#onRevoked(targets),
            onWithheld: (kind: string) => this.#onWithheld(kind),
        };
        const query = new URLSearchParams([
            ...(progress.cursor ? [["cursor", progress.cursor]] : []),
            ...ACCEPTS.map((kind) => ["accepts", kind]),
            ["max_entries", String(maxEntries)],
        ]);
        const reader = new StreamReader(feed, progress, time.elapsed());
        const headers = { ...this.#upstream.authorization, accept: "application/x-ndjson" };
        const request = this.#upstream.request(replica, "GET", `/auth/revocations:watch?${query}`, headers);
        return new Promise((resolve) => {
            const end = (why: StreamEnd | string) => {
                clearInterval(silence);
                this.#closed.signal.removeEventListener("abort", closed);
                request.destroy();
                resolve(why);
            };
            const closed = () => end("closed");
            this.#closed.signal.addEventListener("abort", closed);
            const silence = setInterval(() => {
                if (reader.isSilent(time.elapsed())) end("silence");
            }, TICK_MS);
            request.on("error", (error) => end(error.message)).on("close", () => end("closed"));
            request.on("response", (response) => {
                if (response.statusCode !== 200) return void refusal(response).then((body) => end(this.#refused(response.statusCode ?? 0, body, progress)));
                this.#counts.connections += 1;
                this.#checkRole(response.headers["x-sessiond-key-role"]);
                reader.open(time.elapsed());
                response.on("data", (bytes: Buffer) => {
                    const ended = reader.read(bytes, time.elapsed());
                    if (ended) end(ended);
                });
                response.on("error", (error) => end(error.message)).on("end", () => end("closed"));
            });
            request.end();
        });
    }

    #refused(status: number, body: string, progress: Progress): string {
        if (progress.refuse(status, body)) return "sessiond does not accept the cursor";
        const isOld = status === 400 && body.includes("accepts");
        return isOld ? "sessiond is older than this guard: upgrade it first" : `sessiond returned ${status}: ${body.slice(0, 200)}`;
    }

    #checkRole(role: string | string[] | undefined): void {
        if (role === undefined || role === "verifier" || this.#hasWarnedOfRole) return;
        this.#hasWarnedOfRole = true;
        this.#log(`the server key has the role \`${role}\`; \`verifier\` is enough for a guard (\`sessiond server-key narrow KEY --role verifier\`)`);
    }

    #onWithheld(kind: string): void {
        this.#counts.withheld += 1;
        // Bounded, because a server could make up names.
        if (this.#withheldKinds.has(kind) || this.#withheldKinds.size >= 32) return;
        this.#withheldKinds.add(kind);
        this.#log(`received a revocation of the unknown kind ${JSON.stringify(kind)}: the fail mode decides on what it concerns; upgrade this guard`);
    }

    /** Logs why a request failed, and keeps an error that only an operator can correct for `ready`. */
    #failed(what: string | undefined, error: unknown): string {
        const message = error instanceof Error ? error.message : String(error);
        if (what !== undefined && !this.#closed.signal.aborted) this.#log(`${what}: ${message}`);
        if (error instanceof ConfigurationError) this.#startupChanged({ error });
        return message;
    }

    /** Waits until the time is over, the other promise is settled, or the guard is closed. */
    async #sleep(ms: number, other?: Promise<void>): Promise<void> {
        if (ms <= 0 || this.#closed.signal.aborted) return;
        let timer: NodeJS.Timeout | undefined;
        let wake = () => undefined as void;
        const slept = new Promise<void>((resolve) => {
            wake = resolve;
            timer = setTimeout(resolve, ms);
        });
        this.#closed.signal.addEventListener("abort", wake);
        await (other ? Promise.race([slept, other]) : slept);
        clearTimeout(timer);
        this.#closed.signal.removeEventListener("abort", wake);
    }
}

/** How far the startup has come. */
interface Startup {
    hasSnapshot: boolean;
    hasKeys: boolean;
    /** An error that only an operator can correct. */
    error: ConfigurationError | undefined;
}

interface Watch {
    token: string;
    controller: AbortController;
}

/** Whether an authentication is sufficient. An unknown value does not meet a requirement. */
export function meets({ claims }: Principal, { acr = [], maxAge }: Requirement, now: number): boolean {
    // `includes` of a text would find parts of it.
    if (!Array.isArray(acr)) throw new TypeError("acr must be a list of values");
    const isRecent = maxAge === undefined || (typeof claims.auth_time === "number" && now < (claims.auth_time + maxAge) * 1_000);
    const isStrong = acr.length === 0 || (typeof claims.acr === "string" && acr.includes(claims.acr));
    return isRecent && isStrong;
}

/** The body of a refusal, which is short. */
async function refusal(response: AsyncIterable<Buffer>): Promise<string> {
    let body = "";
    try {
        for await (const part of response) {
            body += part.toString();
            if (body.length > 65_536) break;
        }
    } catch {
        // What has arrived is enough.
    }
    return body;
}

/** Whether the promise is fulfilled in time. */
async function within(ms: number, promise: Promise<unknown>): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<boolean>((resolve) => {
        timer = setTimeout(() => resolve(false), ms);
    });
    try {
        return await Promise.race([promise.then(() => true), late]);
    } finally {
        clearTimeout(timer);
    }
}
