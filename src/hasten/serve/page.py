"""The status page: one file without outside parts, which reads `status.json` every second.

It says nothing itself, so it is served without an API key. It asks for one where the server wants it, or takes it from
the address behind `#`, which a browser does not send, and keeps it for its tab.
"""

PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>hasten</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bar: #2a7ade; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
.meter { display: inline-block; width: 7rem; height: .7rem; border: 1px solid var(--line); vertical-align: middle; }
.meter i { display: block; height: 100%; background: var(--bar); }
#state { color: #777; }
</style></head><body>
<h1>hasten <span id="version"></span> <small id="state">loading</small></h1>
<form id="ask" hidden><input id="key" type="password" autocomplete="off" aria-label="API key" placeholder="API key">
<button>Show</button></form>
<div id="models"></div>
<script>
"use strict";
const ask = document.getElementById("ask"), field = document.getElementById("key");
let key = sessionStorage.getItem("key") || "";
const use = given => { key = given; sessionStorage.setItem("key", key); ask.hidden = true; };
ask.onsubmit = event => { event.preventDefault(); use(field.value); };
if (location.hash.length > 1) {
  use(decodeURIComponent(location.hash.slice(1)));
  history.replaceState(null, "", location.pathname);
}
const previous = {};
const cell = (row, text, number) => {
  const td = row.insertCell(); td.textContent = text; if (number) td.className = "n"; return td;
};
const table = (parent, names) => {
  const t = document.createElement("table"), row = t.createTHead().insertRow();
  for (const [name, number] of names) {
    const th = document.createElement("th"); th.textContent = name; if (number) th.className = "n"; row.append(th);
  }
  parent.append(t); return t.createTBody();
};
const ms = x => x == null ? "-" : x.toFixed(2);
const draw = (status, seconds) => {
  document.getElementById("version").textContent = status.version;
  const root = document.createElement("div");
  for (const m of status.models) {
    const h = document.createElement("h2"); h.textContent = m.name + " version " + m.version; root.append(h);
    const name = m.name + "/" + m.version, before = previous[name];
    const rate = before ? Math.max(0, m.counters.success - before.success) / seconds : 0;
    const body = table(root, [["requests/s", 1], ["answered", 1], ["failed", 1], ["rejected", 1], ["queue rows", 1],
      ["p50 ms", 1], ["p90 ms", 1], ["p99 ms", 1]]);
    const row = body.insertRow(), l = m.latency_ms;
    for (const x of [rate.toFixed(1), m.counters.success, m.counters.failed, m.counters.rejected, m.queue_rows,
      ms(l.p50), ms(l.p90), ms(l.p99)]) cell(row, x, true);
    const devices = table(root, [["device", 0], ["state", 0], ["busy", 0], ["rows", 1], ["batches", 1],
      ["largest batch", 1], ["ms: base + per row", 1]]);
    for (const [i, d] of m.devices.entries()) {
      const r = devices.insertRow();
      const was = before ? before.busy[i] : d.busy_s;
      const use = Math.max(0, Math.min(1, (d.busy_s - was) / seconds / d.lanes));
      cell(r, d.name); cell(r, d.state);
      const c = cell(r, ""), meter = document.createElement("span"), fill = document.createElement("i");
      meter.className = "meter"; fill.style.width = (100 * use) + "%"; meter.append(fill);
      c.append(meter, " " + (100 * use).toFixed(0) + "%");
      for (const x of [d.rows, d.batches, d.largest_batch,
        ms(d.service_ms.base) + " + " + ms(d.service_ms.row)]) cell(r, x, true);
    }
    previous[name] = {success: m.counters.success, busy: m.devices.map(d => d.busy_s)};
  }
  document.getElementById("models").replaceChildren(root);
};
let last = performance.now();
const poll = async () => {
  const state = document.getElementById("state");
  try {
    const response = await fetch("status.json", {headers: key ? {"X-API-Key": key} : {}});
    if (response.status === 401) ask.hidden = false;
    if (!response.ok) throw new Error(response.status === 401 ? "needs the API key" : "HTTP " + response.status);
    const now = performance.now();
    draw(await response.json(), (now - last) / 1000); last = now;
    state.textContent = "live";
  } catch (error) { state.textContent = error.message; }
  setTimeout(poll, 1000);
};
poll();
</script></body></html>
"""
