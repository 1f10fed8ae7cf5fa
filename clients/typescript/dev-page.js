// What the page of `sessiond dev` loads. `check --write` bundles it into src/bin/sessiond/dev/page/sessiond.js.

export { Client } from "@sessiond/client";
import "@sessiond/devices/element";
