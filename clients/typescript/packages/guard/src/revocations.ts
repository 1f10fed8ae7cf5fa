// The revocations received so far, and how recent they are.

import type { Time } from "./clock.js";
import type { Principal } from "./token.js";

/** What a revocation revokes. */
export type Target =
    | { kind: "session"; session: string }
    | { kind: "user"; user: string; epoch: number; spared: string | undefined }
    | { kind: "project"; epoch: number }
    | { kind: "key"; kid: string }
    | { kind: "superseded"; session: string; epoch: number }
    /** Something that this version does not understand concerns this session, user or key, or the whole project. */
    | { kind: "withheld"; scope: string };

/** The scope of what is withheld. */
export const scope = { session: (id: string) => `s${id}`, user: (id: string) => `u${id}`, key: (kid: string) => `k${kid}`, project: "" };

/** All revocations of a user's sessions, merged: only the one with the greatest epoch can spare a session. */
interface UserCutOff {
    epoch: number;
    spared: string | undefined;
    /** The greatest epoch among those that do not spare that session. */
    epochForSpared: number;
    until: number;
}

interface CutOff {
    epoch: number;
    until: number;
}

/** The last second that the table of sessions can hold: more than a century. */
const SECOND_MAX = 2 ** 32 - 1;

/** A set of revocations. Each is kept until a second on the monotonic clock. A session takes 27 to 54 bytes. */
export class RevokedSet {
    readonly #sessions = new SessionTable();
    readonly #users = new Map<string, UserCutOff>();
    readonly #keys = new Map<string, number>();
    readonly #superseded = new Map<string, CutOff>();
    readonly #withheld = new Map<string, number>();
    #project: CutOff | undefined;

    /** `until` in milliseconds, rounded up to a second. */
    insert(target: Target, until: number): void {
        const second = Math.min(SECOND_MAX, Math.max(1, Math.ceil(until / 1_000)));
        switch (target.kind) {
            case "session":
                return this.#sessions.insert(target.session, second);
            case "user": {
                const cutOff = { epoch: target.epoch, spared: target.spared, epochForSpared: -Infinity, until: second };
                const known = this.#users.get(target.user);
                this.#users.set(target.user, known ? merged(known, cutOff) : cutOff);
                return;
            }
            case "project":
                this.#project = later(this.#project, target.epoch, second);
                return;
            case "key":
                this.#keys.set(target.kid, Math.max(second, this.#keys.get(target.kid) ?? 0));
                return;
            case "superseded":
                this.#superseded.set(target.session, later(this.#superseded.get(target.session), target.epoch, second));
                return;
            case "withheld":
                this.#withheld.set(target.scope, Math.max(second, this.#withheld.get(target.scope) ?? 0));
        }
    }

    /** Whether a token is revoked. */
    has({ sessionId, userId, kid, claims: { epoch } }: Principal): boolean {
        if (this.#sessions.has(sessionId) || this.#keys.has(kid)) return true;
        if (this.#project && epoch[0] < this.#project.epoch) return true;
        const cutOff = this.#users.get(userId);
        return cutOff !== undefined && epoch[1] < (cutOff.spared === sessionId ? cutOff.epochForSpared : cutOff.epoch);
    }

    /** Whether a token was issued before its session changed. */
    hasSuperseded({ sessionId, claims }: Principal): boolean {
        if (this.#superseded.size === 0) return false;
        const known = this.#superseded.get(sessionId);
        return known !== undefined && (claims.session_epoch ?? 0) < known.epoch;
    }

    /** Whether something about a token is withheld. */
    hasWithheld({ sessionId, userId, kid }: Principal): boolean {
        if (this.#withheld.size === 0) return false;
        return [scope.session(sessionId), scope.user(userId), scope.key(kid), scope.project].some((one) => this.#withheld.has(one));
    }

    /** Removes entries that every token has outlived. */
    forget(now: number): void {
        const second = Math.floor(now / 1_000);
        this.#sessions.forget(second);
        for (const map of [this.#users, this.#superseded]) {
            for (const [key, { until }] of map) if (until <= second) map.delete(key);
        }
        for (const map of [this.#keys, this.#withheld]) {
            for (const [key, until] of map) if (until <= second) map.delete(key);
        }
        if (this.#project && this.#project.until <= second) this.#project = undefined;
    }

    get size(): number {
        const others = this.#users.size + this.#keys.size + this.#superseded.size + this.#withheld.size;
        return this.#sessions.size + others + (this.#project ? 1 : 0);
    }
}

function later(known: CutOff | undefined, epoch: number, until: number): CutOff {
    return { epoch: Math.max(known?.epoch ?? -Infinity, epoch), until: Math.max(known?.until ?? 0, until) };
}

function merged(one: UserCutOff, other: UserCutOff): UserCutOff {
    const [greater, smaller] = one.epoch >= other.epoch ? [one, other] : [other, one];
    // The epoch of the smaller one for the session that the greater one spares.
    const ofSpared = smaller.spared === greater.spared ? smaller.epochForSpared : smaller.epoch;
    return {
        ...greater,
        epochForSpared: Math.max(greater.epochForSpared, ofSpared),
        until: Math.max(greater.until, smaller.until),
    };
}

/** Sessions and the second until which each is kept: a hash table without objects, which a million of would burden the collector. */
class SessionTable {
    /** Each id in four words. */
    #ids = new Uint32Array(4 * 64);
    /** 0 in an empty slot. */
    #until = new Uint32Array(64);
    size = 0;

    has(id: string): boolean {
        return this.size > 0 && this.#until[this.#slot(words(id))] !== 0;
    }

    insert(id: string, until: number): void {
        if (this.size * 4 >= this.#until.length * 3) this.#rebuild(this.#until.length * 2);
        const parts = words(id);
        const slot = this.#slot(parts);
        if (this.#until[slot] === 0) {
            this.#ids.set(parts, slot * 4);
            this.size += 1;
        }
        this.#until[slot] = Math.max(this.#until[slot] ?? 0, until);
    }

    /** In place, because building a table of a million entries would block the event loop. */
    forget(now: number): void {
        const until = this.#until;
        for (let slot = 0; slot < until.length; slot += 1) {
            // Removing an entry may move another one here.
            for (let second = until[slot] ?? 0; second !== 0 && second <= now; second = until[slot] ?? 0) this.#remove(slot);
        }
        const slots = Math.max(64, capacity(this.size));
        if (slots * 4 <= until.length) this.#rebuild(slots);
    }

    /** Removes an entry, and moves those behind it that it has displaced. */
    #remove(slot: number): void {
        const [ids, until] = [this.#ids, this.#until];
        const mask = until.length - 1;
        let hole = slot;
        for (let next = (slot + 1) & mask; until[next] !== 0; next = (next + 1) & mask) {
            const home = mixed(ids, next * 4) & mask;
            if (((next - home) & mask) < ((next - hole) & mask)) continue;
            ids.copyWithin(hole * 4, next * 4, next * 4 + 4);
            until[hole] = until[next] ?? 0;
            hole = next;
        }
        until[hole] = 0;
        this.size -= 1;
    }

    /** The slot of this id, or the empty one where it belongs. */
    #slot(parts: Uint32Array): number {
        const mask = this.#until.length - 1;
        let slot = mixed(parts, 0) & mask;
        while (this.#until[slot] !== 0 && !this.#is(slot, parts)) slot = (slot + 1) & mask;
        return slot;
    }

    #is(slot: number, parts: Uint32Array): boolean {
        const [ids, at] = [this.#ids, slot * 4];
        return ids[at + 3] === parts[3] && ids[at + 2] === parts[2] && ids[at + 1] === parts[1] && ids[at] === parts[0];
    }

    #rebuild(slots: number): void {
        const [ids, until] = [this.#ids, this.#until];
        [this.#ids, this.#until] = [new Uint32Array(slots * 4), new Uint32Array(slots)];
        for (let old = 0; old < until.length; old += 1) {
            if (until[old] === 0) continue;
            const parts = ids.subarray(old * 4, old * 4 + 4);
            const slot = this.#slot(parts);
            this.#ids.set(parts, slot * 4);
            this.#until[slot] = until[old] ?? 0;
        }
    }
}

/** The smallest capacity for this many entries: a power of two. */
function capacity(entries: number): number {
    return 2 ** Math.ceil(Math.log2((entries * 4) / 3 + 1));
}

/** Reused, because ids are read by the million. */
const WORDS = new Uint32Array(4);

/** The four words of an id in its canonical form. */
function words(id: string): Uint32Array {
    WORDS[0] = Number(`0x${id.slice(0, 8)}`);
    WORDS[1] = Number(`0x${id.slice(9, 13)}${id.slice(14, 18)}`);
    WORDS[2] = Number(`0x${id.slice(19, 23)}${id.slice(24, 28)}`);
    WORDS[3] = Number(`0x${id.slice(28)}`);
    return WORDS;
}

/** The revocations that a guard knows, and how recent they are. */
export class Revocations {
    set = new RevokedSet();
    /** A snapshot was received completely, so the set has every revocation up to `currentUntil`. */
    isComplete = false;
    /**
     * The moment up to which the set is current: on the monotonic clock, and as the time of day. The first stops while the
     * machine sleeps, and the second may be set: the older of the two counts.
     */
    #currentUntil: [number, number] = [-Infinity, -Infinity];
    /** When the set last learned something, by the monotonic clock. */
    #newsAt = -Infinity;

    /** The age of the set in milliseconds; undefined before the first complete snapshot. */
    age(time: Time): number | undefined {
        if (!this.isComplete) return undefined;
        const [monotonic, timeOfDay] = this.#currentUntil;
        return Math.max(0, time.elapsed() - monotonic, time.now() - timeOfDay);
    }

    /** Records that the set is at most this old. */
    setAge(time: Time, age: number): void {
        this.#currentUntil = [time.elapsed() - age, time.now() - age];
    }

    /**
     * How old a snapshot may be that has all that the set has, in milliseconds: between two heartbeats, the set knows more than its
     * age says. Undefined before the first complete snapshot.
     */
    ageOfNews(time: Time): number | undefined {
        const age = this.age(time);
        return age === undefined ? undefined : Math.min(age, time.elapsed() - this.#newsAt);
    }

    /** Records that the set has learned something. */
    noteNews(time: Time): void {
        this.#newsAt = time.elapsed();
    }

    /** Replaces the set by a complete snapshot. */
    replace(time: Time, set: RevokedSet): void {
        this.set = set;
        this.noteNews(time);
        this.isComplete = true;
    }
}

/** A hash of the id whose four words begin here. sessiond's ids end with random words; other issuers' need not. */
function mixed(words: Uint32Array, at: number): number {
    let hash = 0;
    for (let word = at; word < at + 4; word += 1) {
        hash = Math.imul(hash ^ (words[word] ?? 0), 0x9e3779b1);
        hash ^= hash >>> 15;
    }
    return hash;
}
