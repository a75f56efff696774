// Which view is shown, and the turn that keeps it true: every two seconds, every ten while nobody looks.
import * as api from "./api.js";
import { draw } from "./charts.js";
import { el, morph, moment } from "./dom.js";
import * as experiments from "./experiments.js";
import * as goals from "./goals.js";
import * as inspector from "./inspector.js";
import * as overview from "./overview.js";
import * as policies from "./policies.js";
import * as stream from "./stream.js";

const VIEWS = { overview, policies, experiments, goals, stream, decisions: inspector };
const SEEN_MS = 2000, SLOW_MS = 10000, HIDDEN_MS = 10000; // slow: one thing of a view that costs the service something
const $ = (id) => document.getElementById(id);
let turn = 0, next = 0;

function asked() {
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/");
  return { name: name in VIEWS ? name : "overview", argument: rest.length ? decodeURIComponent(rest.join("/")) : "" };
}

function navigate() {
  const { name, argument } = asked(), title = argument && name === "decisions" ? "Decision" : VIEWS[name].title;
  morph($("views"), Object.entries(VIEWS).map(([to, view]) => el("a", { href: `#/${to}`, "aria-current": to === name ? "page" : null }, view.title)));
  document.querySelector("nav [aria-current]").scrollIntoView({ block: "nearest", inline: "nearest" });
  document.title = `${title} · Slatewise operations`;
  $("title").textContent = title;
  $("view").setAttribute("aria-busy", "true");
  $("view").replaceChildren(el("p", { class: "empty" }, "Loading…"));
  $("trouble").textContent = "";
  look();
}

async function look() {
  const mine = ++turn, { name, argument } = asked(), view = VIEWS[name];
  clearTimeout(next);
  try {
    const report = await api.get("/v1/overview");
    for (const one of Object.values(VIEWS)) one.followed?.(report);
    said(report.missing.length ? `${report.missing.join(", ")} away` : "live", report.missing.length ? "bad" : "");
    $("when").textContent = moment(report.at);
    const data = await view.load(argument);
    if (mine !== turn) return; // another view was asked for meanwhile
    morph($("view"), view.render(data, report));
    draw($("view"));
    $("trouble").textContent = "";
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof api.Failed)) said("control away", "bad");
    $("trouble").textContent = error instanceof api.Failed ? error.message : `The control service does not answer: ${error.message}. What is shown is from before.`;
    if (error instanceof api.Failed) morph($("view"), view.failed?.(argument) ?? []);
  }
  $("view").removeAttribute("aria-busy");
  next = setTimeout(look, document.hidden ? HIDDEN_MS : view.slow && argument ? SLOW_MS : SEEN_MS);
}

function said(text, kind) {
  $("state").className = kind;
  if ($("health").textContent !== text) $("health").textContent = text; // read aloud when it changes, not every turn
}

addEventListener("hashchange", () => {
  navigate();
  $("main").focus({ preventScroll: true });
  scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the place after # names the view
  $("main").focus();
});
document.addEventListener("again", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
$("logout").addEventListener("click", api.logout);
api.open().then((session) => { $("logout").hidden = !session.who?.startsWith("key:"); }, () => {});
navigate();
