// The result of a call, in one form for all clients: numbers and strings, which can leave the page.

/** The content of `google.rpc.ErrorInfo` and `google.rpc.BadRequest`, as decoded by any client. */
export class Refusal extends Error {
    constructor({ code, reason, domain, fields = [] }) {
        super(`${code} ${reason}`);
        this.said = { code, reason, domain, fields };
    }
}

/** The system time in milliseconds, with a finer resolution than `Date`. */
export const now = () => performance.timeOrigin + performance.now();
