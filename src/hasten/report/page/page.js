// The page: sections in order, one chosen trial, a filter, language and theme, and new data while a search runs.
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
const chart = (id, low) => make("div", { id, class: low ? "chart low" : "chart", role: "img", "aria-label": id });
const note = key => make("p", { class: "muted" }, word(key));
const nameOf = trial => trial.number === 0 ? word("originalName") : trial.name;
const table = (heads, rows) => make("div", { class: "scroll" }, make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map(h => make("th", { class: h.text ? "text" : null, scope: "col" }, h.label)))), make("tbody", {}, ...rows)));
const cell = (value, kind) => make("td", kind ? { class: kind } : {}, String(value));

const shown = () => data.trials.filter(t => (fate === "all" || fateOf(data, t) === fate) && nameOf(t).toLowerCase().includes(filter.toLowerCase()));
const judgedRun = () => Object.keys(data.budget.limits || {}).length > 0;
const stated = trial => Object.entries(trial.judged || {}).map(([name, value]) => `${name} ${Number(value.toPrecision(6)).toLocaleString("en")}` +
  (name in (data.budget.limits || {}) ? ` (${word("limitOf")} ${data.budget.limits[name].toLocaleString("en")})` : "")).join(", ");
const ordered = () => shown().sort((a, b) => (latencyOf(data, b)?.ratio || 0) - (latencyOf(data, a)?.ratio || 0) || a.number - b.number);

const trialRow = trial => {
  const latency = latencyOf(data, trial), final = data.finals.find(f => f.number === trial.number), own = fateOf(data, trial);
  const about = () => [fixed(trial.score, 4), signed(trial.drop), final ? fixed(final.certificate.upper_bound, 4) : "", fixed(trial.size_bytes / 1e6, 2)];
  const cells = judgedRun() ? [stated(trial), trial.judged && stated(trial) ? trial.evidence : "", ...(trial.failure ? ["", "", "", ""] : about())] : latency ? [short(latency.median_ms), `${fixed(latency.ratio, 2)} [${fixed(latency.ratio_low, 2)}, ${fixed(latency.ratio_high, 2)}]`,
    ...about()] : ["", "", "", "", "", ""];
  return make("tr", { tabindex: 0, "data-trial": trial.number, "aria-selected": String(trial.number === chosen),
    onclick: () => choose(trial.number), onkeydown: event => moveBy(event, trial.number) },
    cell(nameOf(trial), "name"), cell(trial.number), ...cells.map(c => cell(c)),
    cell(word(own), own === "certified" ? "text good" : own === "failed" ? "text bad" : "text"));
};
const moveBy = (event, number) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(number); return; }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const list = ordered(), next = list[list.findIndex(t => t.number === number) + step];
  if (next) { choose(next.number); document.querySelector(`tr[data-trial="${next.number}"]`).focus(); }
};
const fillTrials = () => {
  const keys = [["candidate", 1], ["number"], ...(judgedRun() ? [["judged"], ["evidence"]] : [["ms"], ["faster"]]), ["mean"], ["drop"], ["bound"], ["size"], ["fate", 1]];
  const heads = keys.map(([key, text]) => ({ label: word(key), text }));
  $("trials").replaceChildren(table(heads, ordered().map(trialRow)));
};
const choose = number => {
  chosen = number;
  for (const row of document.querySelectorAll("tr[data-trial]")) row.setAttribute("aria-selected", String(Number(row.dataset.trial) === number));
  fillTrial();
  drawShown();
};
const fillTrial = () => {
  const trial = data.trials.find(t => t.number === chosen), box = $("trial");
  box.hidden = !trial;
  if (!trial) return;
  const latency = latencyOf(data, trial), facts = [[word("fate"), word(fateOf(data, trial))]];
  if (trial.failure) facts.push([word("reason"), trial.failure]);
  if (latency) facts.push([word("p"), `${[latency.median_ms, latency.p90_ms, latency.p99_ms].map(short).join(" / ")} ms`],
    [word("faster"), `${fixed(latency.ratio, 2)} [${fixed(latency.ratio_low, 2)}, ${fixed(latency.ratio_high, 2)}]`],
    [word("score"), fixed(trial.score, 4)], [word("drop"), signed(trial.drop)], [word("changed"), trial.changed == null ? "" : `${fixed(100 * trial.changed, 2)}%`],
    [word("size"), fixed(trial.size_bytes / 1e6, 3)], [word("memory"), `${fixed(trial.peak_memory_bytes / 1e6, 0)} MB`]);
  else if (stated(trial)) facts.push([word("judged"), stated(trial)], [word("evidence"), trial.evidence], [word("score"), fixed(trial.score, 4)], [word("drop"), signed(trial.drop)]);
  if (trial.seconds) facts.push([word("seconds"), Object.entries(trial.seconds).map(([k, v]) => `${k} ${fixed(v, 1)}`).join(", ")]);
  box.replaceChildren(make("h3", {}, `${word("trial", trial.number)}: ${nameOf(trial)}`),
    make("dl", {}, ...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])), make("h3", {}, word("recipe")), make("pre", {}, trial.recipe));
};

const certificate = final => {
  const c = final.certificate, trial = data.trials.find(t => t.number === final.number), percent = x => String(Number((100 * x).toFixed(2)));
  return make("div", {}, make("h3", {}, `${nameOf(trial)}: `, make("span", { class: c.passed ? "good" : "bad" }, word(c.passed ? "passed" : "notPassed"))),
    make("p", {}, word("plain", c.n, fixed(c.score, 4), fixed(c.baseline_score, 4), percent(c.confidence), fixed(c.upper_bound, 4), c.max_drop)),
    stated(trial) ? make("p", {}, word("judgedPlain", stated(trial), trial.evidence)) : null,
    c.target === "original" ? note("plainOriginal") : null,
    make("p", { class: "muted" }, word("method", c.method, percent(c.family_confidence), c.finalists, c.holdout_sha256)),
    final.throughput ? make("p", { class: "muted" }, word("throughput", short(final.throughput.samples_per_s), final.throughput.batch, fixed(final.throughput.ratio, 2))) : null);
};
const reproduce = () => {
  const b = data.budget, flags = [`--max-drop ${b.max_drop}`, `--confidence ${b.confidence}`, `--seed ${data.seed}`];
  if (b.minutes != null) flags.push(`--minutes ${b.minutes}`);
  if (b.objective && b.objective !== "latency") flags.push(`--objective ${b.objective}`);
  if (b.max_latency_ms != null) flags.push(`--max-latency-ms ${b.max_latency_ms}`);
  if (b.max_size_bytes != null) flags.push(`--max-size ${b.max_size_bytes}`);
  for (const [name, value] of Object.entries(b.limits || {})) flags.push(`--limit ${name}=${value}`);
  if (b.training === false) flags.push("--no-training");
  const lines = [`hasten run TASK ${flags.join(" ")} --out runs/again`];
  if (data.best) lines.push(`hasten apply ${data.best}/recipe.yaml TASK --out model.hasten`, `hasten verify ${data.best} --task TASK`, `hasten bench ${data.best}`);
  return section("reproduce", word("reproduce"), note("reproduceNote"), make("pre", {}, lines.join("\n")),
    make("p", { class: "muted" }, `${word("versions")}: ${Object.entries(data.device.versions).map(x => x.join(" ")).join(", ")}`),
    Object.keys(data.missing).length ? make("p", { class: "muted" }, `${word("skipped")}: ${Object.entries(data.missing).map(x => x.join(" (") + ")").join("; ")}`) : null);
};

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
  $("main").replaceChildren(...[
    data.explanation ? make("p", { class: "verdict" }, data.explanation) : null,
    section("front", word(judgedRun() ? "judgedTitle" : "front"), note(judgedRun() ? "judgedNote" : "frontNote"), judgedRun() ? null : chart("front"), make("div", { id: "trial", "aria-live": "polite", hidden: "" })),
    section("trials", word("trials"), make("div", { class: "tools" }, input, select), make("div", { id: "trials" })),
    data.finished ? section("certificates", word("certificates"), ...(data.finals.length ? data.finals.map(certificate) : [note("none")])) : null,
    judgedRun() ? null : section("timeline", word("timeline"), note("timelineNote"), chart("timeline")),
    data.seconds ? section("stages", word("stages"), chart("stages", true)) : null,
    data.decisions ? section("decisions", word("decisions"), table([{ label: word("what"), text: 1 }, { label: word("seconds") }, { label: word("gain") }, { label: word("fate"), text: 1 }, { label: word("why"), text: 1 }],
      data.decisions.map(x => make("tr", {}, cell(x.what, "name"), cell(fixed(x.elapsed_s, 0)), cell(x.predicted_gain == null ? "" : `${fixed(x.predicted_gain, 2)}x`), cell(word(x.chosen ? "gone" : "left"), x.chosen ? "text good" : "text"), cell(x.why, "text name"))))) : null,
    has.widths ? section("widths", word("widths"), chart("widths"), widthTable()) : null,
    data.sensitivity ? section("sensitivity", word("sensitivity"), note("sensitivityNote"), chart("sensitivity")) : null,
    has.quantization ? section("quantization", word("quant"), make("p", { class: "muted" }, word("quantNote", has.quantization.samples)), chart("quantization"), rangeTable()) : null,
    has.latency_ms ? section("distribution", word("distribution"), note("distributionNote"), chart("distribution")) : null,
    data.doctor ? section("roofline", word("roofline", data.doctor.program), note("rooflineNote"), chart("roofline")) : null,
    reproduce(),
  ].filter(Boolean));
  refreshTrials();
  fillTrial();
  if (!judgedRun()) drawTimeline(data);
  if (data.seconds) drawStages(data);
  if (has.widths) drawWidths(data);
  if (data.sensitivity) drawSensitivity(data);
  if (has.quantization) drawQuantization(data);
  if (has.latency_ms) drawDistribution(data);
  if (data.doctor) drawRoofline(data);
  for (const id of ["front", "timeline"]) $(id)?.on?.("plotly_click", event => { const point = event.points[0].customdata; if (point) choose(point[0]); });
};
const widthTable = () => table([{ label: word("layer"), text: 1 }, { label: word("before") }, { label: word("after") }],
  data.details.widths.map(r => make("tr", {}, cell(r.layer, "name"), cell(r.before), cell(r.after, r.after < r.before ? "good" : null))));
const rangeTable = () => table([{ label: word("layer"), text: 1 }, { label: word("sqnr") }, { label: word("range") }, { label: word("holds") }],
  data.details.quantization.layers.map(r => make("tr", {}, cell(r.layer, "name"), cell(fixed(r.sqnr_db, 1)), cell(`${short(r.low)} ... ${short(r.high)}`),
    cell(r.held_low == null ? "" : `${short(r.held_low)} ... ${short(r.held_high)}`))));
const drawShown = () => { if (!judgedRun()) drawFront(data, shown(), chosen); };
const refreshTrials = () => { fillTrials(); drawShown(); };

$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; build(); });
$("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; build(); });
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
addEventListener("afterprint", () => { document.documentElement.dataset.theme = theme; });
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
