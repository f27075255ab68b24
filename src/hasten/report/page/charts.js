// Charts: each takes the data and draws into an element. Colours come from the page's style.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const layout = (x, y, more = {}) => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") }, margin: { l: 64, r: 16, t: 12, b: 48 }, hovermode: "closest", legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
  xaxis: { title: { text: x }, gridcolor: colour("line"), zeroline: false, automargin: true, ...more.x },
  yaxis: { title: { text: y }, gridcolor: colour("line"), zeroline: false, automargin: true, ...more.y },
  uirevision: "kept",
  ...more.all,
});
const draw = (id, traces, settings) =>
  Plotly.react(id, traces, settings, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
const logAxis = { type: "log", dtick: "D2" };
const wrap = text => text.replace(/(.{60,}?)( \+ )/g, "$1$2<br>");

const latencyOf = (data, trial) => {
  const final = data.finals.find(f => f.number === trial.number);
  return final ? final.latency : trial.latency;
};
const fateOf = (data, trial) => {
  if (trial.number === 0) return "original";
  if (trial.failure) return "failed";
  const final = data.finals.find(f => f.number === trial.number);
  if (final && final.certificate.passed) return "certified";
  return trial.drop <= data.budget.max_drop ? "within" : "beyond";
};
const FATES = {
  original: { symbol: "diamond", colour: "ink", size: 13 }, certified: { symbol: "star", colour: "good", size: 16 },
  within: { symbol: "circle", colour: "accent", size: 9 }, beyond: { symbol: "circle-open", colour: "soft", size: 9 },
};

const drawFront = (data, shown, chosen) => {
  const measured = shown.filter(t => latencyOf(data, t));
  const original = data.trials.find(t => t.number === 0);
  const traces = Object.entries(FATES).map(([fate, style]) => {
    const own = measured.filter(t => fateOf(data, t) === fate);
    const base = original && latencyOf(data, original);
    return {
      type: "scatter", mode: "markers", name: word(fate), x: own.map(t => latencyOf(data, t).median_ms), y: own.map(t => t.score),
      customdata: own.map(t => [t.number, latencyOf(data, t).ratio]), text: own.map(t => wrap(t.name)),
      hovertemplate: "%{text}<br>%{x:.4g} ms, %{customdata[1]:.2f}x, %{y:.4f}<extra></extra>",
      marker: { symbol: style.symbol, color: colour(style.colour), size: style.size, line: { width: 1.5, color: colour(style.colour) } },
      // Whiskers of what is out of the question would only hide the rest.
      error_x: !base || fate === "beyond" ? undefined : {
        type: "data", symmetric: false, thickness: 1, width: 0, color: colour(style.colour),
        array: own.map(t => Math.max(0, base.median_ms / latencyOf(data, t).ratio_low - latencyOf(data, t).median_ms)),
        arrayminus: own.map(t => Math.max(0, latencyOf(data, t).median_ms - base.median_ms / latencyOf(data, t).ratio_high)),
      },
      error_y: fate === "beyond" ? undefined : {
        type: "data", symmetric: true, thickness: 1, width: 0, color: colour(style.colour),
        array: own.map(t => scoreError(data, t)),
      },
    };
  }).filter(trace => trace.x.length);
  const line = undominated(data, measured);
  if (line.length > 1) traces.unshift({ type: "scatter", mode: "lines", name: word("front2"), hoverinfo: "skip", x: line.map(t => latencyOf(data, t).median_ms), y: line.map(t => t.score),
    line: { shape: "hv", width: 1.5, color: colour("good"), dash: "dot" } });
  const one = measured.find(t => t.number === chosen);
  if (one) traces.push({ type: "scatter", mode: "markers", x: [latencyOf(data, one).median_ms], y: [one.score], hoverinfo: "skip",
    showlegend: false, marker: { symbol: "circle-open", size: 24, color: colour("accent"), line: { width: 2 } } });
  const shapes = original && original.score != null ? [{ type: "line", xref: "paper", x0: 0, x1: 1, line: { dash: "dot", width: 1, color: colour("bad") },
    y0: original.score - data.budget.max_drop, y1: original.score - data.budget.max_drop, label: { text: word("limit"), font: { color: colour("bad"), size: 11 }, textposition: "end" } }] : [];
  const batch = original && original.latency ? original.latency.batch : 1;
  draw("front", traces, layout(word("latency", batch), word("score"), { x: logAxis, all: { shapes } }));
};
// Those that nothing beats in latency and score at once, the quickest first.
const undominated = (data, trials) => {
  const found = [];
  for (const t of [...trials].sort((a, b) => latencyOf(data, a).median_ms - latencyOf(data, b).median_ms || b.score - a.score))
    if (!found.length || t.score > found[found.length - 1].score) found.push(t);
  return found;
};
// 95% interval of a mean of right or wrong answers; other scores state no interval.
const scoreError = (data, trial) => {
  const n = data.samples.search, s = trial.score;
  return data.binary && n ? 1.96 * Math.sqrt(Math.max(0, s * (1 - s)) / n) : 0;
};

const drawTimeline = data => {
  const timed = data.trials.filter(t => t.elapsed_s != null && t.latency && t.number).sort((a, b) => a.elapsed_s - b.elapsed_s);
  let best = 1;
  const line = [[timed.length ? Math.min(0, timed[0].elapsed_s) : 0, 1]];
  for (const t of timed) {
    if (t.drop <= data.budget.max_drop && t.latency.ratio > best) best = t.latency.ratio;
    line.push([t.elapsed_s, best]);
  }
  const groups = ["certified", "within", "beyond"].map(fate => {
    const own = timed.filter(t => fateOf(data, t) === fate);
    return { type: "scatter", mode: "markers", name: word(fate), x: own.map(t => t.elapsed_s), y: own.map(t => t.latency.ratio),
      customdata: own.map(t => [t.number]), text: own.map(t => wrap(t.name)), hovertemplate: "%{text}<br>%{y:.2f}x<extra></extra>",
      marker: { symbol: FATES[fate].symbol, color: colour(FATES[fate].colour), size: FATES[fate].size } };
  }).filter(g => g.x.length);
  draw("timeline", [{ type: "scatter", mode: "lines", name: word("best"), x: line.map(p => p[0]), y: line.map(p => p[1]),
    line: { shape: "hv", color: colour("good"), width: 2 }, hoverinfo: "skip" }, ...groups], layout(word("elapsed"), word("times")));
};

const drawStages = data => {
  const stages = Object.entries(data.seconds).filter(([, s]) => s > 0).sort((a, b) => b[1] - a[1]);
  draw("stages", stages.map(([name, s], i) => ({ type: "bar", orientation: "h", name: stageWord(name), x: [s], y: [""], hovertemplate: `${stageWord(name)}: %{x:.1f} s<extra></extra>`,
    marker: { color: SERIES[i % SERIES.length] } })), layout(word("seconds"), "", { all: { barmode: "stack", hovermode: "closest" } }));
};
const SERIES = ["#3f7fc4", "#d98a2b", "#4f9e63", "#b0559a", "#8a6fc9", "#c5534c", "#3aa0a0", "#a3843c", "#79838d"];

const drawWidths = data => {
  const rows = data.details.widths.filter(r => r.before !== r.after);
  const shown = rows.length ? rows : data.details.widths;
  draw("widths", ["before", "after"].map((key, i) => ({ type: "bar", name: word(key), x: shown.map(r => r.layer), y: shown.map(r => r[key]),
    marker: { color: colour(i ? "accent" : "line") } })), layout("", word("width"), { x: { tickangle: -40, type: "category" }, all: { barmode: "overlay" } }));
};
// A few groups as lines; many as a map, where the eye finds the groups that must not be cut.
const drawSensitivity = data => {
  const rows = data.sensitivity.flatMap(part => Object.entries(part.drops).map(([group, drops]) => ({ name: `${part.technique} ${group}`, drops })));
  const at = drops => Object.keys(drops).map(Number).sort((a, b) => a - b);
  if (rows.length > FEW_LINES) {
    const shares = [...new Set(rows.flatMap(r => at(r.drops)))].sort((a, b) => a - b);
    draw("sensitivity", [{ type: "heatmap", x: rows.map(r => r.name), y: shares.map(s => `${Math.round(100 * s)}%`), z: shares.map(s => rows.map(r => r.drops[String(s)] ?? null)),
      colorscale: [[0, colour("panel")], [1, colour("bad")]], colorbar: { title: { text: word("damage") }, thickness: 12, outlinewidth: 0 }, xgap: 1, ygap: 1,
      hovertemplate: "%{x}<br>%{y}: %{z:.4g}<extra></extra>" }], layout("", word("share"), { x: { tickangle: -40, type: "category" }, y: { type: "category" } }));
    return;
  }
  draw("sensitivity", rows.map((r, i) => ({ type: "scatter", mode: "lines+markers", name: r.name, x: [0, ...at(r.drops)], y: [0, ...at(r.drops).map(s => r.drops[String(s)])],
    line: { color: SERIES[i % SERIES.length], dash: DASHES[Math.floor(i / SERIES.length)] } })), layout(word("share"), word("damage"), { x: { tickformat: ".0%" } }));
};
const FEW_LINES = 12, DASHES = ["solid", "dash"];
const drawQuantization = data => {
  const rows = data.details.quantization.layers;
  draw("quantization", [{ type: "bar", x: rows.map(r => r.layer), y: rows.map(r => r.sqnr_db), marker: { color: colour("accent") },
    customdata: rows.map(r => [r.low, r.high]), hovertemplate: "%{x}<br>%{y:.1f} dB<br>%{customdata[0]:.3g} ... %{customdata[1]:.3g}<extra></extra>" }],
    layout("", word("sqnr"), { x: { tickangle: -40, type: "category" } }));
};
const drawDistribution = data => {
  const samples = data.details.latency_ms;
  draw("distribution", Object.entries(samples).map(([name, values], i) => {
    const sorted = [...values].sort((a, b) => a - b);
    return { type: "scatter", mode: "lines", name: word(name === "best" ? "bestName" : name), x: sorted, y: sorted.map((_, k) => (k + 1) / sorted.length),
      line: { shape: "hv", color: colour(i ? "good" : "ink") }, hovertemplate: "%{x:.4g} ms, %{y:.1%}<extra></extra>" };
  }), layout(word("call"), word("calls"), { x: logAxis, y: { tickformat: ".0%" } }));
};
const drawRoofline = data => {
  const bytes = { fp32: 4, bf16: 2, int8: 1 }, doctor = data.doctor;
  const rows = doctor.rows.filter(r => r.operations && r.elements);
  const at = r => r.operations / (r.elements * bytes[r.precision]);
  const xs = rows.map(at), low = Math.min(...xs) / 2, high = Math.max(...xs) * 2;
  const used = [...new Set(rows.map(r => r.precision))];
  const roofs = used.flatMap((p, i) => [["cache", doctor.limits.cache_bytes_per_s], ["dram", doctor.limits.dram_bytes_per_s]].map(([name, bandwidth]) => {
    const grid = Array.from({ length: 60 }, (_, k) => low * Math.pow(high / low, k / 59));
    return { type: "scatter", mode: "lines", name: `${p}, ${word(name)}`, x: grid, y: grid.map(x => Math.min(x * bandwidth, doctor.limits.peaks[p].ops_per_s) / 1e9),
      line: { color: SERIES[i], dash: name === "dram" ? "dot" : "solid", width: 1.5 }, hoverinfo: "skip" };
  }));
  const points = used.map((p, i) => {
    const own = rows.filter(r => r.precision === p);
    return { type: "scatter", mode: "markers", name: p, x: own.map(at), y: own.map(r => r.operations / r.time_us / 1e3),
      marker: { color: SERIES[i], size: own.map(r => 7 + 40 * Math.sqrt(Math.min(1, r.share))), opacity: .8 },
      text: own.map(r => `${r.label}<br>${r.time_us.toFixed(1)} us, ${(100 * r.share).toFixed(1)}%<br>${reasonWord(r.reason)}`), hovertemplate: "%{text}<extra></extra>" };
  });
  draw("roofline", [...roofs, ...points], layout(word("intensity"), word("speed"), { x: logAxis, y: logAxis }));
};
