// A way to the server that can be cut: a TCP proxy on a port of its own.

import { once } from "node:events";
import net from "node:net";

export class Wire {
    #server;
    #pairs = new Set();
    #state = "whole";

    /** Opens a way to `url`; `this.url` is its other end. */
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

    /** Breaks all connections off, and takes no new one. */
    cut() {
        this.#state = "cut";
        for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    }

    /** Lets nothing pass any more, and tells nobody. */
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
