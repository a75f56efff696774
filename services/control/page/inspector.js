// One decision: what was known, what was drawn and how likely, which rules acted, and what was heard.
import { get } from "./api.js";
import { count, el, empty, figure, fixed, moment, number, percent, table, tag } from "./dom.js";

export const title = "Decisions";
export const slow = true; // one decision is searched in the log

export async function load(id) {
  return id ? { id, found: await get(`/v1/decisions/${encodeURIComponent(id)}`) } : { recent: (await get("/v1/decisions?limit=20")).decisions };
}

const link = (id) => `#/decisions/${encodeURIComponent(id)}`;
const search = (id) => el("section", { "data-key": "search" },
  el("form", { class: "search", onsubmit: (event) => {
    event.preventDefault();
    const wanted = new FormData(event.target).get("id").trim();
    if (wanted) location.hash = link(wanted);
  } }, el("label", {}, "Decision id", el("input", { name: "id", value: id ?? "", autocomplete: "off", spellcheck: "false" })), el("button", { type: "submit", class: "main" }, "Look it up")));

export const failed = (id) => [search(id)];

export function render({ id, found, recent }) {
  if (found) return [search(id), ...one(found)];
  return [search(), el("section", { "data-key": "recent" }, el("h2", {}, "The newest decisions"), recent.length
    ? table("The newest decisions", [{ name: "Decision" }, { name: "At" }, { name: "Surface" }, { name: "Policy" }, { name: "Mode" }, { name: "Slate" }, { name: "Feedback", n: true }],
      recent.map((d) => [el("a", { href: link(d.decision_id) }, el("code", {}, d.decision_id)), moment(d.at), d.surface, d.policy, d.mode, d.slate.join(", "), count(d.feedback)]))
    : empty("No decisions yet."))];
}

const pairs = (found) => Object.entries(found ?? {}).map(([name, value]) => number(name, typeof value === "number" ? figure(value) : typeof value === "object" ? JSON.stringify(value) : String(value)));

function one(f) {
  const d = f.decision, acted = [...d.acted.map((a) => `${a} acted`),
    ...Object.entries(d.relaxed).map(([rule, slots]) => `${rule} was passed over in slot ${slots.join(", ")}`),
    ...Object.entries(d.skipped).map(([rule, why]) => `${rule} could not be asked: ${why}`)];
  const context = pairs(f.context.raw ?? f.context.encoded), sampled = f.slots.filter((s) => s.likely);
  return [
    el("section", { "data-key": "made" }, el("div", { class: "head" }, el("h2", {}, "Made"), tag(d.mode, d.mode === "live" ? "live" : ""), d.reason && tag(d.reason)),
      el("dl", { class: "numbers small" }, number("At", moment(d.at)), number("Surface", d.surface), number("Policy", d.policy), number("Bundle", d.bundle ? d.bundle.slice(0, 12) : "none"),
        number("Unit's key", d.unit), d.session && number("Session", d.session), ...pairs(d.experiment), number("Candidates", count(f.candidates), d.dropped ? `${count(d.dropped)} not logged` : ""),
        number("Record", `${f.partition}:${f.offset}`, `after reading ${count(f.searched)}`))),
    el("section", { "data-key": "known" }, el("h2", {}, "What was known"),
      context.length ? el("dl", { class: "numbers small" }, context) : empty("No context."),
      d.history_items.length > 0 && el("p", { class: "note" }, `Did before: ${d.history_items.join(", ")}`),
      el("p", { class: "note" }, f.context.raw ? "As it was sent." : "The encoded columns that are not 0.")),
    el("section", { "data-key": "shown" }, el("h2", {}, "What was shown, and why"),
      table("Slots", [{ name: "Slot" }, { name: "Item" }, { name: "Propensity", n: true }, { name: "Left to choose from", n: true }, { name: "Greedy item" }, { name: "" }],
        f.slots.map((s) => [String(s.slot), s.item, fixed(s.propensity, 4), count(s.remaining), s.greedy ?? "–", [s.pinned && tag("pinned"), s.item === s.greedy ? tag("greedy", "live") : s.greedy && tag("explored")]])),
      el("h3", {}, "Rules"), acted.length ? el("ul", { class: "notes" }, acted.map((line) => el("li", {}, line))) : empty("No rule acted."),
      f.shadows.map((s) => el("p", { class: "note" }, `${s.policy} would have drawn this slate with ${s.propensities.map((p) => fixed(p, 4)).join(", ")}.`))),
    el("section", { "data-key": "likely" }, el("h2", {}, "How likely each candidate was"), sampled.length
      ? sampled.map((s) => el("article", { "data-key": String(s.slot) }, el("h3", {}, `Slot ${s.slot}`),
        table(`Candidates of slot ${s.slot}`, [{ name: "Item" }, { name: "Probability", n: true }, { name: "" }, { name: "Boost", n: true }],
          s.likely.map((c) => [c.item, percent(c.p, 2), el("progress", { class: "bar", value: String(c.p), max: "1", "aria-label": `Probability of ${c.item}` }), figure(c.boost)]))))
      : empty("Not sampled: the full distributions are logged for a share of decisions.")),
    el("section", { "data-key": "heard" }, el("h2", {}, "What was heard"), f.feedback.length
      ? table("Feedback", [{ name: "Kind" }, { name: "At" }, { name: "Slot or item" }, { name: "Value", n: true }, { name: "Id" }, { name: "Offset", n: true }],
        f.feedback.map((h) => [h.retracts ? `takes back ${h.retracts}` : h.kind, moment(h.at), h.slots ? h.slots.join(", ") : String(h.slot ?? h.item ?? "whole slate"), figure(h.value ?? 1), el("code", {}, h.feedback_id ?? ""), String(h.offset)]))
      : empty("Nothing yet.")),
  ];
}
