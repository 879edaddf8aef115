// The figure's model, as server/src/figures/alpha.rs computes it. Everything is decided there but pixels.

export interface Model {
  view: "accuracy" | "delta";
  span: number;
  band_opacity: number;
  alphas: number[];
  lines: Line[];
  panels: Panel[];
  wide: Layout;
  narrow: Layout;
}

export interface Line {
  label: string;
  slot: number;
  marker: string;
  hollow: boolean;
  dash: string;
  n: number;
  best: { alpha: number } | null;
  muted: boolean;
}

export interface Panel {
  title: string;
  role: string;
  description: string;
  domain: [number, number];
  ticks: number[];
  backbone: number | null;
  backbone_band: [number, number] | null;
  offset: number;
  chance: number | null;
  lines: PanelLine[];
  labels: EndLabel[];
}

export interface PanelLine {
  points: Place[];
  seeds: { seed: number; points: [number, number][] }[];
}

export interface Place {
  alpha: number;
  mean: number;
  delta: number | null;
  n: number;
  band: [number, number] | null;
  wilson: [number, number] | null;
}

export interface EndLabel {
  line: number | null;
  text: string;
  end: [number, number];
  y: number;
}

export interface Layout {
  width: number;
  height: number;
  left: number;
  right: number;
  top: number;
  bottom: number;
  font: number;
  stroke: number;
  marker: number;
  labels: boolean;
}

// Seeds from which a t interval is shown; the same number as in server/src/figures/stats.rs.
export const SEEDS_FOR_INTERVAL = 3;

export const value = (percent: number) => percent.toFixed(1);

// A true minus sign, and no sign on what rounds to none.
export function signed(points: number): string {
  const rounded = Math.round(points * 10) / 10;
  if (rounded > 0) return `+${rounded.toFixed(1)}`;
  return rounded < 0 ? `\u2212${(-rounded).toFixed(1)}` : "0.0";
}

export const tone = (points: number) => (points >= 0.05 ? "gain" : points <= -0.05 ? "loss" : "");

export function band(place: Place): string {
  const [ends, name] =
    place.n <= 1 ? [place.wilson, "95 %"] : [place.band, place.n < SEEDS_FOR_INTERVAL ? "range" : "95 % t"];
  return ends ? `${name} ${value(ends[0])}\u2013${value(ends[1])}` : "";
}
