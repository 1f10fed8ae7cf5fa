// A TCP proxy to the server that can be cut.

import { once } from "node:events";
import net from "node:net";

export class Wire {
    #server;
    #pairs = new Set();
    #state = "whole";

    /** Opens a proxy to `url`; `this.url` is its address. */
    static async to(url) {
        const wire = new Wire();
        const { hostname, port } = new URL(url);
        wire.#server = net.createServer((near) => wire.#join(near, () => net.connect(port, hostname)));
        await once(wire.#server.listen(0, hostname), "listening");
        wire.url = `http://${hostname}:${wire.#server.address().port}`;
        return wire;
    }

    #join(near, connect) {
        if (this.#state === "cut") return near.destroy();
        const pair = this.#state === "dead" ? [near] : [near, connect()];
        this.#pairs.add(pair);
        if (this.#state === "dead") return near.pause().on("error", () => {});
        for (const [from, to] of [pair, [...pair].reverse()]) {
            from.pipe(to);
            from.on("error", () => to.destroy()).on("close", () => {
                to.destroy();
                this.#pairs.delete(pair);
            });
        }
    }

    /** Closes all connections, and accepts no new one. */
    cut() {
        this.#state = "cut";
        for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    }

    /** Silently drops everything from now on. */
    die() {
        this.#state = "dead";
        for (const pair of this.#pairs) for (const socket of pair) socket.unpipe().pause();
    }

    mend() {
        this.#state = "whole";
    }

    close() {
        this.cut();
        this.#server.close();
    }
}
