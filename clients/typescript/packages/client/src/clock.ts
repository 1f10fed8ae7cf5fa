/**
 * The server's clock, as far as known. Responses set it by their `Date`. Between them both clocks of this machine count,
 * and the one further ahead wins: the system clock may be set back, and the monotonic one may stop while the machine
 * sleeps. A clock that is too far ahead costs one early refresh, whose response corrects it.
 */
export class Clock {
    #server = 0;
    #wall = 0;
    #mono = 0;

    constructor() {
        this.set(Date.now());
    }

    set(server: number): void {
        [this.#server, this.#wall, this.#mono] = [server, Date.now(), performance.now()];
    }

    /** A response's `Date`. Pages of other origins read it because the server exposes it. */
    setByDate(date: string | null): void {
        const time = Date.parse(date ?? "");
        if (time) this.set(time);
    }

    /** The server's clock has passed this: it has issued a token then. */
    isPast(time: number): void {
        if (this.now() < time) this.set(time);
    }

    now(): number {
        return this.#server + Math.max(Date.now() - this.#wall, performance.now() - this.#mono);
    }
}
