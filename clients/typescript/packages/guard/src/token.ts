// Access tokens: JWTs in the profile of RFC 9068, signed with ES256.

import { type KeyObject, verify as verifySignature } from "node:crypto";
import { Refusal } from "./refusal.js";
import type { Jwks } from "./jwks.js";

/** The longest access token that is parsed, in bytes. */
const LENGTH_MAX = 16 * 1_024;

/** How deeply the JSON of a token may be nested. */
const DEPTH_MAX = 127;

/** How many verified tokens are cached, in two generations. */
const TOKENS_MAX = 16_384;

/** The largest low `s` of P-256: half of the order. */
const LOW_S_MAX = Buffer.from("7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a8", "hex");

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Whether a text is an id in its canonical form: other spellings are refused, so that ids can be compared as text. */
export const isUuid = (text: string): boolean => UUID.test(text);

/** Whether a text is the name of a project. */
export const isProject = (text: string): boolean => /^[A-Za-z0-9_-]{1,64}$/.test(text);

/** Whether a text is the id of a user: 1 to 255 bytes without control characters, and not `me`. */
export function isUser(text: string): boolean {
    const bytes = Buffer.byteLength(text);
    return bytes >= 1 && bytes <= 255 && text !== "me" && !/\p{Cc}/u.test(text);
}

/** Decodes base64url without padding. Undefined for any other spelling, so that every value has one. */
export function decode(text: string): Buffer | undefined {
    const bytes = Buffer.from(text, "base64url");
    return bytes.toString("base64url") === text ? bytes : undefined;
}

/** The claims of an access token. */
export interface Claims {
    iss: string;
    sub: string;
    aud: string;
    client_id: string;
    iat: number;
    exp: number;
    jti: string;
    sid: string;
    epoch: [number, number];
    project_id: string;
    refresh_token_id: string;
    auth_time?: number | null;
    acr?: string | null;
    amr?: string[];
    act?: { sub: string } | null;
    session_epoch?: number;
    /** The application's own. */
    [claim: string]: unknown;
}

/** The signed-in user of an accepted access token. */
export class Principal {
    /** The user's id, as the application chose it. */
    readonly userId: string;
    readonly sessionId: string;
    readonly projectId: string;
    /** Who acts as the user, in an impersonation. */
    readonly impersonatorId: string | undefined;
    /** When the token expires, in milliseconds since the Unix epoch. Half-open: at this moment exactly, it has expired. */
    readonly expiresAt: number;
    readonly claims: Readonly<Claims>;
    /** The key that signed it. */
    readonly kid: string;

    constructor(claims: Claims, kid: string) {
        this.userId = claims.sub;
        this.sessionId = claims.sid;
        this.projectId = claims.project_id;
        this.impersonatorId = claims.act?.sub;
        this.expiresAt = claims.exp * 1_000;
        this.claims = claims;
        this.kid = kid;
    }
}

/** A token names a key that is not cached. */
export const UNKNOWN_KEY = Symbol("unknown key");

/** The keys were never read. */
export const NO_KEYS = Symbol("no keys");

/** Verifies tokens: everything but the time and the revocations. Caches those that verified. */
export class TokenVerifier {
    readonly #project: string;
    readonly #issuer: string;
    /** Tokens that were used recently, and those used before. A token that is used moves to the recent ones. */
    #recent = new Map<string, Principal>();
    #before = new Map<string, Principal>();

    /** `issuer` is the `iss` of the project's tokens. */
    constructor(project: string, issuer: string) {
        this.#project = project;
        this.#issuer = issuer;
    }

    verify(text: string, jwks: Jwks): Principal | Refusal | typeof UNKNOWN_KEY | typeof NO_KEYS {
        const known = this.#find(text);
        // Its key may have left the set since.
        if (known) return jwks.find(known.kid) ? known : UNKNOWN_KEY;
        if (text.length > LENGTH_MAX || Buffer.byteLength(text) > LENGTH_MAX) return Refusal.unparsable();
        const parts = text.split(".");
        const [header = "", payload = "", signature = ""] = parts;
        const kid = parts.length === 3 ? readHeader(header) : undefined;
        if (kid === undefined) return Refusal.unparsable();
        if (!jwks.isThere) return NO_KEYS;
        const key = jwks.find(kid);
        if (!key) {
            // A token of another project, whose keys are never cached here.
            const claims = readClaims(payload);
            const isForeign = claims && this.#isForeign(claims) && isProject(claims.aud);
            return isForeign ? Refusal.wrongProject(this.#project, claims.aud) : UNKNOWN_KEY;
        }
        if (!isSigned(text.slice(0, text.lastIndexOf(".")), signature, key)) return Refusal.unparsable();
        const principal = this.#read(payload, kid);
        if (principal instanceof Principal) this.#remember(text, principal);
        return principal;
    }

    /** Reads a token whose signature sessiond has checked. */
    parseUnverified(text: string): Principal | Refusal {
        const [header = "", payload = ""] = text.split(".");
        const kid = readHeader(header);
        return kid === undefined ? Refusal.unparsable() : this.#read(payload, kid);
    }

    #read(payload: string, kid: string): Principal | Refusal {
        const claims = readClaims(payload);
        if (!claims) return Refusal.unparsable();
        if (this.#isForeign(claims)) return Refusal.wrongProject(this.#project, claims.aud);
        const isGood = claims.iss === this.#issuer && isUser(claims.sub) && isUuid(claims.sid);
        return isGood ? new Principal(claims, kid) : Refusal.unparsable();
    }

    #isForeign(claims: Claims): boolean {
        return claims.aud !== this.#project || claims.project_id !== this.#project;
    }

    #find(text: string): Principal | undefined {
        const recent = this.#recent.get(text);
        if (recent) return recent;
        const before = this.#before.get(text);
        if (before) this.#remember(text, before);
        return before;
    }

    #remember(text: string, principal: Principal): void {
        if (this.#recent.size >= TOKENS_MAX / 2) {
            this.#before = this.#recent;
            this.#recent = new Map();
        }
        this.#recent.set(text, principal);
    }
}

/** The `kid` of a header with ES256, `typ: at+jwt`, a well-formed `kid` and no `crit`; undefined for any other. */
function readHeader(encoded: string): string | undefined {
    const members = readObject(encoded);
    const text = (name: string) => textOf(members?.get(name));
    const [typ, kid] = [text("typ")?.toLowerCase(), text("kid")];
    // RFC 7515 §4.1.9: `application/` may be omitted. §4.1.11: extensions in `crit` must be supported, and none is.
    const isTyped = typ === "at+jwt" || typ === "application/at+jwt";
    const isOurs = isTyped && text("alg") === "ES256" && (members?.get("crit") ?? "null") === "null";
    return isOurs && kid !== undefined && isUuid(kid) ? kid : undefined;
}

/** Whether the signature is good, and its `s` low: of `(r, s)` and `(r, n - s)`, only one is accepted. */
function isSigned(message: string, signature: string, key: KeyObject): boolean {
    // Checked first, so that a long text is never decoded.
    const bytes = signature.length === 86 ? decode(signature) : undefined;
    if (bytes?.length !== 64 || LOW_S_MAX.compare(bytes, 32) < 0) return false;
    return verifySignature("sha256", Buffer.from(message, "latin1"), { key, dsaEncoding: "ieee-p1363" }, bytes);
}

/** The claims of a payload; undefined if one of ours is missing, there twice, or of another type. */
function readClaims(payload: string): Claims | undefined {
    const members = readObject(payload);
    if (!members) return undefined;
    const raw = (name: string) => members.get(name);
    const texts = ["iss", "sub", "aud", "client_id", "jti", "sid", "project_id", "refresh_token_id"];
    if (texts.some((name) => textOf(raw(name)) === undefined)) return undefined;
    if (!isInteger(raw("iat")) || !isInteger(raw("exp"))) return undefined;
    const isAbsent = (name: string) => (raw(name) ?? "null") === "null";
    if (!isAbsent("auth_time") && !isInteger(raw("auth_time"))) return undefined;
    if (!isAbsent("acr") && textOf(raw("acr")) === undefined) return undefined;
    if (raw("session_epoch") !== undefined && !isInteger(raw("session_epoch"))) return undefined;
    const epoch = /^\[\s*([^\s,]+)\s*,\s*([^\s,]+)\s*\]$/.exec(raw("epoch") ?? "");
    if (!epoch || !isInteger(epoch[1]) || !isInteger(epoch[2])) return undefined;
    const claims: Record<string, unknown> = {};
    for (const [name, value] of members) {
        Object.defineProperty(claims, name, { value: JSON.parse(value), enumerable: true, configurable: true, writable: true });
    }
    const { amr, act } = claims;
    if (amr !== undefined && !(Array.isArray(amr) && amr.every((method) => typeof method === "string"))) return undefined;
    if ((act ?? null) !== null && (Array.isArray(act) || typeof (act as { sub?: unknown }).sub !== "string")) return undefined;
    return claims as Claims;
}

/** The names of which there may be only one. Of the application's own claims the last one counts, as everywhere. */
const SINGLE = new Set([
    ...["typ", "alg", "kid", "crit", "iss", "sub", "aud", "client_id", "iat", "exp", "jti", "sid", "epoch", "project_id"],
    ...["refresh_token_id", "auth_time", "acr", "amr", "act", "session_epoch"],
]);

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const STRING = /"(?:[^"\\]|\\.)*"/y;

/**
 * The members of a JSON object in base64url, each as JSON text: `JSON.parse` alone keeps the last of two members with one
 * name, and forgets how a number was written. Undefined if it is no object, or nested too deeply.
 */
function readObject(encoded: string): Map<string, string> | undefined {
    const bytes = decode(encoded);
    if (!bytes) return undefined;
    let text: string;
    try {
        text = UTF8.decode(bytes);
        const value: unknown = JSON.parse(text);
        if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
        if (/\\u[dD]|\d[eE]|\d{309}/.test(text) && !isWellFormed(text)) return undefined;
    } catch {
        return undefined;
    }
    const members = new Map<string, string>();
    // The text is known to be a JSON object, so it is enough to find where names and values end.
    let [depth, start, name] = [0, 0, ""];
    for (let at = 0; at < text.length; at += 1) {
        const character = text[at];
        if (character === '"') {
            STRING.lastIndex = at;
            const end = at + (STRING.exec(text)?.[0].length ?? 1);
            if (depth === 1 && name === "") name = text.slice(at, end);
            at = end - 1;
        } else if (character === "{" || character === "[") {
            depth += 1;
            if (depth > DEPTH_MAX) return undefined;
            if (depth === 1) start = at + 1;
        } else if (character === ":" && depth === 1) {
            start = at + 1;
        } else if ((character === "," && depth === 1) || character === "}" || character === "]") {
            if (depth === 1 && name !== "") {
                const key = JSON.parse(name) as string;
                if (SINGLE.has(key) && members.has(key)) return undefined;
                members.set(key, text.slice(start, at).trim());
                name = "";
            }
            if (character !== ",") depth -= 1;
        }
    }
    return members;
}

/**
 * Whether no text in a JSON text has half of a surrogate pair, which is not Unicode, and no number is too large. `JSON.parse` would
 * drop the first of two members with one name unseen.
 */
function isWellFormed(json: string): boolean {
    const [texts, numbers] = [/"(?:[^"\\]|\\.)*"/g, /-?\d[\d.eE+-]*/g];
    return (
        (json.match(texts) ?? []).every((text) => !/\p{Surrogate}/u.test(JSON.parse(text) as string)) &&
        (json.replace(texts, "").match(numbers) ?? []).every((number) => Number.isFinite(Number(number)))
    );
}

/** The text in a JSON text; undefined if it is another value. */
function textOf(raw: string | undefined): string | undefined {
    return raw?.startsWith('"') ? (JSON.parse(raw) as string) : undefined;
}

/** Whether a JSON text is an integer that is exact in every language, without fraction and exponent. */
function isInteger(raw: string | undefined): boolean {
    return raw !== undefined && /^(?:0|-?[1-9]\d{0,15})$/.test(raw) && Number.isSafeInteger(Number(raw));
}
