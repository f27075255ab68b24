// The trials: the table, its filter, and the one that is chosen.
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
// The arrow keys go through the list as it is shown.
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

