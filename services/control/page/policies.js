// Policies, the bundles they draw from, and going back.
import { Failed, get, post, read } from "./api.js";
import { chart } from "./charts.js";
import { act, ask } from "./dialog.js";
import { button, count, duration, el, empty, figure, fixed, known, moment, number, percent, table, tag } from "./dom.js";

const Z = 1.96; // 95 % of a normal
export const title = "Policies";
export const slow = true; // what one policy believes is computed when it is asked

export async function load(pointer) {
  if (pointer) return believed(pointer);
  const found = await get("/v1/surfaces");
  return { releases: await Promise.all(found.surfaces.map((s) => read(`/v1/releases/${encodeURIComponent(s.surface)}`).then((r) => [s.surface, r]))) };
}

const path = (pointer) => pointer.split("/").map(encodeURIComponent).join("/");
const orNone = (error) => (error instanceof Failed && [404, 409, 422].includes(error.status) ? { none: error.message } : Promise.reject(error));

// What the bundle of one policy holds to be true.
async function believed(pointer) {
  const [coefficients, convergence] = await Promise.all(["coefficients", "convergence"].map((what) => get(`/v1/policies/${path(pointer)}/${what}`).catch(orNone)));
  return { pointer, coefficients, convergence };
}

const SHOWN = 12, NARROW = 6; // coefficients drawn
const LISTED = 20; // and written at once
const WORD = 24; // letters; what is longer is a sentence

const columns = (label, found) => table(label, [{ name: "Column" }, { name: "Mean", n: true }, { name: "Posterior sd", n: true }, { name: "Importance", n: true }],
  found.map((one) => [one.column, figure(one.mean), figure(one.sd), figure(one.importance)]));

function beliefs({ pointer, coefficients: c, convergence: v }) {
  const drawn = c.none ? [] : c.coefficients.filter((one) => one.column !== "1").slice(0, innerWidth < 640 ? NARROW : SHOWN), spread = drawn.every((one) => known(one.sd)) && drawn.length > 0;
  const low = drawn.map((one) => one.mean - Z * (one.sd ?? 0)), high = drawn.map((one) => one.mean + Z * (one.sd ?? 0));
  return [
    el("p", { class: "note" }, el("a", { href: "#/policies" }, "All policies")),
    el("section", { "data-key": "convergence" }, el("h2", {}, `${pointer}: has it converged?`), v.none ? empty(v.none) : [
      el("dl", { class: "numbers" }, number("Its best is the best", percent(v.probability), "probable"), number("Least sure decision", percent(v.least_probability), "probable"),
        number("Lost by stopping", figure(v.expected_loss), "a slot"), number("At most, 95 %", figure(v.loss_95), "a slot"), number("Asked of", v.asked ? `${count(v.asked)} decisions` : "the bundle's probe")),
      el("p", { class: "note" }, `By its ${count(v.draws)} posterior draws, rules left aside.`)]),
    el("section", { "data-key": "coefficients" }, el("h2", {}, "Coefficients"), c.none ? empty(c.none) : [
      spread && chart("coefficients", { names: drawn.map((one) => one.column), lines: [{ name: "mean", color: "live" }, { name: "low", hidden: true, color: "live" }, { name: "high", hidden: true, color: "live" }],
        label: `The ${drawn.length} most important coefficients with 95 % posterior intervals, as in the table`, data: [drawn.map((_, i) => i), drawn.map((one) => one.mean), low, high] }),
      columns("Coefficients", c.coefficients.slice(0, LISTED)),
      c.coefficients.length > LISTED && el("details", {}, el("summary", {}, "Less important columns"), columns("Less important columns", c.coefficients.slice(LISTED))),
      el("p", { class: "note" }, `${count(c.coefficients.length)} of ${count(c.columns)} columns, the most important first: by the root mean square of the posterior draws.`)]),
  ];
}

// A candidate on its way to be live: its stage, what it has shown, and the steps that a person may take.
function release(surface, { body, etag }) {
  const r = body.release;
  if (!r || r.stage === "live" || r.stage === "aborted") return null;
  const evidence = body.gate ?? body.canary?.verdict;
  const step = (sent, done) => act(() => post(`/v1/releases/${encodeURIComponent(surface)}`, { ...sent, candidate: r.candidate }, etag), () => done);
  const asked = async (title, said, confirm, sent, done, kind) => (await ask(title, el("p", { class: "note" }, said), confirm, kind)) && step(sent, done);
  return el("article", { "data-key": `release ${surface}` },
    el("div", { class: "head" }, el("h3", {}, `Release of ${r.candidate}`), tag(r.stage, "live"), el("span", { class: "note" }, `against ${r.baseline}, since ${moment(r.since)}`),
      el("div", { class: "actions" },
        r.stage !== "canary" && button("Canary…", () => asked(`Canary of ${r.candidate}?`, `${percent(r.terms.share)} of the units get its slates.`, "Begin", { action: "canary" }, `${r.candidate} is a canary.`)),
        button("Promote…", () => asked(`Promote ${r.candidate}?`, "It becomes what the surface serves, if what it has shown allows that.", "Promote", { action: "promote" }, `${r.candidate} is live.`), "main"),
        button("Abort…", () => asked(`Abort the release of ${r.candidate}?`, "Nothing is drawn from it any more.", "Abort", { action: "abort", reason: "by hand" }, "The release is aborted.", "stop"), "stop"))),
    evidence && el("dl", { class: "numbers small" }, Object.entries(evidence).filter(([, v]) => known(v) || (typeof v === "string" && v.length < WORD)).map(([name, v]) => number(name.replaceAll("_", " "), known(v) ? figure(v) : v))),
    evidence && Object.values(evidence).filter((v) => typeof v === "string" && v.length >= WORD).map((said) => el("p", { class: "note after" }, `${said[0].toUpperCase()}${said.slice(1)}.`)));
}

export const render = (data, report) => {
  if (data.pointer) return beliefs(data);
  const releases = Object.fromEntries(data.releases);
  const surfaces = Object.entries(report.surfaces);
  if (!surfaces.length) return [el("section", {}, empty("No surface yet, so no policies."))];
  return surfaces.map(([name, s]) => el("section", { "data-key": name }, el("h2", {}, name),
    releases[name] && release(name, releases[name]),
    s.bundles.map((one) => policy(name, one, s.answered?.[one.policy] ?? [], report.at))));
};

function policy(surface, one, answered, now) {
  const pointer = `${surface}/${one.policy}`, d = one.draws, diagnostics = Object.entries(one.diagnostics ?? {});
  return el("article", { "data-key": pointer },
    el("div", { class: "head" }, el("h3", {}, one.policy), el("span", { class: "note" }, one.algorithm),
      one.live && tag("live", "live"), one.held && tag("held", "held"),
      one.bundle && el("div", { class: "actions" },
        el("a", { class: "button", href: `#/policies/${path(pointer)}`, "aria-label": `Beliefs of ${pointer}` }, "Beliefs"),
        one.held && button("Follow learning again", () => resume(pointer), "", { "aria-label": `${pointer}: follow learning again` }),
        button("Roll back…", () => rollback(pointer, one, answered), "", { "aria-label": `Roll back ${pointer}` }))),
    one.error ? el("p", { class: "bad" }, one.error) : null,
    one.bundle
      ? el("p", { class: "note" }, "Bundle ", el("a", { href: `/v1/bundles/${one.bundle}` }, el("code", {}, one.bundle)))
      : el("p", { class: "note" }, "Draws without a bundle: nothing is learned."),
    el("dl", { class: "numbers small" },
      one.bundle && number("Publish number", count(one.number), known(one.created_at) ? `${duration(now - one.created_at)} ago` : ""),
      known(d.bundle_age_seconds) && number("Age in scoring", duration(d.bundle_age_seconds)),
      number("Entropy", fixed(d.entropy_nats, 3), known(d.entropy_nats) && "nats"),
      number("Not greedy", percent(d.exploration_share, 1), known(d.exploration_share) && "of slots"),
      number("Least propensity", figure(d.propensity_min)),
      number("Calibration", known(d.propensity_z) ? fixed(d.propensity_z, 2) + " z" : "–"),
      one.bundle && number("Slot weight", fixed(one.slot_weight, 3))),
    diagnostics.length > 0 && el("details", {}, el("summary", {}, "Diagnostics of the bundle"),
      el("dl", { class: "numbers small" }, diagnostics.map(([name, value]) => number(name, figure(value))))));
}

async function rollback(pointer, one, answered) {
  const options = answered.filter((a) => a.bundle !== one.bundle)
    .map((a) => el("option", { value: `to ${a.bundle}` }, `${a.bundle.slice(0, 12)} · ${count(a.decisions)} decisions until ${moment(a.to)}`));
  const before = ["10m", "1h", "1d"].map((ago) => el("option", { value: `before ${ago}` }, `what answered ${ago} ago`));
  const here = el("option", { value: `to ${one.bundle}` }, `${one.bundle.slice(0, 12)} · hold what is drawn from now`);
  const fields = await ask(`Roll back ${pointer}`, [
    el("p", { class: "note" }, "Scoring draws from the chosen bundle and stays there; learning goes on beside it until you follow it again."),
    el("label", {}, "Back to", el("select", { name: "target" }, options, before, here)),
  ], "Roll back", "main");
  if (!fields) return;
  const [kind, value] = fields.target.split(" ");
  await act(() => post("/v1/releases", { policy: pointer, action: "rollback", [kind]: value }), (done) => `${pointer} is held at ${done.bundle.slice(0, 12)}.`);
}

const resume = (pointer) =>
  act(() => post("/v1/releases", { policy: pointer, action: "resume" }), () => `${pointer} follows learning again.`);
