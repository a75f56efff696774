// Policies, the bundles they draw from, and going back.
import { post } from "./api.js";
import { act, ask } from "./dialog.js";
import { button, count, duration, el, empty, figure, fixed, known, moment, number, percent, tag } from "./dom.js";

export const title = "Policies";
export const load = async () => ({});

export const render = (_, report) => {
  const surfaces = Object.entries(report.surfaces);
  if (!surfaces.length) return [el("section", {}, empty("No surface yet, so no policies."))];
  return surfaces.map(([name, s]) => el("section", { "data-key": name }, el("h2", {}, name),
    s.bundles.map((one) => policy(name, one, s.answered?.[one.policy] ?? [], report.at))));
};

function policy(surface, one, answered, now) {
  const pointer = `${surface}/${one.policy}`, d = one.draws, diagnostics = Object.entries(one.diagnostics ?? {});
  return el("article", { "data-key": pointer },
    el("div", { class: "head" }, el("h3", {}, one.policy), el("span", { class: "note" }, one.algorithm),
      one.live && tag("live", "live"), one.held && tag("held", "held"),
      one.bundle && el("div", { class: "actions" },
        one.held && button("Follow learning again", () => resume(pointer), "", { "aria-label": `${pointer}: follow learning again` }),
        button("Roll back…", () => rollback(pointer, one, answered), "", { "aria-label": `Roll back ${pointer}` }))),
    one.error ? el("p", { class: "bad" }, one.error) : null,
    one.bundle
      ? el("p", { class: "note" }, "Bundle ", el("a", { href: `/v1/bundles/${one.bundle}` }, el("code", {}, one.bundle)))
      : el("p", { class: "note" }, "Draws without a bundle: nothing is learned."),
    el("dl", { class: "numbers small" },
      one.bundle && number("Publish", count(one.number), known(one.created_at) ? `${duration(now - one.created_at)} ago` : ""),
      known(d.bundle_age_seconds) && number("Age in scoring", duration(d.bundle_age_seconds)),
      number("Entropy", fixed(d.entropy_nats, 3), "nats"),
      number("Not greedy", percent(d.exploration_share, 1), "of slots"),
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
