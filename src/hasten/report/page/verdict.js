// What came out, in plain words: the answer, what it rests on, and how to make it again.
const bestTrial = () => data.trials.find(t => t.number === data.best_number);
const percent = x => String(Number((100 * x).toFixed(2)));
const bytes = n => n >= 1e6 ? `${short(n / 1e6)} MB` : `${short(n / 1e3)} KB`;
const interval = latency => `[${fixed(latency.ratio_low, 2)}, ${fixed(latency.ratio_high, 2)}]`;
const figure = (value, label, more) => make("div", { class: "figure" }, make("strong", {}, value), make("span", {}, label), more ? make("small", {}, more) : null);

// Of a run that goes on there is a best so far, which no certificate stands for yet.
const soFar = () => {
  const within = data.trials.filter(t => t.number && t.latency && t.drop <= data.budget.max_drop);
  return within.reduce((best, t) => !best || t.latency.ratio > best.latency.ratio ? t : best, null);
};
const sentence = () => {
  const best = bestTrial(), final = best && data.finals.find(f => f.number === best.number);
  if (!data.finished) {
    const t = soFar();
    return t ? word("soFar", nameOf(t), fixed(t.latency.ratio, 2)) : word("nothingYet");
  }
  if (language === "en" || judgedRun()) return data.explanation;
  if (!best || !final || !final.latency) return word("nonePassed");
  return word("bestPassed", nameOf(best), fixed(final.latency.ratio, 2), fixed(final.certificate.upper_bound, 4), percent(final.certificate.confidence));
};
const figures = () => {
  const best = bestTrial(), original = data.trials.find(t => t.number === 0);
  const final = best && data.finals.find(f => f.number === best.number);
  if (!final || !final.latency) return null;
  const c = final.certificate, before = (data.original || original).latency.median_ms;
  return make("div", { class: "figures" },
    figure(`${fixed(final.latency.ratio, final.latency.ratio < 10 ? 2 : 1)}×`, word("figureFaster"), word("figureFasterMore", interval(final.latency), short(final.latency.median_ms), short(before))),
    figure(`≤ ${fixed(c.upper_bound, 4)}`, word("figureDrop"), word("figureDropMore", percent(c.confidence), c.max_drop)),
    figure(bytes(best.size_bytes), word("figureSize"), original.size_bytes ? word("figureSizeMore", bytes(original.size_bytes)) : null));
};
const verdict = () => {
  const best = bestTrial(), final = best && data.finals.find(f => f.number === best.number);
  const plain = final && word("plain", final.certificate.n, fixed(final.certificate.score, 4), fixed(final.certificate.baseline_score, 4),
    percent(final.certificate.confidence), fixed(final.certificate.upper_bound, 4), final.certificate.max_drop);
  const foreign = data.finished && language !== "en" && !(final && final.latency) && data.explanation;
  return section("verdict", word(data.finished ? "verdict" : "verdictLive"), figures(), make("p", { class: "verdict" }, sentence()),
    foreign && !judgedRun() ? make("p", { class: "muted", lang: "en" }, data.explanation) : null, plain ? make("p", {}, plain) : null);
};
const certificate = final => {
  const c = final.certificate, trial = data.trials.find(t => t.number === final.number);
  return make("div", { class: "certificate" }, make("h3", {}, `${nameOf(trial)}: `, make("span", { class: c.passed ? "good" : "bad" }, word(c.passed ? "passed" : "notPassed"))),
    make("p", {}, word("plain", c.n, fixed(c.score, 4), fixed(c.baseline_score, 4), percent(c.confidence), fixed(c.upper_bound, 4), c.max_drop)),
    stated(trial) ? make("p", {}, word("judgedPlain", stated(trial), trial.evidence)) : null,
    c.target === "original" ? note("plainOriginal") : null,
    make("p", { class: "muted" }, word("method", c.method, percent(c.confidence), c.finalists, c.holdout_sha256)),
    final.throughput ? make("p", { class: "muted" }, word("throughput", short(final.throughput.samples_per_s), final.throughput.batch, fixed(final.throughput.ratio, 2))) : null);
};
const copyButton = text => make("button", { type: "button", class: "copy", onclick: async event => {
  const button = event.currentTarget;
  await navigator.clipboard.writeText(text);
  button.textContent = word("copied");
  setTimeout(() => { button.textContent = word("copy"); }, 1500);
} }, word("copy"));
const reproduce = () => {
  const b = data.budget, flags = [`--max-drop ${b.max_drop}`, `--confidence ${b.confidence}`, `--seed ${data.seed}`];
  if (data.targets && data.targets.length) flags.push(`--targets ${data.targets.join(",")}`);
  if (b.minutes != null) flags.push(`--minutes ${b.minutes}`);
  if (b.objective && b.objective !== "latency") flags.push(`--objective ${b.objective}`);
  if (b.max_latency_ms != null) flags.push(`--max-latency-ms ${b.max_latency_ms}`);
  if (b.max_size_bytes != null) flags.push(`--max-size ${b.max_size_bytes}`);
  for (const [name, value] of Object.entries(b.limits || {})) flags.push(`--limit ${name}=${value}`);
  if (b.training === false) flags.push("--no-training");
  const lines = [`hasten run TASK ${flags.join(" ")} --out runs/again`];
  if (data.best) lines.push(`hasten apply ${data.best}/recipe.yaml TASK --out model.hasten`, `hasten verify ${data.best} --task TASK`, `hasten bench ${data.best}`);
  return section("reproduce", word("reproduce"), note("reproduceNote"), make("div", { class: "command" }, make("pre", {}, lines.join("\n")), copyButton(lines.join("\n"))),
    make("p", { class: "muted" }, `${word("versions")}: ${Object.entries(data.device.versions).map(x => x.join(" ")).join(", ")}`),
    Object.keys(data.missing).length ? make("p", { class: "muted" }, `${word("skipped")}: ${Object.entries(data.missing).map(x => x.join(" (") + ")").join("; ")}`) : null);
};

