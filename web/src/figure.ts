// The α figure comes alive: one rule snaps to the nearest α through all panels and the key shows the values there; a
// line is picked out by pointing at it or by its button in the key. The keyboard does the same.
import type { Model, Panel, Place } from "./model";
import { band, signed, tone, value } from "./model";
import { drawPanel } from "./panel";

const SVG = "http://www.w3.org/2000/svg";

class Figure {
  private model: Model;
  private readonly root: HTMLElement;
  private readonly panels: HTMLElement;
  private readonly boxes: HTMLElement[];
  private readonly readout: HTMLElement | null;
  private readonly spoken = document.createElement("p");
  private hovered: number | null = null;
  private pinned: number | null = null;
  private under: number | null = null;
  private isolated: number | null = null;
  private lastSpoken = 0;

  constructor(root: HTMLElement, panels: HTMLElement, model: Model) {
    [this.root, this.panels, this.model] = [root, panels, model];
    this.boxes = [...panels.querySelectorAll<HTMLElement>(".box")];
    this.readout = root.querySelector("#readout");
    this.spoken.className = "sr";
    this.spoken.setAttribute("aria-live", "polite");
    root.append(this.spoken);
    panels.tabIndex = 0;
    panels.setAttribute("role", "group");
    panels.setAttribute("aria-label", "Panels of accuracy against α. Arrow keys choose α and line.");
    const asked = new URLSearchParams(location.search).get("a");
    if (asked !== null) this.pinned = this.nearest(Number(asked));
    this.keyButtons();
    this.draw();
    new ResizeObserver(() => this.draw()).observe(panels);
    panels.addEventListener("pointermove", (event) => this.point(event));
    panels.addEventListener("pointerleave", () => this.set(null, null));
    panels.addEventListener("click", (event) => {
      this.point(event);
      this.pin(this.hovered);
    });
    panels.addEventListener("keydown", (event) => this.key(event));
  }

  update(model: Model): void {
    this.model = model;
    this.keyButtons();
    this.draw(true);
  }

  private layout(box: HTMLElement) {
    return box.clientWidth < 400 ? this.model.narrow : this.model.wide;
  }

  private draw(force = false): void {
    this.boxes.forEach((box, at) => {
      const panel = this.model.panels[at];
      const width = box.clientWidth;
      if (!panel || !width || (!force && box.dataset.width === String(width))) return;
      box.dataset.width = String(width);
      const svg = drawPanel(this.model, panel, this.layout(box), width);
      name(svg, panel, at);
      const rule = document.createElementNS(SVG, "line");
      rule.setAttribute("class", "cursor");
      rule.setAttribute("stroke", "var(--accent)");
      svg.append(rule);
      box.replaceChildren(svg);
    });
    this.show();
  }

  private keyButtons(): void {
    for (const row of this.root.querySelectorAll<HTMLElement>(".key tr[data-line]")) {
      const name = row.querySelector(".line-name");
      if (!name || name.closest("button")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "isolate";
      button.title = "Show this line alone";
      button.setAttribute("aria-pressed", "false");
      name.replaceWith(button);
      button.append(name);
      const line = Number(row.dataset.line);
      button.addEventListener("click", () => {
        this.isolated = this.isolated === line ? null : line;
        this.show();
      });
    }
  }

  private alpha(): number {
    return this.hovered ?? this.pinned ?? 1;
  }

  private nearest(alpha: number): number {
    return this.model.alphas.reduce((best, a) => (Math.abs(a - alpha) < Math.abs(best - alpha) ? a : best), 0);
  }

  private point(event: PointerEvent | MouseEvent): void {
    const box = event.target instanceof Element ? event.target.closest<HTMLElement>(".box") : null;
    const panel = box && this.model.panels[this.boxes.indexOf(box)];
    if (!box || !panel) return;
    const layout = this.layout(box);
    const frame = box.getBoundingClientRect();
    const scale = frame.width / layout.width;
    const x = (event.clientX - frame.left) / scale;
    const y = (event.clientY - frame.top) / scale;
    const alpha = this.nearest((x - layout.left) / (layout.width - layout.left - layout.right));
    const height = (accuracy: number) =>
      layout.top + ((panel.domain[1] - (accuracy - panel.offset)) / (panel.domain[1] - panel.domain[0])) * (layout.height - layout.top - layout.bottom);
    let [under, distance]: [number | null, number] = [null, 18];
    panel.lines.forEach((line, at) => {
      const place = line.points.find((p) => p.alpha === alpha);
      if (place && alpha > 0 && Math.abs(height(place.mean) - y) < distance) [under, distance] = [at, Math.abs(height(place.mean) - y)];
    });
    this.set(alpha, under);
  }

  private set(alpha: number | null, under: number | null): void {
    if (alpha === this.hovered && under === this.under) return;
    [this.hovered, this.under] = [alpha, under];
    this.show();
  }

  private pin(alpha: number | null): void {
    this.pinned = this.pinned === alpha ? null : alpha;
    const url = new URL(location.href);
    if (this.pinned === null) url.searchParams.delete("a");
    else url.searchParams.set("a", String(this.pinned));
    history.replaceState(null, "", url);
    this.show();
  }

  private key(event: KeyboardEvent): void {
    const { alphas, lines } = this.model;
    const at = alphas.indexOf(this.alpha());
    const line = this.under ?? (event.key === "ArrowUp" ? lines.length : -1);
    const moves: Record<string, () => void> = {
      ArrowRight: () => this.set(alphas[Math.min(at + 1, alphas.length - 1)] ?? 1, this.under),
      ArrowLeft: () => this.set(alphas[Math.max(at - 1, 0)] ?? 0, this.under),
      Home: () => this.set(0, this.under),
      End: () => this.set(1, this.under),
      ArrowDown: () => this.set(this.alpha(), Math.min(line + 1, lines.length - 1)),
      ArrowUp: () => this.set(this.alpha(), Math.max(line - 1, 0)),
      Enter: () => this.pin(this.alpha()),
      Escape: () => {
        [this.hovered, this.under, this.pinned, this.isolated] = [null, null, null, null];
        this.pin(null);
      },
    };
    const move = moves[event.key];
    if (!move || event.target !== this.panels) return;
    event.preventDefault();
    move();
    this.speak();
  }

  private show(): void {
    const alpha = this.alpha();
    const picked = this.isolated ?? this.under;
    this.root.classList.toggle("picking", picked !== null);
    for (const mark of this.root.querySelectorAll<SVGElement>(".box [data-line]")) {
      mark.classList.toggle("on", mark.dataset.line === String(picked));
    }
    this.boxes.forEach((box) => {
      const rule = box.querySelector(".cursor");
      const layout = this.layout(box);
      const scale = box.clientWidth / layout.width;
      const x = String((layout.left + alpha * (layout.width - layout.left - layout.right)) * scale);
      const visible = this.hovered !== null || this.pinned !== null;
      rule?.setAttribute("visibility", visible ? "visible" : "hidden");
      for (const end of ["x1", "x2"]) rule?.setAttribute(end, x);
      rule?.setAttribute("y1", String(layout.top * scale));
      rule?.setAttribute("y2", String((layout.height - layout.bottom) * scale));
    });
    if (this.readout) this.readout.textContent = `at α = ${alpha}${this.pinned !== null && alpha === this.pinned ? " (kept)" : ""}`;
    for (const row of this.root.querySelectorAll<HTMLElement>(".key tr[data-line]")) {
      const line = Number(row.dataset.line);
      row.classList.toggle("on", picked === line);
      row.classList.toggle("off", picked !== null && picked !== line);
      row.querySelector("button")?.setAttribute("aria-pressed", String(this.isolated === line));
      row.querySelectorAll("td").forEach((cell, at) => fill(cell, this.model.panels[at], line, alpha));
    }
  }

  // At most twice a second, and only for the keyboard: a pointer would never stop talking.
  private speak(): void {
    const wait = Math.max(0, 500 - (Date.now() - this.lastSpoken));
    this.lastSpoken = Date.now() + wait;
    setTimeout(() => {
      const alpha = this.alpha();
      const lines = this.model.lines.map((line, at) => ({ line, at })).filter(({ at }) => this.under === null || this.under === at);
      const said = lines.map(({ line, at }) => {
        const parts = this.model.panels.map((panel) => {
          const place = panel.lines[at]?.points.find((p) => p.alpha === alpha);
          return place ? `${panel.title} ${value(place.mean)}${place.delta === null ? "" : `, ${signed(place.delta)}`}` : `${panel.title} not measured`;
        });
        return `${line.label}: ${parts.join("; ")}`;
      });
      this.spoken.textContent = `α ${alpha}. ${said.join(". ")}`;
    }, wait);
  }
}

function fill(cell: HTMLElement, panel: Panel | undefined, line: number, alpha: number): void {
  const place: Place | undefined = panel?.lines[line]?.points.find((p) => p.alpha === alpha);
  const put = (selector: string, text: string) => {
    const element = cell.querySelector(selector);
    if (element && element.textContent !== text) element.textContent = text;
    return element;
  };
  put(".value", place ? value(place.mean) : "–");
  const delta = place && place.n > 0 ? place.delta : null;
  const shown = put(".delta", delta === null ? "" : signed(delta));
  if (shown) shown.className = `delta ${delta === null ? "" : tone(delta)}`;
  put(".band", place ? band(place) : "");
}

// Plot adds ARIA attributes only; title and description come along from the drawing it replaces.
function name(svg: SVGSVGElement, panel: Panel, at: number): void {
  const [title, description] = [document.createElementNS(SVG, "title"), document.createElementNS(SVG, "desc")];
  [title.id, description.id] = [`p${at}t`, `p${at}d`];
  title.textContent = `${panel.title} · ${panel.role}`;
  description.textContent = panel.description;
  svg.prepend(title, description);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-labelledby", `${title.id} ${description.id}`);
}

const root = document.getElementById("alpha");
const panels = document.getElementById("panels");
const read = () => JSON.parse(document.getElementById("alpha-model")?.textContent ?? "null") as Model | null;
const model = read();
if (root && panels && model) {
  const figure = new Figure(root, panels, model);
  document.addEventListener("figure-changed", () => {
    const next = read();
    if (next) figure.update(next);
  });
}
