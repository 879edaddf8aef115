// Bundles the dashboard into dist/, which the server embeds: a small script for every page, one with uPlot for runs,
// one with Observable Plot where a figure is, and the stylesheet. Names are stable; the server adds digests.
import { build } from "esbuild";
import { cpSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "dist");
// Budgets, kB after gzip.
const budgets = { "app.js": 20, "run.js": 30, "figure.js": 120, "styles.css": 12 };

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { app: "src/app.ts", run: "src/run.ts", figure: "src/figure.ts", styles: "styles/index.css" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome123", "firefox128", "safari17.5"],
  legalComments: "none",
  logLevel: "warning",
});
cpSync(join(here, "src/mark.svg"), join(out, "mark.svg"));

let over = false;
for (const [name, budget] of Object.entries(budgets)) {
  const bytes = readFileSync(join(out, name));
  const size = gzipSync(bytes, { level: 9 }).length / 1000;
  console.log(`${name.padEnd(11)} ${(bytes.length / 1000).toFixed(1).padStart(6)} kB, ${size.toFixed(1)} kB of ${budget} after gzip`);
  over ||= size > budget;
}
if (over) {
  console.error("a bundle is over its budget");
  process.exit(1);
}
