// What is answered, how well, and whether it learns.
import { Failed, get } from "./api.js";
import { chart } from "./charts.js";
import { count, duration, el, empty, figure, fixed, known, millis, bytes, number, percent, signed, table } from "./dom.js";

const Z = 1.96; // 95 % of a normal
const KEPT = 300; // turns drawn: ten minutes
const history = [[], [], []];

export const title = "Overview";

const orNone = (error) => (error instanceof Failed ? null : Promise.reject(error)); // the rest of the view stands without

export async function load() {
  const { surfaces } = await get("/v1/surfaces");
  return Object.fromEntries(await Promise.all(surfaces.map(async (s) => [s.surface, await get(`/v1/surfaces/${encodeURIComponent(s.surface)}/value`).catch(orNone)])));
}

export function followed({ at, scoring }) {
  if (!scoring) return;
  [at, scoring.decisions_per_second, scoring.latency_seconds.p99].forEach((v, i) => {
    history[i].push(known(v) ? v : null);
    if (history[i].length > KEPT) history[i].shift();
  });
}

export function render(values, report) {
  const surfaces = Object.entries(report.surfaces);
  return [service(report), ...surfaces.map(([name, s]) => surface(name, s, values[name])),
    ...(surfaces.length ? [] : [el("section", {}, el("h2", {}, "Surfaces"), empty("No surface yet: ", el("code", {}, "slatewise validate"), " a document and put it into the config folder."))])];
}

function service({ scoring: s }) {
  if (!s) return el("section", { "data-key": "away" }, el("h2", {}, "Service"), empty("Scoring exports no metrics at the moment."));
  return el("section", { "data-key": "service" }, el("h2", {}, "Service"),
    el("dl", { class: "numbers" },
      number("Decisions", fixed(s.decisions_per_second, 1), "a second"),
      number("Answered in all", count(s.decisions_total)),
      number("Latency p50", millis(s.latency_seconds.p50)),
      number("Latency p99", millis(s.latency_seconds.p99)),
      number("Freshness p95", millis(s.freshness_seconds.p95), "feedback to live"),
      number("Bundles published", count(s.published)),
      number("Feedback accepted", count(s.feedback.accepted ?? 0)),
      number("Spools on disk", bytes(s.spool_bytes))),
    history[0].length > 1 && chart("traffic", {
      label: `Decisions a second since this page was opened, now ${fixed(s.decisions_per_second, 1)}`,
      lines: [{ name: "decisions a second", color: "live" }], data: [history[0], history[1]], digits: 1 }));
}

// Against uniform slates, by whether the 95 % intervals are apart.
export function learning(s) {
  if (!known(s.uniform)) return ["Nothing to compare with yet", ""];
  const low = s.reward - Z * s.reward_error, high = s.reward + Z * s.reward_error;
  const above = low > s.uniform + Z * s.uniform_error, below = high < s.uniform - Z * s.uniform_error;
  const gain = s.uniform > 0 ? `${signed(s.reward / s.uniform - 1)} against uniform slates` : "uniform slates earn nothing";
  if (above) return ["Yes", gain];
  return below ? ["No: worse than uniform", gain] : ["Not told apart from uniform yet", gain];
}

function surface(name, s, value) {
  const head = el("h2", {}, name);
  if (!s.decisions) return el("section", { "data-key": `empty ${name}` }, head, empty("No decisions yet."));
  const [verdict, gain] = learning(s), at = s.series.map((p) => p.at), flat = (v) => at.map(() => v);
  const band = (v, error) => [flat(v), flat(v + Z * error), flat(v - Z * error)];
  const lines = [{ name: "reward a slate", color: "live" }], data = [at, s.series.map((p) => p.reward)];
  for (const [what, shade] of [["uniform", "base"], ["greedy", "other"]]) {
    if (!known(s[what])) continue;
    lines.push({ name: `${what} slates`, color: shade, dash: true, band: true }, { name: "high", hidden: true, color: shade }, { name: "low", hidden: true, color: shade });
    data.push(...band(s[what], s[`${what}_error`]));
  }
  return el("section", { "data-key": name }, head,
    el("p", { class: "verdict" }, "Is it learning? ", el("strong", { class: verdict.startsWith("No:") ? "bad" : null }, verdict), el("span", { class: "note" }, gain)),
    el("dl", { class: "numbers" },
      number("Reward a slate", fixed(s.reward, 3), "± " + fixed(Z * s.reward_error, 3)),
      number("Uniform slates", fixed(s.uniform, 3), known(s.uniform) ? "± " + fixed(Z * s.uniform_error, 3) : ""),
      number("Greedy slates", fixed(s.greedy, 3), known(s.greedy) ? "± " + fixed(Z * s.greedy_error, 3) : "not shown enough"),
      number("Greedy slots", percent(s.greedy_share)),
      number("Modes", Object.entries(s.modes).map(([m, n]) => `${m} ${count(n)}`).join(", "))),
    s.series.length > 1 && chart(`reward ${name}`, {
      label: `Mean reward a slate over the last ${s.decisions} decisions: ${fixed(s.reward, 3)}; uniform slates ${fixed(s.uniform, 3)}, greedy slates ${fixed(s.greedy, 3)}`,
      lines, data }),
    el("p", { class: "note" }, `The last ${count(s.decisions)} decisions, ${duration(s.to - s.from)}. Uniform and greedy slates are estimated from logged propensities, with 95 % bands.`),
    settled(name, value));
}

// Since the beginning, with intervals that hold at any time, from settled decisions.
function settled(name, value) {
  const found = Object.entries(value?.policies ?? {}).map(([policy, by]) => [policy, by[value.objective]]).filter(([, v]) => known(v?.estimate));
  if (!found.length) return null;
  const cell = (v) => `${fixed(v.low, 3)} … ${fixed(v.high, 3)}`;
  return el("details", {}, el("summary", {}, `Since the beginning: what each policy would have earned, of ${count(value.decisions)} settled decisions`),
    table(`Values on ${name}`, [{ name: "Policy" }, { name: `${value.objective}, a decision`, n: true }, { name: "Holds at any time", n: true }],
      found.map(([policy, v]) => [policy, fixed(v.estimate, 3), cell(v)])),
    el("p", { class: "note" }, `Learned, above uniform: ${figure(value.learned)}. Cost of exploring, against greedy: ${figure(value.exploration_cost)}.`));
}
