// Opens every page as a reader would: both widths, both schemes, with and without JavaScript. Checks that nothing
// scrolls sideways, nothing complains in the console, axe finds nothing, and the figure is there.
//
//   node test/smoke.mjs SIGN_IN_URL OUTPUT_FOLDER
//
// CHROMIUM names the browser; /usr/bin/chromium by default. Exits 1 if anything failed.
import { AxeBuilder } from "@axe-core/playwright";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [signIn, out] = process.argv.slice(2);
if (!signIn || !out) {
  console.error("usage: node test/smoke.mjs SIGN_IN_URL OUTPUT_FOLDER");
  process.exit(2);
}
mkdirSync(out, { recursive: true });
const origin = new URL(signIn).origin;
let passed = 0;
let failed = 0;

function check(name, problem) {
  if (problem) {
    failed += 1;
    console.log(`FAILED ${name}: ${problem}`);
  } else {
    passed += 1;
  }
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

try {
  const first = await signedIn({ viewport: { width: 1440, height: 900 } });
  const pages = await findPages(first);
  await first.close();
  for (const width of [1440, 390]) {
    for (const scheme of ["light", "dark"]) {
      await readPages(pages, width, scheme);
    }
  }
  if (pages.experiment) {
    await withoutScript(pages);
    await figureComesAlive(pages);
    await themeIsKept(pages);
    await downloads(pages);
  }
  await strangers();
} catch (error) {
  check("the test itself", error.stack);
} finally {
  await browser.close();
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;

async function signedIn(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  await page.goto(signIn);
  await page.close();
  return context;
}

// The newest experiment with a figure, its first run with a checkpoint, a failed run, and two checkpoints to compare.
async function findPages(context) {
  const page = await context.newPage();
  const pages = { home: "/", workers: "/workers", queue: "/queue" };
  await page.goto(`${origin}/`);
  const experiments = await page.$$eval("#experiment-list th a", (links) => links.map((a) => a.getAttribute("href")));
  for (const address of experiments) {
    await page.goto(origin + address);
    if (!(await page.$("#alpha"))) continue;
    pages.experiment = address;
    const rows = await page.$$eval("#runs tbody tr", (rows) =>
      rows.map((row) => ({
        address: row.querySelector("th a").getAttribute("href"),
        checkpoint: row.querySelector("input")?.value,
        state: row.querySelector(".state")?.textContent.trim(),
      })),
    );
    const done = rows.filter((row) => row.checkpoint);
    pages.run = (done[0] ?? rows[0]).address;
    pages.failed = rows.find((row) => row.state === "failed")?.address;
    pages.running = rows.find((row) => row.state === "running")?.address;
    pages.waiting = rows.find((row) => row.state === "queued")?.address;
    const digests = [...new Set(done.map((row) => row.checkpoint.slice(0, 12)))].slice(0, 3);
    if (digests.length) pages.compare = `/compare?checkpoints=${digests.join(",")}`;
    break;
  }
  await page.goto(`${origin}/searches`);
  pages.searches = "/searches";
  pages.search = await page.$eval("#search-list th a", (link) => link.getAttribute("href")).catch(() => null);
  check("a search is there", pages.search ? null : "none is listed");
  check("an experiment with a figure is there", pages.experiment ? null : "no experiment shows one");
  for (const name of Object.keys(pages)) if (!pages[name]) delete pages[name];
  return pages;
}

async function readPages(pages, width, scheme) {
  const context = await signedIn({ viewport: { width, height: width < 500 ? 844 : 900 }, colorScheme: scheme });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  for (const [name, address] of Object.entries(pages)) {
    const label = `${name} at ${width}, ${scheme}`;
    complaints.length = 0;
    const response = await page.goto(origin + address);
    check(`${label} answers`, response.ok() ? null : String(response.status()));
    await settle(page, pages, name);
    const sideways = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    check(`${label} does not scroll sideways`, sideways > 0 ? `by ${sideways} px` : null);
    check(`${label} has one h1`, (await page.locator("h1").count()) === 1 ? null : `${await page.locator("h1").count()}`);
    const { violations } = await new AxeBuilder({ page }).analyze();
    const found = violations.map((v) => `${v.id}: ${v.nodes.map((node) => node.target.join(" ")).join(", ")} (${v.nodes[0].failureSummary})`);
    check(`${label} has nothing for axe`, found.join("; ") || null);
    check(`${label} has no complaint in the console`, complaints.join("; ") || null);
    await page.screenshot({ path: join(out, `${name}-${width}-${scheme}.png`), fullPage: true });
  }
  await context.close();
}

// Until the scripts have drawn what they draw.
async function settle(page) {
  await page.waitForSelector("html.js");
  if (await page.$("#alpha-model")) {
    await page.waitForFunction(() => document.querySelectorAll("#panels .box > svg").length === document.querySelectorAll("#panels .box").length);
  }
  if (await page.$("#series-model")) await page.waitForSelector(".uplot canvas");
}

async function withoutScript(pages) {
  for (const width of [1440, 390]) {
    const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width, height: 900 } });
    const page = await context.newPage();
    await page.goto(signIn);
    await page.goto(origin + pages.experiment);
    const boxes = await page.locator(".box").count();
    const visible = await page.locator(".box svg.drawn").filter({ visible: true }).count();
    check(`without JavaScript at ${width} every panel is drawn`, visible === boxes && boxes > 0 ? null : `${visible} of ${boxes}`);
    const size = await page.locator(".box svg.drawn").filter({ visible: true }).first().boundingBox();
    check(`without JavaScript at ${width} panels have a size`, size && size.width > 200 && size.height > 120 ? null : JSON.stringify(size));
    await page.screenshot({ path: join(out, `experiment-${width}-no-script.png`), fullPage: true });
    if (pages.run) {
      await page.goto(origin + pages.run);
      const drawn = await page.locator("#series-drawn svg").filter({ visible: true }).count();
      check(`without JavaScript at ${width} the loss is drawn`, drawn === 1 || !(await page.$("#series-model")) ? null : String(drawn));
    }
    await context.close();
  }
}

async function figureComesAlive(pages) {
  const context = await signedIn({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  // The server's drawing and Plot's have their marks in the same places.
  const ends = () =>
    page.evaluate(() => {
      const box = document.querySelector(".box");
      const frame = box.getBoundingClientRect();
      const svg = [...box.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width > 0);
      const mark = (path) => {
        const at = path.getBoundingClientRect();
        return [at.left + at.width / 2 - frame.left, at.top + at.height / 2 - frame.top];
      };
      // Rings are the only circles without a fill, end marks the only text whose content ends with a bracket.
      return { height: frame.height, texts: [...svg.querySelectorAll("text")].filter((t) => t.textContent.endsWith(")")).map((t) => [t.textContent, ...mark(t)]) };
    });
  await page.route("**/assets/figure.js*", (route) => route.abort());
  await page.goto(origin + pages.experiment);
  const before = await ends();
  await page.unroute("**/assets/figure.js*");
  await page.goto(origin + pages.experiment);
  await page.waitForSelector(".box > svg");
  const after = await ends();
  const moved = before.texts.map(([text, x, y], at) => [text, after.texts[at], x, y]).filter(([text, other, x, y]) => !other || other[0] !== text || Math.hypot(other[1] - x, other[2] - y) > 1.5);
  check("the browser draws the figure where the server drew it", moved.length || Math.abs(before.height - after.height) > 1 ? JSON.stringify({ moved, before: before.height, after: after.height }) : null);

  const panel = page.locator(".box").first();
  const frame = await panel.boundingBox();
  await page.mouse.move(frame.x + frame.width * 0.3, frame.y + frame.height * 0.5);
  const said = await page.locator("#readout").textContent();
  check("pointing at a panel reads its values", /α = 0\.\d/.test(said) ? null : said);
  const button = page.locator("button.isolate").first();
  await button.click();
  check("the key isolates a line", (await button.getAttribute("aria-pressed")) === "true" && (await page.locator(".alpha.picking").count()) === 1 ? null : "not picked");
  await page.screenshot({ path: join(out, "experiment-1440-isolated.png") });
  await button.click();
  await page.locator("#panels").focus();
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Enter");
  await page.waitForURL(/[?&]a=/, { timeout: 5000 }).catch(() => {}); // the check below says what is there instead
  check("the keyboard keeps an α in the address", new URL(page.url()).searchParams.has("a") ? null : page.url());
  await page.locator("#numbers summary").click();
  check("the numbers are there", (await page.locator("#numbers td").filter({ visible: true }).count()) > 0 ? null : "no cells");
  await context.close();
}

async function themeIsKept(pages) {
  const context = await signedIn({ viewport: { width: 390, height: 844 }, colorScheme: "light" });
  const page = await context.newPage();
  await page.goto(origin + pages.experiment);
  await page.locator(".tools a").click();
  check("the theme link comes back to the page", page.url() === origin + pages.experiment ? null : page.url());
  check("the server renders the theme", (await page.locator("html").getAttribute("data-theme")) === "dark" ? null : "no data-theme");
  await context.close();
}

async function downloads(pages) {
  const context = await signedIn({});
  const svg = await context.request.get(`${origin}${pages.experiment}/alpha.svg?width=84mm`);
  const text = await svg.text();
  check("the paper figure is an SVG with real text", svg.ok() && text.includes("<text") && !text.includes("var(--") && text.length < 100_000 ? null : `${svg.status()} ${text.length}`);
  const csv = await context.request.get(`${origin}${pages.experiment}/curves.csv`);
  const rows = (await csv.text()).trim().split("\n");
  check("the CSV has a row per point", csv.ok() && rows.length > 1 && rows[0].startsWith("dataset,") ? null : `${csv.status()} ${rows.length}`);
  await context.close();
}

// Who is not signed in is told how to.
async function strangers() {
  const context = await browser.newContext({ viewport: { width: 390, height: 844 } });
  const page = await context.newPage();
  const response = await page.goto(`${origin}/`);
  check("a stranger gets 401", response.status() === 401 ? null : String(response.status()));
  check("a stranger is told how to sign in", (await page.title()).startsWith("Sign in") ? null : await page.content());
  const { violations } = await new AxeBuilder({ page }).analyze();
  check("the sign-in page has nothing for axe", violations.map((v) => v.id).join(", ") || null);
  await page.screenshot({ path: join(out, "sign-in-390-light.png") });
  await context.close();
  const known = await signedIn({});
  const missing = await known.newPage();
  const answer = await missing.goto(`${origin}/experiments/00000000-0000-7000-8000-000000000000`);
  check("an unknown experiment is a page with 404", answer.status() === 404 && (await missing.locator("h1").count()) === 1 ? null : String(answer.status()));
  await known.close();
}
