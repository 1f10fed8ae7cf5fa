import { type Reason, SessiondError } from "./errors.js";
import type { Clock } from "./clock.js";

/** The largest response that is read, in characters: a page of 1,000 sessions with large claims. */
const BODY_LENGTH_MAX = 8 << 20;

/** The longest `Retry-After` that is followed, in milliseconds. */
const RETRY_AFTER_MS_MAX = 600_000;

/** The longest line of the stream that is read, in characters. */
const LINE_LENGTH_MAX = 1 << 20;

export interface Wire {
    url: string;
    fetch: typeof globalThis.fetch;
    clock: Clock;
    timeoutMs: number;
}

const unusable = (why: string, status: number) => new SessiondError("BAD_RESPONSE", why, status);

/** Runs with a timeout, which `touch` restarts, and reports failures of the network in our words. */
export async function bounded<T>(
    ms: number, outer: AbortSignal | undefined, run: (signal: AbortSignal, touch: () => void) => Promise<T>,
): Promise<T> {
    const inner = new AbortController();
    const stop = () => inner.abort();
    if (outer?.aborted) stop();
    outer?.addEventListener("abort", stop);
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isLate = false;
    const touch = () => {
        clearTimeout(timer);
        timer = setTimeout(() => {
            isLate = true;
            stop();
        }, ms);
    };
    touch();
    try {
        return await run(inner.signal, touch);
    } catch (error) {
        if (error instanceof SessiondError) throw error;
        // The cause is not attached: some engines quote header values in it.
        throw isLate
            ? new SessiondError("TIMED_OUT", `no response from sessiond within ${ms} ms`)
            : new SessiondError("UNREACHABLE", "sessiond cannot be reached");
    } finally {
        clearTimeout(timer);
        outer?.removeEventListener("abort", stop);
        // Ends a response that was not read to its end.
        stop();
    }
}

/** The text of a body, piece by piece. */
async function* pieces(response: Response): AsyncGenerator<string> {
    const reader = response.body?.getReader();
    const decoder = new TextDecoder();
    for (;;) {
        const { done, value } = (await reader?.read()) ?? { done: true };
        if (done) return;
        yield decoder.decode(value, { stream: true });
    }
}

/** A response's JSON. */
async function json(response: Response): Promise<any> {
    let text = "";
    for await (const piece of pieces(response)) {
        text += piece;
        if (text.length > BODY_LENGTH_MAX) throw unusable("the response is too large", response.status);
    }
    try {
        return JSON.parse(text);
    } catch {
        throw unusable("the response is not JSON", response.status);
    }
}

/** `google.rpc.Status` as an error. Anything else is not sessiond's answer, and decides nothing. */
export function refusal(answer: any, status: number, headers?: Headers): SessiondError {
    const info = Array.isArray(answer?.details) && answer.details.find((detail: any) => detail?.domain === "sessiond");
    if (typeof info?.reason !== "string") return unusable(`status ${status}, not from sessiond`, status);
    const wait = Math.min(Number(headers?.get("retry-after")) * 1e3 || 0, RETRY_AFTER_MS_MAX);
    const id = headers?.get("x-request-id") ?? "";
    return new SessiondError(info.reason as Reason, String(answer.message), status, wait, id);
}

async function open(wire: Wire, method: string, path: string, init: RequestInit): Promise<Response> {
    const response = await wire.fetch(wire.url + path, { method, cache: "no-store", redirect: "error", ...init });
    wire.clock.setByDate(response.headers.get("date"));
    if (!response.ok) throw refusal(await json(response), response.status, response.headers);
    return response;
}

/** Makes a call, and returns the response's JSON. */
export function call(
    wire: Wire, method: string, path: string, init: RequestInit, signal?: AbortSignal,
): Promise<any> {
    return bounded(wire.timeoutMs, signal, async (signal) => json(await open(wire, method, path, { ...init, signal })));
}

/** Opens a stream, and passes on each line. Ends with an error: the server's, or that of the network. */
export function follow(
    wire: Wire, path: string, init: RequestInit, silenceMs: number, signal: AbortSignal, tell: (message: any) => void,
): Promise<never> {
    return bounded(silenceMs, signal, async (signal, touch) => {
        const response = await open(wire, "GET", path, { ...init, signal });
        let rest = "";
        for await (const piece of pieces(response)) {
            touch();
            const lines = (rest + piece).split("\n");
            rest = lines.pop()!;
            if (rest.length > LINE_LENGTH_MAX) throw unusable("a line of the stream is too long", response.status);
            for (const line of lines) {
                if (!line) continue;
                const message = JSON.parse(line);
                if (message.error) throw refusal(message.error, 0);
                tell(message);
            }
        }
        throw unusable("the stream ended", response.status);
    });
}
