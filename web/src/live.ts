// Live without moving: every two seconds the page is asked for again (the server answers 304 while nothing has
// changed), and the regions marked data-swap whose HTML differs are replaced in place.

const PERIOD = 2000;
const served = new Map<string, string>();
let paused = false;
let failures = 0;
let since = "";

export function startLive(): void {
  if (!document.body.hasAttribute("data-live")) return;
  const button = document.getElementById("live");
  for (const region of regions(document)) served.set(region.id, region.innerHTML);
  const show = () => {
    if (!button) return;
    button.hidden = false;
    button.setAttribute("aria-pressed", String(!paused));
    button.classList.toggle("stale", failures > 2);
    button.textContent = paused ? "Paused" : failures > 2 ? `Not live since ${since}` : failures > 0 ? "Reconnecting…" : "Live";
  };
  const toggle = () => {
    paused = !paused;
    show();
  };
  button?.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLElement && event.target.closest("input, textarea, select");
    if (event.key === "p" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) toggle();
  });
  show();
  const tick = async () => {
    if (!paused && !document.hidden) {
      try {
        const response = await fetch(location.href, { headers: { accept: "text/html" } });
        if (!response.ok) throw new Error(String(response.status));
        swap(new DOMParser().parseFromString(await response.text(), "text/html"));
        failures = 0;
        since = new Date().toLocaleTimeString();
      } catch {
        since ||= new Date().toLocaleTimeString();
        failures += 1;
      }
      show();
      if (!document.body.hasAttribute("data-live")) {
        if (button) button.hidden = true;
        return;
      }
    }
    // A server that does not answer is asked less and less often.
    setTimeout(tick, PERIOD * Math.min(8, 2 ** Math.max(0, failures - 1)));
  };
  setTimeout(tick, PERIOD);
}

const regions = (root: Document) => root.querySelectorAll<HTMLElement>("[data-swap][id]");

function swap(fresh: Document): void {
  document.title = fresh.title;
  for (const region of regions(document)) {
    const next = fresh.getElementById(region.id);
    const html = next?.innerHTML ?? "";
    if (served.get(region.id) === html) continue;
    served.set(region.id, html);
    // What the reader has opened, ticked or is using stays as it is.
    const open = [...region.querySelectorAll("details")].map((details) => details.open);
    const ticked = new Set([...region.querySelectorAll<HTMLInputElement>("input:checked")].map((box) => box.value));
    const focused = region.contains(document.activeElement) ? address(region, document.activeElement) : null;
    region.innerHTML = html;
    region.querySelectorAll("details").forEach((details, at) => (details.open = open[at] ?? false));
    for (const box of region.querySelectorAll<HTMLInputElement>("input[type=checkbox]")) box.checked = ticked.has(box.value);
    if (focused) region.querySelector<HTMLElement>(focused)?.focus({ preventScroll: true });
  }
  // The first figure or chart, another panel or a run that ends changes the page's frame: take all of it.
  const had = document.getElementById("alpha-model");
  const has = fresh.getElementById("alpha-model");
  const ended = document.getElementById("cancel") && !fresh.getElementById("cancel");
  const charted = fresh.getElementById("series-model") && !document.getElementById("series-model");
  const panels = (root: Document) => root.querySelectorAll(".panel").length;
  if ((has && !had) || charted || ended || panels(document) !== panels(fresh)) {
    location.reload();
    return;
  }
  if (has && had && has.textContent !== had.textContent) {
    had.textContent = has.textContent;
    const numbers = document.getElementById("numbers");
    const nextNumbers = fresh.getElementById("numbers");
    if (numbers && nextNumbers) {
      const details = (numbers as HTMLDetailsElement).open;
      numbers.innerHTML = nextNumbers.innerHTML;
      (numbers as HTMLDetailsElement).open = details;
    }
    const key = document.querySelector(".key tbody");
    const nextKey = fresh.querySelector(".key tbody");
    if (key && nextKey) key.innerHTML = nextKey.innerHTML;
    document.dispatchEvent(new CustomEvent("figure-changed"));
  }
  if (!fresh.body.hasAttribute("data-live")) document.body.removeAttribute("data-live");
}

// Where a focusable element is inside its region, as a selector.
function address(region: HTMLElement, element: Element | null): string | null {
  if (!element || element === region) return null;
  const path: string[] = [];
  for (let at: Element = element; at !== region && at.parentElement; at = at.parentElement) {
    path.unshift(`:nth-child(${[...at.parentElement.children].indexOf(at) + 1})`);
  }
  return `#${region.id} > ${path.join(" > ")}`;
}
