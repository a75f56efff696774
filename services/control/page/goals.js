// Fairness of exposure and constraints, where surfaces have them.
import { chart } from "./charts.js";
import { el, empty, figure, percent, table } from "./dom.js";

const KEPT = 300, SHADES = ["live", "other", "base", "bad"];
const history = {};

export const title = "Goals";
export const load = async () => ({});

export function followed(report) {
  for (const [name, { goals }] of Object.entries(report.surfaces)) {
    const seen = (history[name] ??= { at: [], groups: {} });
    seen.at.push(report.at);
    for (const group of new Set([...Object.keys(seen.groups), ...Object.keys(goals.groups)])) {
      const line = (seen.groups[group] ??= Array(seen.at.length - 1).fill(null));
      line.push(goals.groups[group]?.share ?? null);
      if (line.length > KEPT) line.shift();
    }
    if (seen.at.length > KEPT) seen.at.shift();
  }
}

export function render(_, report) {
  const found = Object.entries(report.surfaces).map(([name, s]) => surface(name, s.goals)).filter(Boolean);
  return found.length ? found : [el("section", {}, empty("No surface has a fairness of exposure or a constraint that has been measured yet."))];
}

function surface(name, { groups, objectives }) {
  const shown = Object.entries(groups);
  if (!shown.length && !objectives.length) return null;
  const seen = history[name], names = Object.keys(seen?.groups ?? {}).slice(0, SHADES.length);
  return el("section", { "data-key": name }, el("h2", {}, name),
    shown.length > 0 && [el("h3", {}, "Exposure"),
      seen.at.length > 1 && chart(`exposure ${name}`, { label: `Share of slots by group: ${shown.map(([g, v]) => `${g} ${percent(v.share, 1)}`).join(", ")}`,
        lines: names.map((group, i) => ({ name: group, color: SHADES[i] })), data: [seen.at, ...names.map((group) => seen.groups[group])] }),
      table("Exposure", [{ name: "Group" }, { name: "Share of slots", n: true }, { name: "Owed", n: true }], shown.map(([group, v]) => [group, percent(v.share, 1), percent(v.deficit, 1)]))],
    objectives.length > 0 && [el("h3", {}, "Objectives and constraints"),
      table("Objectives", [{ name: "Objective" }, { name: "Policy" }, { name: "Arm" }, { name: "What" }, { name: "Value", n: true }],
        objectives.map((o) => [o.objective, o.policy, o.arm ?? "–", o.of, figure(o.value)]))]);
}
