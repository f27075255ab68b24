// The page: sections in order, language and theme, and new data while a search runs.
let data = JSON.parse(document.getElementById("data").textContent);
let chosen = null, filter = "", fate = "all", theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
const $ = id => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter(c => c != null));
  return element;
};
const fixed = (value, digits) => value == null ? "" : value.toFixed(digits);
const short = value => value == null ? "" : Number(value.toPrecision(3)).toString();
const signed = value => value == null ? "" : (value >= 0 ? "+" : "") + value.toFixed(4);
const section = (id, title, ...children) => make("section", { id: id + "-section" }, make("h2", {}, title), ...children);
// A chart that is there already moves to its new place and keeps its zoom.
const chart = (id, low) => $(id) || make("div", { id, class: low ? "chart low" : "chart", role: "img" });
// Long tables stay closed until asked for, and as they were when new data comes.
const opened = new Set();
let printing = false;
const folded = (id, label, ...children) => make("details", { id: id + "-details", ...(opened.has(id) ? { open: "" } : {}),
  ontoggle: event => printing || opened[event.target.open ? "add" : "delete"](id) }, make("summary", {}, label), ...children);
const note = key => make("p", { class: "muted" }, word(key));
// Options are recorded with every digit; four are enough to tell them apart.
const nameOf = trial => trial.number === 0 ? word("originalName") : trial.name.replace(/(\d\.\d{3})\d+/g, "$1");
const table = (heads, rows) => make("div", { class: "scroll", tabindex: 0 }, make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map(h => make("th", { class: h.text ? "text" : null, scope: "col" }, h.label)))), make("tbody", {}, ...rows)));
const cell = (value, kind) => make("td", kind ? { class: kind } : {}, String(value));

const CHARTS = { front: () => drawFront(data, shown(), chosen), timeline: () => drawTimeline(data), stages: () => drawStages(data), widths: () => drawWidths(data),
  sensitivity: () => drawSensitivity(data), quantization: () => drawQuantization(data), distribution: () => drawDistribution(data), roofline: () => drawRoofline(data) };
const drawInto = element => {
  CHARTS[element.id]();
  if (element.dataset.drawn) return;
  element.dataset.drawn = "yes";
  if (CLICKED.includes(element.id)) element.on("plotly_click", event => { const point = event.points[0].customdata; if (point) choose(point[0]); });
};
const CLICKED = ["front", "timeline"];
// A chart is drawn when it comes near the window: drawing all of them at once keeps the reader waiting for those that are looked at last.
const drawNear = () => {
  for (const element of document.querySelectorAll(".chart:not([data-drawn])")) {
    const { top, bottom } = element.getBoundingClientRect();
    if (printing || (top < innerHeight + 600 && bottom > -600)) drawInto(element);
  }
};
for (const event of ["scroll", "resize"]) addEventListener(event, drawNear, { passive: true });

const build = () => {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = theme;
  $("language").textContent = word("other");
  $("language").lang = language === "zh" ? "en" : "zh";
  $("theme").textContent = word(theme === "dark" ? "light" : "dark");
  const d = data.device, sets = d.instruction_sets.join(" ") || word("nothing");
  $("state").textContent = `${word("device", d.cpu, d.cores, sets)}; ${data.finished ? word("done", fixed(data.wall_s, 0)) : word("running", data.trials.length, fixed(data.elapsed_s, 0))}`;
  const fates = ["all", "certified", "within", "beyond", "failed"];
  const input = make("input", { id: "filter", type: "search", placeholder: word("filter"), "aria-label": word("filter"), value: filter,
    oninput: event => { filter = event.target.value; refreshTrials(); } });
  const select = make("select", { id: "fate", "aria-label": word("fate"), onchange: event => { fate = event.target.value; refreshTrials(); } },
    ...fates.map(f => make("option", { value: f, ...(f === fate ? { selected: "" } : {}) }, word(f))));
  const has = data.details || {};
  const kept = held();
  $("main").replaceChildren(...[
    verdict(),
    section("front", word(judgedRun() ? "judgedTitle" : "front"), note(judgedRun() ? "judgedNote" : "frontNote"), judgedRun() ? null : chart("front"), make("div", { id: "trial", "aria-live": "polite", hidden: "" })),
    section("trials", word("trials"), make("div", { class: "tools" }, input, select, make("span", { id: "count", class: "muted", "aria-live": "polite" })), make("div", { id: "trials" })),
    data.finished ? section("certificates", word("certificates"), ...(data.finals.length ? data.finals.map(certificate) : [note("none")])) : null,
    reproduce(),
    judgedRun() ? null : section("timeline", word("timeline"), note("timelineNote"), chart("timeline")),
    data.seconds ? section("stages", word("stages"), chart("stages", true)) : null,
    data.decisions ? section("decisions", word("decisions"), folded("decisions", word("decisionsCount", data.decisions.length, data.decisions.filter(x => x.chosen).length), decisionTable())) : null,
    has.widths ? section("widths", word("widths"), note("widthsNote"), chart("widths"), folded("widths", word("asTable"), widthTable())) : null,
    data.sensitivity ? section("sensitivity", word("sensitivity"), note("sensitivityNote"), chart("sensitivity")) : null,
    has.quantization ? section("quantization", word("quant"), make("p", { class: "muted" }, word("quantNote", has.quantization.samples)), chart("quantization"), folded("quantization", word("asTable"), rangeTable())) : null,
    has.latency_ms ? section("distribution", word("distribution"), note("distributionNote"), chart("distribution")) : null,
    data.doctor ? section("roofline", word("roofline", data.doctor.program), note("rooflineNote"), chart("roofline"), folded("roofline", word("layersTable"), layerTable())) : null,
  ].filter(Boolean));
  const anchors = [...document.querySelectorAll("section")].map(s => make("a", { href: "#" + s.id }, s.firstChild.textContent));
  $("contents").replaceChildren(...anchors);
  for (const element of document.querySelectorAll(".chart")) element.setAttribute("aria-label", element.closest("section").firstChild.textContent);
  refreshTrials();
  fillTrial();
  for (const element of document.querySelectorAll(".chart[data-drawn]:not(#front)")) drawInto(element);
  drawNear();
  kept();
};
// What a reader was in the middle of, and a function that puts it back after the page was built again.
const held = () => {
  const top = scrollY, active = document.activeElement, id = active && active.id, row = active && active.dataset && active.dataset.trial;
  const at = active && "selectionStart" in active ? active.selectionStart : null;
  const tables = [...document.querySelectorAll(".scroll")].map(t => [t.closest("section").id, t.scrollTop]);
  return () => {
    for (const t of document.querySelectorAll(".scroll")) t.scrollTop = (tables.find(([own]) => own === t.closest("section").id) || [0, 0])[1];
    const again = row != null ? document.querySelector(`tr[data-trial="${row}"]`) : id ? $(id) : null;
    again?.focus({ preventScroll: true });
    if (again && at != null && again.setSelectionRange) again.setSelectionRange(at, at);
    scrollTo({ top, behavior: "instant" });
  };
};
const decisionTable = () => table([{ label: word("what"), text: 1 }, { label: word("at") }, { label: word("gain") }, { label: word("fate"), text: 1 }, { label: word("why"), text: 1 }],
  data.decisions.map(x => make("tr", {}, cell(x.what, "name"), cell(`${fixed(x.elapsed_s, 0)} s`), cell(x.predicted_gain == null ? "" : `${fixed(x.predicted_gain, 2)}x`), cell(word(x.chosen ? "gone" : "left"), x.chosen ? "text good" : "text"), cell(x.why, "text name"))));
const layerTable = () => table([{ label: word("layer"), text: 1 }, { label: "us" }, { label: word("part") }, { label: word("ofLimit") }, { label: word("reason"), text: 1 }],
  data.doctor.rows.map(r => make("tr", {}, cell(r.label, "name"), cell(fixed(r.time_us, 1)), cell(`${fixed(100 * r.share, 1)}%`), cell(r.achieved == null ? "" : `${fixed(100 * r.achieved, 0)}%`), cell(reasonWord(r.reason), "text"))));
const widthTable = () => table([{ label: word("layer"), text: 1 }, { label: word("before") }, { label: word("after") }],
  data.details.widths.map(r => make("tr", {}, cell(r.layer, "name"), cell(r.before), cell(r.after, r.after < r.before ? "good" : null))));
const rangeTable = () => table([{ label: word("layer"), text: 1 }, { label: word("sqnr") }, { label: word("range") }, { label: word("holds") }],
  data.details.quantization.layers.map(r => make("tr", {}, cell(r.layer, "name"), cell(fixed(r.sqnr_db, 1)), cell(`${short(r.low)} ... ${short(r.high)}`),
    cell(r.held_low == null ? "" : `${short(r.held_low)} ... ${short(r.held_high)}`))));
const drawShown = () => { if (!judgedRun()) drawInto($("front")); };
const refreshTrials = () => { fillTrials(); drawShown(); $("count").textContent = word("count", shown().length, data.trials.length); };

$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; build(); });
$("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; build(); });
// On paper everything is light and nothing is folded.
const forPaper = on => {
  const own = theme;
  printing = on;
  theme = on ? "light" : own;
  build();
  if (on) for (const fold of document.querySelectorAll("details")) fold.open = true;
  theme = own;
};
addEventListener("beforeprint", () => forPaper(true));
addEventListener("afterprint", () => forPaper(false));
const poll = async () => {
  try {
    const response = await fetch("data.json", { cache: "no-store" });
    if (response.ok) {
      const text = await response.text();
      if (text !== poll.last) { poll.last = text; data = JSON.parse(text); build(); }
    }
  } catch { /* the search's process has ended; what is shown stays */ }
  if (!data.finished) setTimeout(poll, 2000);
};
build();
if (LIVE) poll();
