// A run's page: a metric as a live chart, and the log that follows.
import uPlot from "uplot";

interface Model {
  run: string;
  name: string;
  title: string;
  total: number;
  resumed: number[];
  steps: number[];
  values: (number | null)[];
}

/** A series as the API tells it; what is not finite is a word there and a gap here. */
interface Series {
  steps: number[];
  values: (number | string)[];
  shown?: { exact: boolean; count: number; non_finite: number };
}

const PERIOD = 2000;
/** After a zoom, wait for the last of its events before asking for the values. */
const SETTLE = 150;

function startChart(): void {
  const source = document.getElementById("series-model");
  const box = document.getElementById("series-chart");
  if (!source || !box) return;
  const model = JSON.parse(source.textContent ?? "{}") as Model;
  // All steps; while zoomed the chart shows another part, asked for at the chart's own resolution.
  let steps = [...model.steps];
  let values = [...model.values];
  let part: [number[], (number | null)[]] | null = null;
  const drawn = document.getElementById("series-drawn");
  if (drawn) {
    drawn.hidden = true;
    drawn.removeAttribute("data-swap");
  }
  const token = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (): uPlot.Axis => ({
    stroke: () => token("--ink-2"),
    grid: { stroke: () => token("--line"), width: 1 },
    ticks: { stroke: () => token("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
  });
  const chart = new uPlot(
    {
      width: box.clientWidth - 24,
      height: 220,
      legend: { show: false },
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: false, range: (_, min, max) => (zoomed ? [min, max] : [0, Math.max(model.total, max || 1)]) } },
      series: [
        { label: "step" },
        { label: model.title, stroke: () => token("--accent"), width: 1.5, value: (_, v) => (v == null ? "" : v.toFixed(4)) },
      ],
      axes: [axis(), { ...axis(), size: 48 }],
      hooks: {
        draw: [(u) => markResumed(u, model.resumed, token("--ink-2"))],
        setCursor: [(u) => say(u.cursor.idx)],
        setSelect: [(u) => u.select.width > 0 && zoomTo(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"))],
      },
    },
    [steps, values],
    box,
  );
  // The chart is a canvas: give it a name, and its last value as text.
  chart.root.setAttribute("role", "img");
  chart.root.setAttribute("aria-label", `${model.title} against step; the last value is in the text below`);
  const now = document.getElementById("series-now");
  say();
  new ResizeObserver(() => chart.setSize({ width: box.clientWidth - 24, height: 220 })).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw(false));
  chart.over.addEventListener("dblclick", zoomOut);
  if (document.body.hasAttribute("data-live")) setInterval(more, PERIOD);

  // The value under the pointer, else the last one.
  function say(at?: number | null): void {
    const [places, numbers] = part ?? [steps, values];
    const index = at ?? places.length - 1;
    const value = numbers[index];
    if (!now || places[index] === undefined) return;
    const text = value == null ? "not finite" : value.toFixed(4);
    const of = model.total > 0 ? ` of ${model.total}` : "";
    now.textContent = `${model.title} ${text} at step ${places[index]}${of}. Drag to zoom, double-click for all.`;
  }

  async function ask(query: string): Promise<[number[], (number | null)[]] | null> {
    const columns = Math.min(4096, Math.max(100, chart.width));
    const address = `/api/v1/runs/${model.run}/metrics?names=${encodeURIComponent(model.name)}&resolution=${columns}${query}`;
    const response = await fetch(address).catch(() => null);
    if (!response?.ok) return null;
    const [series] = (await response.json()) as Series[];
    return [series?.steps ?? [], (series?.values ?? []).map((value) => (typeof value === "string" ? null : value))];
  }

  // What a column of the whole hides is there when one looks closer.
  function zoomTo(min: number, max: number): void {
    zoomed = true;
    clearTimeout(settling);
    settling = setTimeout(async () => {
      const fresh = await ask(`&from_step=${Math.max(0, Math.floor(min))}&to_step=${Math.ceil(max)}`);
      if (!fresh?.[0].length || !zoomed) return;
      part = fresh;
      chart.setData(part, false);
      chart.redraw();
      say();
    }, SETTLE);
  }

  function zoomOut(): void {
    zoomed = false;
    part = null;
    chart.setData([steps, values]);
    say();
  }

  async function more(): Promise<void> {
    if (document.hidden || isPaused()) return;
    // What came bit by bit is thinned again as a whole once there is much of it.
    const whole = steps.length > 8 * chart.width;
    const fresh = await ask(whole ? "" : `&after_step=${steps.at(-1) ?? -1}`);
    if (!fresh?.[0].length) return;
    if (whole) [steps, values] = fresh;
    else {
      steps.push(...fresh[0]);
      values.push(...fresh[1]);
    }
    if (zoomed) return;
    chart.setData([steps, values]);
    say();
  }
}

let settling: ReturnType<typeof setTimeout> | undefined;
let zoomed = false;
const isPaused = () => document.getElementById("live")?.getAttribute("aria-pressed") === "false";

function markResumed(u: uPlot, steps: number[], colour: string): void {
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.fillStyle = colour;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  for (const step of steps) {
    const x = u.valToPos(step, "x", true);
    ctx.beginPath();
    ctx.moveTo(x, u.bbox.top);
    ctx.lineTo(x, u.bbox.top + u.bbox.height);
    ctx.stroke();
    ctx.fillText(`resumed at ${step}`, x + 4 * devicePixelRatio, u.bbox.top + 12 * devicePixelRatio);
  }
  ctx.restore();
}

function startLog(): void {
  const log = document.getElementById("log-lines");
  const follow = document.getElementById("log-follow") as HTMLInputElement | null;
  const filter = document.getElementById("log-filter") as HTMLInputElement | null;
  const note = document.getElementById("log-note");
  if (!log || !follow || !filter || !note) return;
  let missed = 0;
  const say = () => {
    const lines = log.children.length;
    const hits = log.querySelectorAll(":scope > span:not([hidden])").length;
    const filtered = filter.value ? `${hits} of ${lines} lines match` : "";
    note.textContent = !follow.checked && missed ? `Following paused · ${missed} new lines` : filtered;
  };
  const toEnd = () => {
    if (follow.checked) log.scrollTop = log.scrollHeight;
    if (follow.checked) missed = 0;
  };
  const match = (line: HTMLElement) => {
    line.hidden = !!filter.value && !line.textContent?.toLowerCase().includes(filter.value.toLowerCase());
  };
  filter.addEventListener("input", () => {
    for (const line of log.children) match(line as HTMLElement);
    toEnd();
    say();
  });
  follow.addEventListener("change", () => {
    toEnd();
    say();
  });
  log.addEventListener("wheel", () => requestAnimationFrame(stopAtScroll), { passive: true });
  log.addEventListener("keyup", stopAtScroll);
  function stopAtScroll(): void {
    if (!log || !follow) return;
    if (log.scrollTop + log.clientHeight < log.scrollHeight - 8) follow.checked = false;
    say();
  }
  toEnd();
  if (!log.hasAttribute("data-ended")) setInterval(more, PERIOD);

  async function more(): Promise<void> {
    if (!log || document.hidden || isPaused()) return;
    const response = await fetch(`/fragments/runs/${log.dataset.run}/log?after=${log.dataset.cursor}`).catch(() => null);
    if (!response?.ok) return;
    const fresh = (await response.json()) as { lines: { stream: string; attempt: number; text: string }[]; cursor: string };
    if (!fresh.lines.length) return;
    log.dataset.cursor = fresh.cursor;
    document.getElementById("log-empty")?.remove();
    for (const line of fresh.lines) {
      const span = document.createElement("span");
      span.className = line.stream;
      span.dataset.attempt = String(line.attempt);
      span.textContent = `${line.text}\n`;
      match(span);
      log.append(span);
    }
    missed += fresh.lines.length;
    toEnd();
    say();
  }
}

startChart();
startLog();
