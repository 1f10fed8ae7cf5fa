// The time of day, robust against changes of the system's clock.

/** The clocks of the machine, in milliseconds. Replaced in tests. */
export interface Clock {
    /** The monotonic clock. */
    elapsed(): number;
    /** The time of day, since the Unix epoch. */
    now(): number;
}

export const systemClock: Clock = { elapsed: () => performance.now(), now: () => Date.now() };

/** How many observations are kept. The median counts, so that a single wrong one has no effect. */
const OBSERVATIONS_MAX = 5;

/** How many observations are needed for the median to count: of two, either may be wrong. */
const OBSERVATIONS_MIN = 3;

/** How far two observations may differ and still agree. A `Date` has whole seconds, and takes a moment to arrive. */
const TOLERANCE_MS = 5_000;

/**
 * The later of the system's time of day and the time of day expected from the monotonic clock. If the system's clock is set
 * back, no expired token becomes valid again; if it is set ahead, tokens expire early until it is corrected.
 */
export class Time {
    readonly #clock: Clock;
    /** The expected time of day minus the monotonic clock. */
    #offset: number;
    /** The last observations of this offset: the system clock's at the start, then one per response. */
    readonly #observations: number[];

    constructor(clock: Clock) {
        this.#clock = clock;
        this.#offset = clock.now() - clock.elapsed();
        this.#observations = [this.#offset];
    }

    /**
     * Takes in the issuer's time of day, from the `Date` of a response. Returns whether it agrees with the others; if not,
     * observe again soon.
     */
    observe(now: number): boolean {
        const observed = now - this.#clock.elapsed();
        this.#observations.push(observed);
        if (this.#observations.length > OBSERVATIONS_MAX) this.#observations.shift();
        if (this.#observations.length >= OBSERVATIONS_MIN) {
            const sorted = [...this.#observations].sort((one, other) => one - other);
            this.#offset = sorted[(sorted.length - 1) >> 1] ?? this.#offset;
        }
        return Math.abs(observed - this.#offset) <= TOLERANCE_MS;
    }

    /** The time of day. */
    now(): number {
        return Math.max(this.#clock.now(), this.#clock.elapsed() + this.#offset);
    }

    /** The monotonic clock. */
    elapsed(): number {
        return this.#clock.elapsed();
    }
}
