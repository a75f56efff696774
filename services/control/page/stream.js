// How far the parts of the stream are behind, what joining made of records, and what was set aside.
import { get, post } from "./api.js";
import { act, ask } from "./dialog.js";
import { button, count, duration, el, empty, known, moment, percent, table, tag } from "./dom.js";

const LETTERS = 50;
export const title = "Stream";

export async function load() {
  const stream = await get("/v1/stream"), all = Object.values(stream.dead_letters).reduce((a, b) => a + b, 0);
  return { stream, letters: all ? (await get(`/v1/dead-letters?limit=${LETTERS}`)).letters : [] };
}

export function render({ stream: s, letters }) {
  const reported = s.partitions.some((p) => known(p.join_lag_seconds));
  return [
    s.away.length > 0 && el("section", { "data-key": "away" }, el("p", { class: "bad" }, `Away: ${s.away.join(", ")}. What was last known is served.`)),
    el("section", { "data-key": "lag" }, el("h2", {}, "Partitions"),
      table("Partitions", [{ name: "Partition" }, { name: "State" }, { name: "Records", n: true }, { name: "Newest", n: true }, { name: "Join lag", n: true }, { name: "Settle lag", n: true },
        { name: "Not yet trained from", n: true }, { name: "Retention left", n: true }],
      s.partitions.map((p) => [String(p.partition), state(p), count(p.end), p.newest ? `${duration(s.at - p.newest)} ago` : "–", duration(p.join_lag_seconds), duration(p.settle_lag_seconds),
        count(p.train_lag_rows), percent(p.headroom)])),
      !reported && el("p", { class: "note" }, "Lags are exported by the learning service; this control service sees only scoring's numbers.")),
    el("section", { "data-key": "joins" }, el("h2", {}, "Joins"), outcomes("What became of records read by the joiner", s.join, "Nothing joined yet."),
      el("h3", {}, "Feedback at the door"), outcomes("Feedback received over HTTP", s.feedback, "No feedback yet.")),
    el("section", { "data-key": "dead" }, el("h2", {}, "Dead letters"), dead(s.dead_letters, letters)),
  ].filter(Boolean);
}

function state(p) {
  if (p.error) return el("span", { class: "bad" }, p.error);
  if (p.stopped || p.settle_stopped) return tag(p.stopped ? "shard stopped" : "settling stopped", "bad");
  return p.rebuilding_records ? tag(`rebuilding, ${count(p.rebuilding_records)} records`) : tag("following", "live");
}

const outcomes = (label, found, none) => (Object.keys(found).length
  ? table(label, [{ name: "Outcome" }, { name: "Records", n: true }], Object.entries(found).map(([name, n]) => [name, count(n)]))
  : empty(none));

function dead(counts, letters) {
  const reasons = Object.entries(counts);
  if (!reasons.length) return empty("None: every record could be used.");
  return [
    table("Dead letters by reason", [{ name: "Reason" }, { name: "Records", n: true }, { name: "" }],
      reasons.map(([reason, n]) => [reason, count(n), button("Replay…", () => again(reason, n), "", { "aria-label": `Replay dead letters: ${reason}` })])),
    el("details", {}, el("summary", {}, `The first ${count(letters.length)} letters`),
      table("Letters", [{ name: "Number" }, { name: "Reason" }, { name: "Where" }, { name: "Detail" }, { name: "Record" }],
        letters.map((l) => [String(l.number), l.reason, `${l.partition}:${l.offset}`, l.detail, el("code", {}, l.value.slice(0, 160))]))),
  ];
}

async function again(reason, n) {
  const yes = await ask(`Replay ${count(n)} records?`, el("p", { class: "note" },
    `Those set aside as ${reason} go to the log again. What was learned meanwhile is known and changes nothing; what still cannot be used comes back as a new letter.`), "Replay");
  if (yes) await act(() => post("/v1/dead-letters/replay", { reason }), (done) => `${count(done.records)} records are in the log again.`);
}
