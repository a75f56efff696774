// Experiments: their course, and what they show so far.
import { get, post, read } from "./api.js";
import { chart } from "./charts.js";
import { act, ask } from "./dialog.js";
import { button, count, el, empty, figure, known, moment, number, percent, table, tag } from "./dom.js";

export const title = "Experiments";

export async function load(name) {
  if (!name) return get("/v1/experiments");
  const [one, report] = await Promise.all([read(`/v1/experiments/${encodeURIComponent(name)}`),
    get(`/v1/experiments/${encodeURIComponent(name)}/report`)]);
  return { name, trial: one.body, etag: one.etag, report };
}

export const render = (data) => (data.trial ? one(data) : all(data.experiments));

const KINDS = { running: "live", stopped: "", draft: "" };
const shares = (found) => Object.entries(found).map(([arm, share]) => `${arm} ${percent(share)}`).join(", ");

function all(found) {
  if (!found.length) {
    return [el("section", {}, empty("No experiment yet. Write one as a document beside the surface, or ",
      el("code", {}, "slatewise experiment create FILE"), "; it appears here as a draft to be started."))];
  }
  return [el("section", {}, table("Experiments",
    [{ name: "Experiment" }, { name: "Status" }, { name: "Surface" }, { name: "Layer" }, { name: "Shares" }, { name: "Started" }, { name: "Ended" }],
    found.map((t) => [el("a", { href: `#/experiments/${encodeURIComponent(t.experiment)}` }, t.experiment), tag(t.status, KINDS[t.status]),
      t.surface, t.layer, shares(t.shares), moment(t.start), t.status === "stopped" ? moment(t.stop) : "–"])))];
}

function one({ name, trial, etag, report }) {
  const { document } = trial, r = report;
  const course = (body, done) => act(() => post(`/v1/experiments/${encodeURIComponent(name)}/course`, body, etag), () => done);
  return [
    el("p", { class: "note" }, el("a", { href: "#/experiments" }, "All experiments")),
    el("section", { "data-key": name },
      el("div", { class: "head" }, el("h2", {}, name), tag(trial.status, KINDS[trial.status]), el("span", { class: "note" }, `${document.surface} · layer ${document.layer}`),
        el("div", { class: "actions" },
          trial.status === "draft" && button("Start…", () => start(name, document, trial, course), "main"),
          trial.status !== "stopped" && button("Shares…", () => allocate(name, trial, course)),
          trial.status === "running" && button("Stop…", () => stop(name, course), "stop"))),
      trial.reason && el("p", { class: "bad" }, `Stopped: ${trial.reason}`),
      el("dl", { class: "numbers" },
        number("Method", r.method, `α ${document.analysis.alpha}`),
        number("Window", String(document.analysis.window)),
        number("Started", moment(trial.start)),
        number("Settled to", moment(r.settled_to)),
        number("Sample ratio", r.sample_ratio.mismatch ? "mismatch" : "as it should be", `p ${figure(r.sample_ratio.p)}`)),
      r.sample_ratio.mismatch && el("p", { class: "bad" }, "Units are not split as the shares say: do not read the effects before you know why.")),
    el("section", { "data-key": "arms" }, el("h2", {}, "Arms"),
      table("Arms", [{ name: "Arm" }, { name: "Policy" }, { name: "Share", n: true }, { name: "Assigned units", n: true }, { name: "Complete units", n: true }],
        Object.entries(document.arms).map(([arm, a]) => [arm, a.policy ?? "the live one", percent(trial.shares[arm], 1), count(r.assigned[arm]), count(r.complete[arm])]))),
    el("section", { "data-key": "effects" }, el("h2", {}, "Effects"), effects(r), notes(r)),
    r.guardrails.length > 0 && el("section", { "data-key": "guardrails" }, el("h2", {}, "Guardrails"),
      table("Guardrails", [{ name: "Metric" }, { name: "Arm" }, { name: "Effect", n: true }, { name: "Interval", n: true }, { name: "Least effect", n: true }, { name: "Verdict" }],
        r.guardrails.map((g) => [g.metric, g.arm, figure(g.effect), interval(g), figure(g.min_effect), tag(g.verdict, g.verdict === "breached" ? "bad" : "")]))),
  ].filter(Boolean);
}

const interval = (c) => `${known(c.low) ? figure(c.low) : "−∞"} … ${known(c.high) ? figure(c.high) : "∞"}`;

function effects(r) {
  const measured = r.comparisons.filter((c) => known(c.effect));
  if (!r.comparisons.length || !measured.length) return empty("No complete units yet: a unit counts when its window has closed.");
  const say = (c) => `${c.metric}, ${c.arm}: ${figure(c.effect)}, ${interval(c)}`;
  return [
    chart("effects", { names: measured.map((c) => `${c.metric} · ${c.arm}`), lines: [{ name: "effect", color: "live" }, { name: "low", hidden: true, color: "live" }, { name: "high", hidden: true, color: "live" }],
      label: `Effects with intervals. ${measured.map(say).join("; ")}`,
      data: [measured.map((_, i) => i), measured.map((c) => c.effect), measured.map((c) => c.low ?? null), measured.map((c) => c.high ?? null)] }),
    table("Effects", [{ name: "Metric" }, { name: "Arm" }, { name: "Verdict" }, { name: "Control", n: true }, { name: "Treatment", n: true }, { name: "Effect", n: true }, { name: "Interval", n: true },
      { name: r.method === "bayesian" ? "Chance to be better" : "p", n: true }, { name: "Variance left", n: true }],
    r.comparisons.map((c) => [c.metric, c.arm, tag(c.verdict), figure(c.control), figure(c.treatment), figure(c.effect), interval(c),
      r.method === "bayesian" ? percent(c.chance, 1) : figure(c.p_adjusted ?? c.p), percent(c.variance_left ?? 1)])),
  ];
}

function notes(r) {
  const said = [...r.notes, ...(r.interference.length ? [`Arms share: ${r.interference.join(", ")}.`] : []), ...r.missing];
  return said.length > 0 && el("ul", { class: "notes" }, said.map((line) => el("li", {}, line)));
}

async function start(name, document, trial, course) {
  const yes = await ask(`Start ${name}?`, el("p", { class: "note" }, `From now on requests of ${document.surface} are assigned: ${shares(trial.shares)}. It cannot go back to a draft.`), "Start");
  if (yes) await course({ action: "start" }, `${name} is running.`);
}

async function stop(name, course) {
  const fields = await ask(`Stop ${name}?`, [el("p", { class: "note" }, "Nobody is assigned any more; windows that are open still close. It does not start again."),
    el("label", {}, "Why (kept in the audit)", el("input", { name: "reason", maxlength: "200" }))], "Stop", "stop");
  if (fields) await course({ action: "stop", reason: fields.reason }, `${name} is stopped.`);
}

async function allocate(name, trial, course) {
  const fields = await ask(`Shares of ${name}`, [el("p", { class: "note" }, "Only the units that must move, move."),
    Object.entries(trial.shares).map(([arm, share]) => el("label", {}, `${arm}, 0 to 1`,
      el("input", { name: arm, type: "number", min: "0", max: "1", step: "any", required: true, value: String(share) })))], "Give these shares");
  if (fields) await course({ shares: Object.fromEntries(Object.entries(fields).map(([arm, share]) => [arm, Number(share)])) }, `${name} has other shares.`);
}
