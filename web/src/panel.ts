// One panel, drawn by Observable Plot from the model and the layout that the server drew it with, so that every mark
// stays where it was.
import * as Plot from "@observablehq/plot";
import type { Layout, Line, Model, Panel } from "./model";
import { SEEDS_FOR_INTERVAL } from "./model";

const SVG = "http://www.w3.org/2000/svg";

export function drawPanel(model: Model, panel: Panel, layout: Layout, width: number): SVGSVGElement {
  const s = width / layout.width;
  const [from, to] = panel.domain;
  const y = (accuracy: number) => accuracy - panel.offset;
  const order = [...model.lines.keys()].sort((a, b) => Number(model.lines[b]!.muted) - Number(model.lines[a]!.muted));
  const marks: Plot.Markish[] = [
    ...axes(panel, layout, s),
    ...order.flatMap((at) => line(model, at, panel, layout, s)),
    ...(layout.labels ? panel.labels.map((label) => endLabel(model, panel, label, layout, s)) : []),
  ];
  if (panel.backbone !== null) {
    marks.push(
      Plot.dot([panel.backbone], { x: () => 0, y, symbol: "diamond", r: layout.marker * 1.5 * s, fill: "var(--surface)", stroke: "var(--ink)", strokeWidth: 1.5 * s }),
    );
  }
  const svg = Plot.plot({
    width,
    height: (layout.height * width) / layout.width,
    marginLeft: layout.left * s,
    marginRight: layout.right * s,
    marginTop: layout.top * s,
    marginBottom: layout.bottom * s,
    style: { fontSize: `${layout.font * s}px`, background: "none", overflow: "visible" },
    x: { domain: [0, 1], axis: null },
    y: { domain: [from, to], axis: null },
    marks,
  }) as SVGSVGElement;
  // Plot labels its groups by kind of mark; inside an image that has a title and a description they are noise.
  for (const group of svg.querySelectorAll("g")) group.removeAttribute("aria-label");
  for (const mark of svg.querySelectorAll<SVGElement>("[class^='line-']")) {
    mark.dataset.line = mark.getAttribute("class")!.slice("line-".length);
  }
  return svg;
}

function axes(panel: Panel, layout: Layout, s: number): Plot.Markish[] {
  const [from] = panel.domain;
  const ink = "var(--ink-2)";
  const tick = (value: number) => {
    const text = String(Math.abs(Math.round(value * 100) / 100));
    return value < 0 ? `\u2212${text}` : panel.offset !== 0 && value > 0 ? `+${text}` : text;
  };
  const below = { frameAnchor: "bottom", lineAnchor: "bottom", dy: (layout.font + 6) * s, fill: ink } as const;
  const marks: Plot.Markish[] = [
    Plot.ruleY(panel.ticks, { stroke: "var(--line)" }),
    Plot.text(panel.ticks, { x: () => 0, y: Plot.identity, text: tick, textAnchor: "end", dx: -8 * s, fill: ink }),
    Plot.ruleY([from], { stroke: "var(--edge)" }),
    tickMarks(from),
    Plot.text([0, 0.25, 0.5, 0.75, 1], { ...below, x: Plot.identity, text: (a: number) => String(a).replace("0.", ".") }),
    Plot.text(["α"], { ...below, x: () => 1, text: Plot.identity, textAnchor: "start", dx: layout.font * 0.8 * s, fontStyle: "italic" }),
  ];
  if (panel.chance !== null) {
    marks.push(
      Plot.ruleY([panel.chance], { stroke: "var(--edge)", strokeDasharray: "1 3" }),
      Plot.text(["chance"], { x: () => 0, y: () => panel.chance, text: Plot.identity, textAnchor: "start", lineAnchor: "bottom", dx: 6 * s, dy: -3 * s, fill: ink }),
    );
  }
  if (panel.backbone !== null) marks.push(Plot.ruleY([panel.backbone - panel.offset], { stroke: ink, strokeDasharray: "3 3" }));
  return marks;

  // A longer tick at WiSE-FT's default, α = 0.5.
  function tickMarks(floor: number): Plot.RenderFunction {
    return (_index, scales) => {
      const group = document.createElementNS(SVG, "g");
      for (const alpha of [0, 0.25, 0.5, 0.75, 1]) {
        const path = document.createElementNS(SVG, "path");
        const [x, y] = [scales.scales.x!.apply(alpha), scales.scales.y!.apply(floor)];
        path.setAttribute("d", `M${x},${y}v${(alpha === 0.5 ? 7 : 4) * s}`);
        path.setAttribute("stroke", "var(--edge)");
        group.append(path);
      }
      return group;
    };
  }
}

function line(model: Model, at: number, panel: Panel, layout: Layout, s: number): Plot.Markish[] {
  const key: Line = model.lines[at]!;
  const drawn = panel.lines[at]!;
  const colour = key.muted ? "var(--ink-2)" : `var(--s${key.slot})`;
  const y = (accuracy: number) => accuracy - panel.offset;
  const common = { className: `line-${at}`, opacity: key.muted ? 0.4 : undefined };
  const stroked = key.marker === "times" || key.marker === "plus";
  const look = {
    symbol: key.marker as Plot.SymbolType,
    fill: stroked ? "none" : key.hollow ? "var(--surface)" : colour,
    stroke: stroked || key.hollow ? colour : "none",
    strokeWidth: 1.5 * s,
  };
  const measured = drawn.points.filter((p) => p.n > 0);
  const banded = drawn.points.filter((p) => p.n === 0 || p.n >= SEEDS_FOR_INTERVAL);
  const marks: Plot.Markish[] = [];
  if (banded.length > 1 && !key.muted) {
    marks.push(Plot.areaY(banded, { ...common, x: "alpha", y1: (p) => y(p.band?.[0] ?? p.mean), y2: (p) => y(p.band?.[1] ?? p.mean), fill: colour, fillOpacity: model.band_opacity }));
  }
  for (const seed of drawn.seeds) {
    marks.push(Plot.line(seed.points, { ...common, x: "0", y: (p: [number, number]) => y(p[1]), stroke: colour, strokeWidth: s, strokeOpacity: 0.45 }));
  }
  // A mark per line: a dash array is a constant, not a channel.
  marks.push(
    Plot.line(drawn.points, { ...common, x: "alpha", y: (p) => y(p.mean), stroke: colour, strokeWidth: key.muted ? 1 : layout.stroke * s, strokeDasharray: key.dash || undefined, strokeLinejoin: "round" }),
    Plot.dot(measured.filter((p) => p.alpha < 1), { ...common, ...look, x: "alpha", y: (p) => y(p.mean), r: layout.marker * s }),
    Plot.dot(measured.filter((p) => p.alpha === 1), { ...common, ...look, x: "alpha", y: (p) => y(p.mean), r: layout.marker * 1.4 * s }),
  );
  const best = measured.filter((p) => p.alpha > 0 && p.alpha === key.best?.alpha);
  marks.push(Plot.dot(best, { ...common, x: "alpha", y: (p) => y(p.mean), r: layout.marker * 2 * s, stroke: colour, strokeWidth: 1.5 * s }));
  return marks;
}

function endLabel(model: Model, panel: Panel, label: Panel["labels"][number], layout: Layout, s: number): Plot.RenderFunction {
  const key = label.line === null ? null : model.lines[label.line]!;
  return (_index, scales, _values, _dimensions, context) => {
    const group = document.createElementNS(SVG, "g");
    if (label.line !== null) group.setAttribute("class", `line-${label.line}`);
    const [endX, endY] = [scales.scales.x!.apply(label.end[0]), scales.scales.y!.apply(label.end[1])];
    const [x, y] = [scales.scales.x!.apply(1) + 24 * s, label.y * s];
    if (Math.abs(y - endY) > 6 * s || label.end[0] < 1) {
      append(group, "path", { d: `M${endX + 6 * s},${endY}L${x - 13 * s},${y}`, stroke: "var(--edge)", "stroke-width": String(0.75 * s), fill: "none" });
    }
    const mark = Plot.dot([0], {
      symbol: (key?.marker ?? "diamond") as Plot.SymbolType,
      r: (key ? layout.marker : 4) * s,
      fill: key === null || key.hollow ? "var(--surface)" : key.marker === "times" || key.marker === "plus" ? "none" : `var(--s${key.slot})`,
      stroke: key === null ? "var(--ink)" : key.hollow || key.marker === "times" || key.marker === "plus" ? `var(--s${key.slot})` : "none",
      strokeWidth: 1.5 * s,
    });
    const glyph = mark.render!([0], {} as Plot.ScaleFunctions, {} as Plot.ChannelValues, { ...ZERO } as Plot.Dimensions, context);
    if (glyph) {
      glyph.setAttribute("transform", `translate(${x - 7 * s},${y})`);
      group.append(glyph);
    }
    const text = append(group, "text", { x: String(x), y: String(y + layout.font * 0.35 * s), fill: "var(--ink)", stroke: "none", "text-anchor": "start" });
    text.textContent = label.text;
    return group;
  };
}

const ZERO = { width: 0, height: 0, marginTop: 0, marginRight: 0, marginBottom: 0, marginLeft: 0 };

function append(parent: Element, name: string, attributes: Record<string, string>): Element {
  const element = document.createElementNS(SVG, name);
  for (const [key, text] of Object.entries(attributes)) element.setAttribute(key, text);
  parent.append(element);
  return element;
}
