// Curves: uPlot underneath; smoothing, the read-out under the pointer and the legend are ours.

const view = { smooth: 0.6, x: "step" };
const charts = new Set();
const SHARE = /accuracy|_frac$/;
const START = 8;  // fewer points are not smoothed

function times(run) { const t = run.get("time/wall_s"); return new Map(t.x.map((x, i) => [x, t.y[i]])); }

function points(line) {
  const { x, y } = line.run.get(line.name);
  if (view.x === "step") return { x, y };
  const wall = times(line.run), kept = x.map((_, i) => i).filter((i) => wall.has(x[i]));
  return { x: kept.map((i) => wall.get(x[i])), y: kept.map((i) => y[i]) };
}

// Exponential moving average with the bias of its start removed.
function smoothed(y, w) {
  let last = 0, weight = 0;
  return y.map((v) => { last = last * w + (1 - w) * v; weight = weight * w + (1 - w); return last / weight; });
}

function bounds(line, xs) {
  const { run, name } = line, low = run.get(name + "_low"), high = run.get(name + "_high");
  const steps = run.get(name).x, y = run.get(name).y;
  const stem = name.startsWith("eval/accuracy/") ? "eval/n/" + name.slice(14) : "eval/n";
  const out = steps.map((step, i) => {
    const a = low.x.indexOf(step);
    if (a >= 0) return [low.y[a], high.y[a]];
    const n = run.at(stem, step);
    return name === "eval/accuracy" || stem !== "eval/n" ? interval(y[i], n) : null;
  });
  return xs.length === out.length && out.every(Boolean) ? out : null;
}

class Chart {
  // spec: {title, note, percent, zero, size, area, lines: [{label, colour, run, name, style}]}
  constructor(spec) {
    this.spec = spec;
    this.at = h("span", { class: "at" });
    this.legend = h("div", { class: "legend" });
    this.plot = h("div", { class: "plot" });
    const note = spec.note ? h("button", { class: "why", "aria-label": "what is this?", onclick: () => this.tell() }, "?") : null;
    this.el = h("figure", { class: "chart " + (spec.size || ""), data: { chart: spec.key } },
      h("figcaption", null, h("h3", null, spec.title, " ", note), this.legend), this.plot, this.at);
    charts.add(this);
    this.values();
    whenSeen(this.el, () => { this.seen = true; this.draw(); });
  }

  tell() {
    const old = this.el.querySelector(".note");
    if (old) old.remove(); else this.el.querySelector("figcaption").after(h("p", { class: "note" }, this.spec.note));
  }

  get lines() { return this.spec.lines.filter((l) => l.run.series.has(l.name)); }

  values(x) {
    const keys = this.lines.map((l) => {
      const p = points(l), i = x === undefined ? p.x.length - 1 : nearest(p.x, x);
      return h("span", { class: "key " + l.colour }, l.label, " ", h("b", null, number(p.y[i], this.spec.percent)));
    });
    show(this.legend, keys);
  }

  // One table per line, joined on x; columns and how each is drawn.
  columns() {
    const tables = [], series = [{}], bands = [], whiskers = [];
    this.raw = [];
    if (this.spec.area) {
      const lines = this.lines, grid = [...new Set(lines.flatMap((l) => points(l).x))].sort((a, b) => a - b);
      const base = grid.map(() => 0), layers = [];
      for (const l of lines) {
        const p = points(l), values = new Map(p.x.map((x, i) => [x, p.y[i]]));
        grid.forEach((x, i) => { base[i] += values.get(x) || 0; });
        layers.unshift([l, base.slice()]);
      }
      for (const [l] of layers) series.push({ stroke: () => css("--card"), width: 0.6, fill: () => paint(l.colour, 0.85), points: { show: false } });
      this.raw.push(base);
      return { data: [grid, ...layers.map(([, ys]) => ys)], series, bands, whiskers };
    }
    for (const l of this.lines) {
      const p = points(l), stroke = () => paint(l.colour);
      if (!p.x.length) continue;
      this.raw.push(p.y);
      if (l.style === "dots") {
        const between = bounds(l, p.x), at = series.length;
        series.push({ stroke, width: 2, spanGaps: true, points: { show: true, size: this.spec.size === "small" ? 5 : 7, fill: stroke, stroke } });
        if (between) {
          const edge = { stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
          series.push({ ...edge }, { ...edge });
          bands.push({ series: [at + 2, at + 1], fill: () => paint(l.colour, 0.13) });
          whiskers.push({ x: p.x, between, stroke });
          tables.push([p.x, p.y, between.map((b) => b[0]), between.map((b) => b[1])]);
          this.raw.push(between.flat());
        } else tables.push([p.x, p.y]);
      } else if (view.smooth > 0 && p.x.length >= START) {
        series.push({ stroke, width: 1, alpha: 0.28, spanGaps: true, points: { show: false } });
        series.push({ stroke, width: 2, spanGaps: true, points: { show: false } });
        tables.push([p.x, p.y, smoothed(p.y, view.smooth)]);
      } else {
        series.push({ stroke, width: 2, spanGaps: true, points: { show: p.x.length < 2, size: 6, fill: stroke } });
        tables.push([p.x, p.y]);
      }
    }
    return { data: tables.length ? uPlot.join(tables) : [[]], series, bands, whiskers };
  }

  // Ends of the y axis. One wild value must not flatten a curve: the outer hundredth of long series is left out.
  range(u, low, high) {
    const all = u.data[0], full = u.scales.x.min <= all[0] && u.scales.x.max >= all[all.length - 1];
    if (full && this.raw.length) {
      const values = this.raw.flat().filter(known).sort((a, b) => a - b), skip = this.spec.lines.some((l) => l.style === "dots") ? 0 : Math.floor(values.length / 100);
      [low, high] = [values[skip], values[values.length - 1 - skip]];
    }
    if (!known(low) || !known(high)) return [0, 1];
    if (this.spec.zero) low = Math.min(0, low);
    if (high - low < 1e-9 * Math.max(1, Math.abs(high))) { const pad = Math.abs(high) * 0.1 || 0.1; high += pad; if (!this.spec.zero || low < 0) low -= pad; }
    const pad = (high - low) * 0.06, top = this.spec.percent && high <= 1 && low >= 0 ? Math.min(1.015, high + pad) : high + pad;
    return [this.spec.zero && low >= 0 ? 0 : low - pad, top];
  }

  draw() {
    if (!this.seen || !this.el.isConnected) return;
    const { data, series, bands, whiskers } = this.columns();
    const shape = JSON.stringify([series.length, bands.length, view.x, series.map((s) => [s.width, s.alpha])]);
    this.whiskers = whiskers;
    this.values();
    if (this.u && shape === this.shape) { this.u.setData(data); return; }
    if (this.u) this.u.destroy();
    this.shape = shape;
    const small = this.spec.size === "small", font = "11px system-ui, -apple-system, sans-serif", ink = () => css("--faint");
    const axis = { font, stroke: ink, ticks: { show: false }, grid: { stroke: () => css("--line"), width: 1 } };
    const percent = this.spec.percent;
    this.u = new uPlot({
      width: this.plot.clientWidth || 300, height: this.plot.clientHeight || 150, series, bands, legend: { show: false }, padding: [6, 8, 0, 0],
      cursor: { y: false, points: { size: 5 }, drag: { x: true, y: false }, sync: { key: "curves", scales: ["x", null] } },
      scales: { x: { time: false }, y: { range: (u, a, b) => this.range(u, a, b) } },
      axes: [
        { ...axis, size: 26, gap: 6, grid: { show: false }, space: small ? 60 : 70, values: (u, ticks) => ticks.map((t) => (view.x === "step" ? (Number.isInteger(t) ? big(t) : "") : clock(t))) },
        { ...axis, size: small ? 38 : 46, gap: 4, space: small ? 26 : 32, values: (u, ticks) => ticks.map((t) => tickText(t, ticks, percent)) },
      ],
      hooks: {
        draw: [(u) => this.bars(u)],
        setCursor: [(u) => {
          const x = u.cursor.left >= 0 && known(u.cursor.idx) ? u.data[0][u.cursor.idx] : undefined;
          this.values(x);
          this.at.textContent = x === undefined ? "" : view.x === "step" ? "step " + whole(x) : clock(x);
        }],
      },
    }, data, this.plot);
    sizes.observe(this.plot);
    this.plot.chart = this;
  }

  // Intervals as whiskers.
  bars(u) {
    for (const { x, between, stroke } of this.whiskers) {
      const c = u.ctx;
      c.save();
      c.globalAlpha = 0.55;
      c.strokeStyle = stroke();
      c.lineWidth = 1.2 * devicePixelRatio;
      c.beginPath();
      x.forEach((at, i) => {
        const left = u.valToPos(at, "x", true);
        if (left < u.bbox.left - 1 || left > u.bbox.left + u.bbox.width + 1) return;
        c.moveTo(left, u.valToPos(between[i][0], "y", true));
        c.lineTo(left, u.valToPos(between[i][1], "y", true));
      });
      c.stroke();
      c.restore();
    }
  }

  remove() { charts.delete(this); sizes.unobserve(this.plot); if (this.u) this.u.destroy(); }
}

const sizes = new ResizeObserver((seen) => {
  for (const { target } of seen) if (target.chart && target.clientWidth) target.chart.u.setSize({ width: target.clientWidth, height: target.clientHeight });
});
const redraw = () => charts.forEach((c) => c.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((c) => c.u && c.u.redraw(false)));

function nearest(xs, x) {
  let a = 0, b = xs.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; if (xs[m] <= x) a = m; else b = m; }
  return b >= 0 && Math.abs(xs[b] - x) < Math.abs(xs[a] - x) ? b : a;
}

function paint(colour, alpha) {
  const value = css("--" + { ink: "ink", good: "good", bad: "bad", muted: "faint" }[colour] || "") || css("--" + colour);
  return alpha === undefined ? value : value + Math.round(alpha * 255).toString(16).padStart(2, "0");
}

function tickText(t, ticks, percent) {
  const unit = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.abs(t) || 1;
  if (percent) return (t * 100).toFixed(unit >= 0.0099 ? 0 : 1) + "%";
  if (Math.abs(ticks[ticks.length - 1]) >= 1e4) return +(t / 1000).toPrecision(4) + "k";
  if (unit < 1e-3) return t === 0 ? "0" : t.toExponential(1);
  return t.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(unit) + 1e-9) + (unit * 10 ** Math.max(0, -Math.floor(Math.log10(unit) + 1e-9)) % 1 > 1e-9 ? 1 : 0))));
}

// -- which curves -----------------------------------------------------------------------------------------------------------------

const PANELS = [
  { key: "length", title: "Answer length, tokens", zero: true, lines: [["length/mean_tokens", "mean", "c0"], ["length/max_tokens", "longest", "c3"]] },
  { key: "entropy", title: "Entropy, nats", zero: true, lines: [["policy/entropy", "entropy", "c2"]] },
  { key: "kl", title: "KL, nats per token", lines: [["policy/kl", "to the sampling policy", "c4"], ["policy/kl_ref", "to the reference", "c5"]] },
  { key: "grad", title: "Gradient norm", zero: true, lines: [["optim/grad_norm", "before clipping", "c1"]] },
  { key: "nll", title: "Negative log-likelihood, nats", lines: [["policy/nll", "of given answers", "c0"]] },
  { key: "preference", title: "Chosen over rejected", zero: true, lines: [["policy/preference_accuracy", "of pairs", "c0"]] },
  { key: "clip", title: "Clipped", zero: true, lines: [["policy/clip_frac", "units clipped", "c4"], ["length/cut_frac", "answers cut", "c1"]] },
  { key: "groups", title: "Groups", zero: true, lines: [["group/degenerate_frac", "no gradient", "muted"], ["group/solved_frac", "all correct", "good"], ["group/failed_frac", "none correct", "bad"]] },
];
const MACHINE = [
  { key: "speed", title: "Tokens per second", zero: true, lines: [["speed/tokens_per_s", "while generating", "c5"]] },
  { key: "episodes", title: "Episodes per second", zero: true, lines: [["speed/episodes_per_s", "of the whole step", "c2"]] },
  { key: "memory", title: "Peak memory, MB", zero: true, lines: [["memory/peak_mb", "of the process", "c1"], ["memory/device_peak_mb", "of the device", "c4"]] },
];
const PHASES = [["time/generate_s", "generate", "c0"], ["time/score_s", "verify", "c1"], ["time/prepare_s", "prepare", "c2"], ["time/update_s", "update", "c3"], ["time/wait_s", "wait", "c4"]];

// The charts of a panel: all its lines together for one run; one chart per line, with a curve per run, for several.
function panel(p) {
  const has = (name) => RUNS.some((r) => r.series.has(name));
  const lines = p.lines.filter(([name]) => has(name)), percent = p.percent ?? lines.every(([name]) => SHARE.test(name));
  if (!lines.length) return [];
  const about = lines.map(([name, label]) => (lines.length > 1 && !several ? label + ": " : "") + explain(name)).filter((t) => t && !t.endsWith(": "));
  if (!several) {
    const made = lines.map(([name, label, colour, style]) => ({ name, label, colour, style, run: RUNS[0] }));
    return [new Chart({ ...p, percent, note: p.note || about.join(" "), lines: made })];
  }
  return lines.map(([name, label, , style]) => new Chart({
    ...p, key: p.key + "-" + name, area: false, percent: p.percent ?? SHARE.test(name), note: explain(name), title: lines.length > 1 ? p.title + ": " + label : p.title,
    lines: RUNS.map((run) => ({ run, name, label: run.label, colour: run.colour, style })),
  }));
}

const union = (prefix) => [...new Set(RUNS.flatMap((r) => r.family(prefix)))].sort();

function curveSections() {
  const parts = union("reward"), rewards = [...(parts.length > 1 ? parts.slice(0, 7).map((n, i) => ["reward/" + n, n, "c" + ((i + 1) % 8)]) : []), ["reward/mean", "total", "ink"]];
  const grid = (size, panels) => {
    const made = panels.flatMap((p) => panel({ ...p, size }));
    return made.length ? h("div", { class: "grid " + size }, made.map((c) => c.el)) : null;
  };
  const learning = grid("big", [
    { key: "accuracy", title: "Accuracy", zero: true, percent: true, lines: [["accuracy/mean", "training samples", "c0"], ["eval/accuracy", "held out", "good", "dots"]],
      note: several ? "" : "Training samples are drawn at the training temperature; held-out tasks are never trained on. The band is a 95 % Wilson interval." },
    { key: "reward", title: "Reward", lines: rewards, percent: false },
  ]);
  const sources = [...new Set([...union("accuracy"), ...union("eval/accuracy")])].sort();
  const bySource = sources.length > 1 ? grid("small", sources.slice(0, 40).map((s, i) => ({
    key: "source-" + i, title: s, zero: true, percent: true, note: "",
    lines: [["accuracy/" + s, "training", "c0"], ["eval/accuracy/" + s, "held out", "good", "dots"]],
  }))) : null;
  const health = grid("mid", PANELS);
  return [
    learning ? [h("h2", null, "Learning"), learning] : h("p", { class: "empty" }, "No step was logged yet."),
    bySource && [h("h2", null, "By source"), bySource],
    health && [h("h2", null, "Health of the run"), health],
  ].flat();
}

// Every metric there is: families to choose from, or what a word finds; curves are made when they are wanted.
const wanted = { family: "", word: "" };
function everyMetric() {
  const all = [...new Set(RUNS.flatMap((r) => [...r.series.keys()]))].filter((n) => !/_(low|high)$/.test(n)).sort(), body = h("div", { class: "grid small" }), made = new Map();
  const box = h("input", { type: "search", placeholder: "find a metric", "aria-label": "find a metric", value: wanted.word, oninput: () => { wanted.word = box.value; update(); } });
  const families = [...new Set(all.map((n) => n.split("/")[0]))].map((f) => {
    const b = h("button", { onclick: () => { wanted.family = wanted.family === f ? "" : f; update(); } }, f, h("span", { class: "soft" }, " " + all.filter((n) => n.split("/")[0] === f).length));
    b.family = f;
    return b;
  });
  const chart = (name) => new Chart({ key: "all-" + name, title: name, note: explain(name), percent: SHARE.test(name), size: "small",
    lines: RUNS.map((run) => ({ run, name, label: several ? run.label : "", colour: run.colour, style: name.startsWith("eval/accuracy") ? "dots" : "line" })) });
  const update = () => {
    const word = wanted.word.trim().toLowerCase();
    families.forEach((b) => b.classList.toggle("on", b.family === wanted.family && !word));
    const shown = all.filter((n) => (word ? n.toLowerCase().includes(word) : n.split("/")[0] === wanted.family));
    show(body, shown.map((n) => { if (!made.has(n)) made.set(n, chart(n)); return made.get(n).el; }));
    for (const n of shown) made.get(n).draw();
  };
  update();
  return all.length ? [h("div", { class: "row" }, h("h2", null, "Every metric"), box), h("div", { class: "pills" }, families), body] : [];
}

function curveTools() {
  const out = h("output", null, view.smooth.toFixed(2));
  const slide = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: view.smooth, "aria-label": "smoothing",
    oninput: () => { view.smooth = +slide.value; out.textContent = view.smooth.toFixed(2); redraw(); } });
  return h("div", { class: "tools" }, h("label", null, "smoothing ", slide, out),
    h("label", null, "against ", select("x axis", [["step", "steps"], ["time", "time"]], view.x, (v) => { view.x = v; redraw(); })),
    h("span", { class: "soft hint" }, "drag over a curve to zoom, double click to return"));
}
