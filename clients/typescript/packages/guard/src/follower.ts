// Follows the feed of revocations: one line of JSON after the other.

import type { Time } from "./clock.js";
import { type Revocations, RevokedSet, type Target, scope } from "./revocations.js";
import { isUser, isUuid } from "./token.js";

/** A stream without a line for this long is considered dead. */
export const SILENCE_MAX_MS = 3_000;

/** The longest line: four times the longest that sessiond sends. */
export const LINE_BYTES_MAX = 4 * 1_024 * 1_024;

/** The kinds of revocations that this version understands. sessiond sends others as `withheld`. */
export const ACCEPTS = ["session_id", "user_cut_off", "project_cut_off", "signing_key_id", "superseded"];

/** How often sessiond sends a heartbeat, and how late it may be. */
const HEARTBEAT_INTERVAL_MS = 1_000;
const TOLERANCE_MS = 100;

/** The guard leaves a replica whose feed is older than the maximum staleness divided by this. */
const STALE_DIVISOR = 2;

/** If every replica is stale, how long the guard stays with one before it tries the next. */
const STALE_STAY_MS = 5_000;

/** How long to wait before reconnecting: doubled with each failure, minus a random part. */
const RETRY_MIN_MS = 50;
const RETRY_MAX_MS = 2_000;

/** Why a stream ended. */
export type StreamEnd =
    | "closed"
    | "error"
    | "failed"
    | "silence"
    | "stale"
    | "malformed"
    | "line_too_long"
    | "too_many_entries"
    | "unknown_revocation";

/** What the streams of a guard share. */
export interface Feed {
    readonly time: Time;
    readonly revocations: Revocations;
    readonly maxStaleness: number;
    readonly maxEntries: number;
    readonly replicas: number;
    /** A heartbeat has confirmed the set. */
    onFresh?(): void;
    /** The set has been replaced by a snapshot. */
    onSnapshot?(): void;
    /** These were revoked. */
    onRevoked?(targets: readonly Target[]): void;
    /** Something was withheld that this version does not understand. */
    onWithheld?(kind: string): void;
}

/** What one stream leaves to the next. */
export class Progress {
    /** Where to resume; empty to begin with a snapshot. */
    cursor = "";
    #failures = 0;
    /** How many replicas were left since the feed was last fresh. */
    #left = 0;
    /** Since when the present replica is known to be stale. */
    #staleSince: number | undefined;

    begin(): void {
        this.#staleSince = undefined;
    }

    /** How long to wait before the next stream, in milliseconds. */
    retryAfter(random = Math.random()): number {
        const whole = Math.min(RETRY_MIN_MS * 2 ** Math.min(this.#failures, 16), RETRY_MAX_MS);
        this.#failures += 1;
        return whole / 2 + (whole / 2) * random;
    }

    succeed(): void {
        this.#failures = 0;
    }

    /** sessiond has refused to open the stream, with this response. Returns whether it was because of the cursor. */
    refuse(status: number, body: string): boolean {
        if (status !== 400) return false;
        try {
            type Detail = { field_violations?: { field: string }[] };
            const { details } = JSON.parse(body) as { details: Detail[] };
            const isCursor = details.some((detail) => detail.field_violations?.some(({ field }) => field === "cursor"));
            if (isCursor) this.cursor = "";
            return isCursor;
        } catch {
            return false;
        }
    }

    /**
     * Whether to leave the present replica, whose feed has this age: at once while another one has not been tried, and then
     * after a while, because a single address may have several replicas behind it.
     */
    shouldLeave(age: number, now: number, feed: Feed): boolean {
        if (age <= feed.maxStaleness / STALE_DIVISOR) {
            this.#left = 0;
            this.#staleSince = undefined;
            return false;
        }
        this.#staleSince ??= now;
        if (feed.replicas > 1 && this.#left < feed.replicas) {
            this.#left += 1;
            return true;
        }
        return now - this.#staleSince >= STALE_STAY_MS;
    }
}

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const NOTHING = Buffer.alloc(0);

/** Applies what arrives on one stream. The caller says when it arrived, so the result depends on nothing else. */
export class StreamReader {
    readonly #feed: Feed;
    readonly #progress: Progress;
    /** The beginning of a line whose rest has not arrived, in one buffer: pieces may be of a byte each. The rest of it is free. */
    #part = NOTHING;
    #partBytes = 0;
    #lineAt: number;
    /** The snapshot that is being received, or waits for a heartbeat, which says how old it is. */
    #snapshot: RevokedSet | undefined;
    /** Whether the snapshot is complete, and where to resume once it has replaced the set. */
    #isWhole = false;
    #cursor: string | undefined;
    /** Whether this stream has replaced the set by a snapshot. */
    #hasNewSnapshot = false;
    /** When the request was sent. */
    readonly #begunAt: number;
    /** When the last heartbeat arrived, and how long it was delayed at least. */
    #heartbeatAt: number;
    #delay = 0;

    /** `at` is when the request was sent, on the monotonic clock: the first line may have been delayed too. */
    constructor(feed: Feed, progress: Progress, at: number) {
        this.#feed = feed;
        this.#progress = progress;
        this.#lineAt = at;
        this.#begunAt = at;
        this.#heartbeatAt = at;
        progress.begin();
    }

    /** The response has arrived, and lines follow. */
    open(at: number): void {
        this.#lineAt = at;
    }

    /** Whether there was no line for too long. */
    isSilent(at: number): boolean {
        return at - this.#lineAt > SILENCE_MAX_MS;
    }

    /** Reads some bytes. Returns why nothing more may be read from this stream; undefined if it goes on. */
    read(bytes: Buffer, at: number): StreamEnd | undefined {
        let rest = bytes;
        for (;;) {
            const end = rest.indexOf(0x0a);
            const piece = end < 0 ? rest : rest.subarray(0, end);
            if (this.#partBytes + piece.length > LINE_BYTES_MAX) return "line_too_long";
            if (end < 0) {
                this.#keep(piece);
                return undefined;
            }
            let line = piece;
            if (this.#partBytes > 0) {
                this.#keep(piece);
                line = this.#part.subarray(0, this.#partBytes);
                [this.#part, this.#partBytes] = [NOTHING, 0];
            }
            const ended = this.#line(line, at);
            if (ended) return ended;
            rest = rest.subarray(end + 1);
        }
    }

    #keep(piece: Buffer): void {
        const bytes = this.#partBytes + piece.length;
        if (bytes > this.#part.length) {
            const larger = Buffer.allocUnsafe(Math.max(bytes, 2 * this.#part.length));
            this.#part.copy(larger, 0, 0, this.#partBytes);
            this.#part = larger;
        }
        piece.copy(this.#part, this.#partBytes);
        this.#partBytes = bytes;
    }

    #line(line: Buffer, at: number): StreamEnd | undefined {
        // This process may have been suspended or busy: the line has waited for an unknown time.
        if (this.isSilent(at)) return "silence";
        this.#lineAt = at;
        try {
            return this.#apply(objectOf(JSON.parse(UTF8.decode(line))), at);
        } catch {
            return "malformed";
        }
    }

    #apply(message: Json, at: number): StreamEnd | undefined {
        const { time, revocations } = this.#feed;
        const { error, snapshot_begin, revocations: batch, snapshot_complete, heartbeat, cursor } = message;
        const next = textOf(cursor ?? "");
        if (error !== undefined) return "error";
        if (isThere(snapshot_begin)) {
            this.#snapshot = new RevokedSet();
            [this.#isWhole, this.#cursor] = [false, undefined];
        } else if (isThere(batch)) {
            const end = this.#insert(listOf(objectOf(batch).revocations ?? []));
            if (end) return end;
        } else if (isThere(snapshot_complete)) {
            this.#isWhole = this.#snapshot !== undefined;
            // What it revokes counts at once if nothing else is known.
            if (!revocations.isComplete) this.#useSnapshot();
        } else if (isThere(heartbeat)) {
            // A heartbeat within a snapshot says nothing about the set that is in use.
            const { age_ms, stream_age_ms } = objectOf(heartbeat);
            const age = Math.max(0, integerOf(age_ms));
            const streamAge = isThere(stream_age_ms) ? integerOf(stream_age_ms) : undefined;
            if (this.#isWhole || (revocations.isComplete && !this.#snapshot)) {
                if (this.#isStale(age + this.#delayOf(at, streamAge), at, time)) return "stale";
                this.#progress.succeed();
                this.#feed.onFresh?.();
            }
        }
        // A stream cannot be resumed within a snapshot.
        if (isThere(cursor)) {
            if (!this.#snapshot) this.#progress.cursor = next;
            else if (this.#isWhole) this.#cursor = next;
        }
        return undefined;
    }

    /**
     * Records the age of the feed, and lets a snapshot that is complete replace the set. Returns whether to leave this replica
     * because of the age.
     */
    #isStale(age: number, at: number, time: Time): boolean {
        const leaves = this.#progress.shouldLeave(age, at, this.#feed);
        // Not one that is older than the set in use: it may lack what is known to be revoked.
        if (age <= (this.#feed.revocations.ageOfNews(time) ?? Infinity)) this.#useSnapshot();
        // The set is at least as recent as it was before this stream, unless the stream has replaced it. While a snapshot waits, the
        // age is the snapshot's.
        if (!this.#snapshot && (!leaves || this.#hasNewSnapshot)) this.#feed.revocations.setAge(time, age);
        return leaves;
    }

    /** Replaces the set by the snapshot, if one is complete. */
    #useSnapshot(): void {
        if (!this.#snapshot || !this.#isWhole) return;
        this.#feed.revocations.replace(this.#feed.time, this.#snapshot);
        if (this.#cursor !== undefined) this.#progress.cursor = this.#cursor;
        [this.#snapshot, this.#isWhole, this.#hasNewSnapshot] = [undefined, false, true];
        this.#feed.onSnapshot?.();
    }

    /**
     * How long a heartbeat was delayed on the way, at most: a proxy may pass the stream on more slowly than it comes. A
     * heartbeat says how old its stream was when it was sent; what is missing from the time since the request is its delay.
     *
     * Earlier servers do not say it. Their heartbeats are sent one second apart, so one that arrives earlier than that after
     * the previous one was delayed less, and one that arrives later was delayed more.
     */
    #delayOf(at: number, streamAge: number | undefined): number {
        if (streamAge !== undefined) return Math.max(0, at - this.#begunAt - Math.max(0, streamAge));
        const apart = at - this.#heartbeatAt;
        this.#heartbeatAt = at;
        const delay = Math.max(0, this.#delay + apart - HEARTBEAT_INTERVAL_MS - TOLERANCE_MS);
        this.#delay = Math.min(SILENCE_MAX_MS, delay);
        return this.#delay;
    }

    #insert(batch: readonly unknown[]): StreamEnd | undefined {
        const { time, revocations, maxEntries } = this.#feed;
        // What comes while a snapshot waits is news for the set in use too.
        const isNews = !this.#snapshot || this.#isWhole;
        const sets = [...(this.#snapshot ? [this.#snapshot] : []), ...(isNews ? [revocations.set] : [])];
        const isFull = () => sets.some((set) => set.size > maxEntries);
        if (isFull()) return "too_many_entries";
        const now = time.elapsed();
        const targets: Target[] = [];
        let isKnown = true;
        for (const one of batch) {
            const revocation = objectOf(one);
            const target = targetOf(revocation);
            isKnown = target !== undefined;
            // Ignoring it would accept revoked tokens.
            if (!target) break;
            if (target.kind === "withheld") this.#feed.onWithheld?.(String(objectOf(revocation.withheld).kind));
            const until = now + Math.max(0, integerOf(revocation.retain_seconds)) * 1_000;
            for (const set of sets) set.insert(target, until);
            if (isNews) targets.push(target);
        }
        if (!this.#snapshot) revocations.noteNews(time);
        if (targets.length > 0) this.#feed.onRevoked?.(targets);
        if (!isKnown) return "unknown_revocation";
        return isFull() ? "too_many_entries" : undefined;
    }
}

/** What a revocation revokes; undefined if this version does not know its kind. */
function targetOf(revocation: Json): Target | undefined {
    const { session_id, user_cut_off, project_cut_off, signing_key_id, superseded, withheld } = revocation;
    if (isThere(session_id)) {
        const session = textOf(session_id);
        return isUuid(session) ? { kind: "session", session } : undefined;
    }
    if (isThere(user_cut_off)) {
        const { user_id, epoch, spared_session_id } = objectOf(user_cut_off);
        const [user, spared] = [textOf(user_id ?? ""), isThere(spared_session_id) ? textOf(spared_session_id) : undefined];
        const isGood = isUser(user) && (spared === undefined || isUuid(spared));
        return isGood ? { kind: "user", user, epoch: integerOf(epoch), spared } : undefined;
    }
    if (isThere(project_cut_off)) return { kind: "project", epoch: integerOf(objectOf(project_cut_off).epoch) };
    if (isThere(signing_key_id)) {
        const kid = textOf(signing_key_id);
        return isUuid(kid) ? { kind: "key", kid } : undefined;
    }
    if (isThere(superseded)) {
        const { session_id: id, session_epoch } = objectOf(superseded);
        const session = textOf(id ?? "");
        return isUuid(session) ? { kind: "superseded", session, epoch: integerOf(session_epoch) } : undefined;
    }
    if (isThere(withheld)) {
        const { session_id: session, user_id: user, signing_key_id: key } = objectOf(withheld);
        if (isThere(session)) return isUuid(textOf(session)) ? { kind: "withheld", scope: scope.session(textOf(session)) } : undefined;
        if (isThere(user)) return isUser(textOf(user)) ? { kind: "withheld", scope: scope.user(textOf(user)) } : undefined;
        if (isThere(key)) return isUuid(textOf(key)) ? { kind: "withheld", scope: scope.key(textOf(key)) } : undefined;
        return { kind: "withheld", scope: scope.project };
    }
    return undefined;
}

type Json = Record<string, unknown>;

/** ProtoJSON: a member that is null is absent. */
const isThere = (value: unknown): boolean => value !== undefined && value !== null;

class Malformed extends Error {}

function objectOf(value: unknown): Json {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Malformed();
    return value as Json;
}

function listOf(value: unknown): readonly unknown[] {
    if (!Array.isArray(value)) throw new Malformed();
    return value;
}

function textOf(value: unknown): string {
    if (typeof value !== "string") throw new Malformed();
    return value;
}

/** An integer of 64 bits, as a number or as text (ProtoJSON). An absent one is 0. */
function integerOf(value: unknown): number {
    const number = typeof value === "string" && /^-?\d+$/.test(value) ? Number(value) : (value ?? 0);
    if (typeof number !== "number" || !Number.isInteger(number) || Math.abs(number) > 2 ** 63) throw new Malformed();
    return number;
}
