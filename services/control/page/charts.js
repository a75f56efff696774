// Charts by uPlot. A view places `chart(id, spec)`; `draw` makes the plot once, then gives it new data.
import { el, fixed, known, moment } from "./dom.js";

const HEIGHT = 190;
const STEPS = [1, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 10800, 86400]; // seconds between labels of a time axis
const LONG = 26; // letters of a name on an axis
const many = (spec) => (spec.names?.length ?? 0) > 4; // names then stand askew
const tall = (spec) => (many(spec) ? 320 : HEIGHT);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => {
  if (target.plot && target.clientWidth) target.plot.setSize({ width: target.clientWidth, height: tall(target.spec) });
}));

// spec: {label: what it shows, in words with its numbers; lines: [{name, color, dash, hidden, band}]; data; names: of an ordinal x}
export const chart = (id, spec) => el("div", { class: "chart", "data-chart": id, role: "img", "aria-label": spec.label, spec });

export function draw(root) {
  for (const box of root.querySelectorAll("[data-chart]")) {
    const { spec } = box, shape = JSON.stringify([spec.lines, spec.names, spec.digits]);
    if (!box.plot || box.shape !== shape) {
      box.plot?.destroy();
      box.replaceChildren();
      box.shape = shape;
      box.plot = new uPlot(options(box), spec.data, box);
      watch.observe(box);
    } else box.plot.setData(spec.data);
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const box of document.querySelectorAll("[data-chart]")) box.shape = "";
  draw(document);
});

function options(box) {
  const { spec } = box, axis = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const digits = spec.digits ?? 3;
  return {
    width: box.clientWidth || 320,
    height: tall(spec),
    cursor: { y: false, drag: { x: false, y: false } },
    legend: { show: !spec.names },
    scales: spec.names
      ? { x: { time: false, range: [-0.5, spec.names.length - 0.5] }, y: { range: () => spread(box.spec.data) } }
      : { y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(1e-9, high ?? 1) * 1.08] } },
    axes: [
      spec.names
        ? { ...axis, grid: { show: false }, size: many(spec) ? 150 : 30, rotate: many(spec) ? -50 : 0, splits: spec.names.map((_, i) => i), values: () => spec.names.map((name) => (name.length > LONG ? name.slice(0, LONG - 1) + "…" : name)) }
        : { ...axis, values: "{HH}:{mm}:{ss}", space: 90, size: 30, incrs: STEPS },
      { ...axis, size: 56, values: (_, at) => at.map((v) => (Math.abs(v) >= 1000 ? v.toLocaleString("en") : String(+v.toFixed(6)))) },
    ],
    series: [
      { label: "at", class: "u-at", value: (_, v) => (v === null ? "" : moment(v)) },
      ...spec.lines.map((line) => ({
        label: line.name,
        stroke: line.hidden ? "transparent" : color(line.color),
        width: 2,
        dash: line.dash ? [6, 5] : undefined,
        points: { show: Boolean(spec.names) && !line.hidden, size: 9, fill: color(line.color) },
        paths: spec.names ? () => null : undefined,
        value: (_, v) => (known(v) ? fixed(v, digits) : ""),
        class: line.hidden ? "u-hide" : undefined,
      })),
    ],
    bands: spec.lines.flatMap((line, i) => (line.band ? [{ series: [i + 2, i + 3], fill: color(line.color) + "2e" }] : [])),
    hooks: spec.names ? { draw: [intervals] } : {},
  };
}

const spread = ([, ...columns]) => {
  const all = columns.flat().filter(known), low = Math.min(0, ...all), high = Math.max(0, ...all), more = (high - low || 1) * 0.12;
  return [low - more, high + more];
};

// Columns 1, 2, 3: effect, low, high; an end that is null is unbounded so far and reaches the edge, dashed.
function intervals(plot) {
  const { ctx, data, bbox } = plot, [x, , low, high] = data, thick = devicePixelRatio;
  const place = (v) => plot.valToPos(v, "y", true);
  ctx.save();
  ctx.lineWidth = thick;
  ctx.strokeStyle = color("base");
  ctx.setLineDash([4 * thick, 4 * thick]);
  stroke(ctx, bbox.left, place(0), bbox.left + bbox.width, place(0));
  ctx.lineWidth = 2 * thick;
  ctx.strokeStyle = color("live");
  x.forEach((at, i) => {
    const across = plot.valToPos(at, "x", true), cap = 7 * thick;
    const top = known(high[i]) ? place(high[i]) : bbox.top, bottom = known(low[i]) ? place(low[i]) : bbox.top + bbox.height;
    ctx.setLineDash(known(low[i]) && known(high[i]) ? [] : [3 * thick, 4 * thick]);
    stroke(ctx, across, top, across, bottom);
    ctx.setLineDash([]);
    if (known(high[i])) stroke(ctx, across - cap, top, across + cap, top);
    if (known(low[i])) stroke(ctx, across - cap, bottom, across + cap, bottom);
  });
  ctx.restore();
}

function stroke(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}
