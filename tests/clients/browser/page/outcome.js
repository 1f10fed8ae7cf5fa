// What a call came to, in one form for all clients: numbers and texts, which leave a page as they are.

/** What `google.rpc.ErrorInfo` and `google.rpc.BadRequest` say, by whichever client they were decoded. */
export class Refusal extends Error {
    constructor({ code, reason, domain, fields = [] }) {
        super(`${code} ${reason}`);
        this.said = { code, reason, domain, fields };
    }
}

/** By the clock of the machine, in milliseconds, and finer than `Date` has it. */
export const now = () => performance.timeOrigin + performance.now();
