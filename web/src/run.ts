// A run's page: the loss as a live chart, and the log that follows.
import uPlot from "uplot";

interface LossModel {
  run: string;
  total: number;
  resumed: number[];
  steps: number[];
  values: number[];
}

const PERIOD = 2000;

function startLoss(): void {
  const source = document.getElementById("loss-model");
  const box = document.getElementById("loss-chart");
  if (!source || !box) return;
  const model = JSON.parse(source.textContent ?? "{}") as LossModel;
  const steps = [...model.steps];
  const values = [...model.values];
  const drawn = document.getElementById("loss-drawn");
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
        { label: "loss", stroke: () => token("--accent"), width: 1.5, value: (_, v) => (v == null ? "" : v.toFixed(4)) },
      ],
      axes: [axis(), { ...axis(), size: 48 }],
      hooks: { draw: [(u) => markResumed(u, model.resumed, token("--ink-2"))], setCursor: [(u) => say(u.cursor.idx)] },
    },
    [steps, values],
    box,
  );
  // The chart is a canvas: give it a name, and its last value as text.
  chart.root.setAttribute("role", "img");
  chart.root.setAttribute("aria-label", "Training loss against step; the last value is in the text below");
  const now = document.getElementById("loss-now");
  say();
  new ResizeObserver(() => chart.setSize({ width: box.clientWidth - 24, height: 220 })).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw(false));
  chart.over.addEventListener("dblclick", () => (zoomed = false));
  chart.over.addEventListener("mouseup", () => (zoomed = chart.select.width > 0 || zoomed), { capture: true });
  if (document.body.hasAttribute("data-live")) setInterval(more, PERIOD);

  // The value under the pointer, else the last one.
  function say(at?: number | null): void {
    const index = at ?? values.length - 1;
    const value = values[index];
    if (now && value !== undefined) now.textContent = `Loss ${value.toFixed(4)} at step ${steps[index]} of ${model.total}. Drag to zoom, double-click for all.`;
  }

  async function more(): Promise<void> {
    if (document.hidden || isPaused()) return;
    const after = steps.at(-1) ?? -1;
    const response = await fetch(`/api/v1/runs/${model.run}/metrics?names=loss&after_step=${after}`).catch(() => null);
    if (!response?.ok) return;
    const [series] = (await response.json()) as { steps: number[]; values: number[] }[];
    if (!series?.steps.length) return;
    steps.push(...series.steps);
    values.push(...series.values);
    chart.setData([steps, values], !zoomed);
    if (zoomed) chart.redraw();
    say();
  }
}

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

startLoss();
startLog();
