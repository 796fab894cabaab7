// The page from top to bottom, and what keeps it up to date while a run goes on.

const MARK = () => svg("svg", { class: "mark", viewBox: "0 0 32 32", "aria-hidden": "true" },
  svg("path", { d: "M2 16C7 8 11.5 5 16 5s9 3 14 11c-5 8-9.5 11-14 11S7 24 2 16Z" }), svg("circle", { cx: 16, cy: 16, r: 6.5 }), svg("circle", { class: "dot", cx: 16, cy: 16, r: 2.2 }));

function header() {
  const run = RUNS[0], method = run.config.method, facts = several ? [RUNS.length + " runs compared"] : [
    method && typeof method === "object" ? method.type : method, lastName(run.config.model), lastName(run.config.data), "seed" in run.config ? "seed " + run.config.seed : "",
    String(run.env.started || "").slice(0, 16), run.env.processor || run.env.machine, run.env.commit ? "commit " + String(run.env.commit).slice(0, 10) : ""];
  const copy = (text) => {
    const b = h("button", { onclick: () => navigator.clipboard && navigator.clipboard.writeText(text).then(() => { b.textContent = "copied"; setTimeout(() => { b.textContent = "copy"; }, 1200); }, () => {}) }, "copy");
    return h("div", { class: "command" }, h("code", null, text), b);
  };
  return h("header", null, h("div", { class: "brand" }, MARK(), h("span", null, "Fovea"), h("em", null, several ? "runs" : "run report"), h("span", { id: "live" })),
    h("h1", null, several ? RUNS.map((r) => [h("span", { class: "chip " + r.colour }, r.label), " "]) : run.name),
    h("p", { class: "facts" }, facts.filter(Boolean).map((f) => h("span", null, f))),
    !several && run.commands.length ? copy(run.commands[0]) : null,
    h("div", { id: "problems" }), h("div", { id: "numbers" }));
}

function numberCards() {
  const run = RUNS[0], cards = [], card = (title, value, note, lead) => h("div", { class: "number" + (lead ? " lead" : "") }, h("h2", null, title), h("p", null, value), h("i", null, note || ""));
  const arrow = (a, b, unit) => [h("span", { class: "was" }, a), h("span", { class: "to" }, "→"), b, unit ? h("small", null, unit) : null];
  const held = run.get("eval/accuracy");
  if (held.x.length) {
    const end = held.x.length - 1, band = bounds({ run, name: "eval/accuracy" }, held.x), pct = (y) => (y * 100).toFixed(1);
    const note = band ? "95 % interval " + pct(band[end][0]) + " to " + pct(band[end][1]) : "percent of held-out tasks";
    cards.push(card("Held-out accuracy", end ? arrow(pct(held.y[0]), pct(held.y[end]), "%") : [pct(held.y[0]), h("small", null, "%")], note, true));
  }
  const reward = run.get("reward/mean").y, sum = (ys) => ys.reduce((a, b) => a + b, 0);
  if (reward.length) {
    const k = Math.max(1, Math.floor(reward.length / 10)), mean = (ys) => (sum(ys) / ys.length).toFixed(2);
    cards.push(card("Training reward", arrow(mean(reward.slice(0, k)), mean(reward.slice(-k))), k > 1 ? "mean of the first and last " + k + " steps" : "first and last step"));
  }
  const total = run.config.steps, seconds = run.last("time/wall_s"), trained = sum(run.get("time/step_s").y), made = sum(run.get("length/episodes").y);
  cards.push(card("Steps", whole(run.step), known(total) ? "of " + whole(total) : ""));
  if (known(seconds)) cards.push(card("Time", clock(seconds), trained ? clock(trained) + " of it in training steps" : ""));
  if (made) cards.push(card("Answers", big(made), big(sum(run.get("length/tokens").y)) + " tokens"));
  const speeds = [...run.get("speed/tokens_per_s").y].sort((a, b) => a - b);
  if (speeds.length) cards.push(card("Speed", [whole(speeds[speeds.length >> 1]), h("small", null, "tok/s")], "median while generating"));
  return h("div", { class: "numbers" }, cards);
}

// Final numbers of several runs, and what differs between them.
function comparison() {
  const { runs, config, sources } = DATA.compare, pct = (v) => (v ? number(v.value, true) : "–");
  const range = (v) => (v && "low" in v ? h("small", null, number(v.low, true) + " to " + number(v.high, true)) : null);
  const row = (name, cells) => h("tr", null, h("td", null, name), cells.map((c) => h("td", null, c)));
  const final = (metric) => runs.map((r) => r.final[metric]);
  const rows = [
    row("held-out accuracy", final("eval/accuracy").map((v) => [h("b", null, pct(v)), " ", range(v)])),
    row("before training", final("eval/accuracy").map((v) => (v ? number(v.first, true) : "–"))),
    ...sources.map((s) => row(s.source, s.values.map((v) => [pct(v), " ", range(v)]))),
    row("training reward, last step", final("reward/mean").map((v) => (v ? number(v.value) : "–"))),
    row("steps", runs.map((r) => whole(r.steps))), row("time", runs.map((r) => clock(r.seconds))), row("tokens", runs.map((r) => big(r.tokens))),
    row("tokens/s while generating", runs.map((r) => (known(r.tokens_per_s) ? whole(r.tokens_per_s) : "–"))),
    row("peak memory, MB", runs.map((r) => (known(r.peak_mb) ? whole(r.peak_mb) : "–"))),
  ];
  const head = h("thead", null, h("tr", null, h("th"), RUNS.map((r) => h("th", null, h("span", { class: "chip " + r.colour }, r.label)))));
  const differ = config.map((d) => row(h("code", null, d.field), d.values.map((v) => (v === null ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v)))));
  const title = !differ.length ? "No setting differs" : differ.length === 1 ? "One setting differs" : differ.length + " settings differ";
  const settings = h("details", { open: differ.length <= 14 }, h("summary", null, title), h("table", null, head.cloneNode(true), h("tbody", null, differ)));
  return h("div", { class: "compared" }, h("table", null, head, h("tbody", null, rows)), differ.length ? settings : h("p", { class: "empty" }, title));
}

function machineSection() {
  const shares = h("div", { class: "shares" }), made = [panel({ key: "time", title: "Seconds per step", zero: true, area: !several, size: "mid", percent: false, lines: PHASES, note: several ? "" : "Where the time of a step goes." }), ...MACHINE.map((p) => panel({ ...p, size: "mid" }))].flat();
  const el = h("section", { id: "machine" }, h("h2", null, "The machine"), shares, h("div", { class: "grid mid" }, made.map((c) => c.el)));
  const update = () => show(shares, RUNS.map((run) => {
    const sum = (name) => run.get(name).y.reduce((a, b) => a + b, 0), parts = [...PHASES, ["time/eval_s", "evaluate", "c6"], ["time/save_s", "save", "c7"]].map(([n, label, colour]) => [label, sum(n), colour]).filter(([, s]) => s > 0);
    const all = run.last("time/wall_s"), named = parts.reduce((n, [, s]) => n + s, 0);
    if (known(all) && all > named) parts.push(["start and the rest", all - named, "muted"]);
    const whole_ = Math.max(named, known(all) ? all : 0);
    if (!whole_) return null;
    return h("div", { class: "share" }, several ? h("span", { class: "chip " + run.colour }, run.label) : null, h("div", { class: "stack" }, parts.map(([label, s, colour]) => {
      const part = h("i", { class: colour, title: label + " " + clock(s) });
      part.style.width = (s / whole_) * 100 + "%";
      return part;
    })), h("p", { class: "legend" }, parts.map(([label, s, colour]) => h("span", { class: "key " + colour }, label, " ", h("b", null, ((s / whole_) * 100).toFixed(0) + "%"), " " + clock(s)))));
  }));
  el.hidden = !made.length;
  update();
  return { el, update };
}

function details() {
  const flat = (x, prefix = "") => Object.entries(x || {}).flatMap(([k, v]) => (v && typeof v === "object" && !Array.isArray(v) && Object.keys(v).length ? flat(v, prefix + k + ".") : [[prefix + k, v]]));
  const table = (pairs) => h("table", null, h("tbody", null, pairs.map(([k, v]) => h("tr", null, h("td", null, h("code", null, k)), h("td", null, v === null || v === undefined ? "" : typeof v === "object" ? JSON.stringify(v) : String(v))))));
  const fold = (title, body) => h("details", null, h("summary", null, title), h("div", null, body));
  return h("section", { id: "details", class: "details" }, h("h2", null, "Details"), RUNS.map((run) => {
    const of = several ? run.label + ": " : "", named = [...run.series.keys()].sort();
    return [
      Object.keys(run.config).length ? fold(of + "recipe", table(flat(run.config))) : null,
      Object.keys(run.env).length ? fold(of + "surroundings", table(flat(run.env))) : null,
      named.length ? fold(of + "every metric, its last value and what it means", h("table", null, h("tbody", null, named.map((n) => h("tr", null, h("td", null, h("code", null, n)), h("td", null, number(run.last(n))), h("td", null, explain(n))))))) : null,
      run.commands.length ? fold(of + "commands", run.commands.map((c) => h("pre", null, c))) : null,
    ];
  }));
}

// -- together -------------------------------------------------------------------------------------------------------------------------

const page = document.getElementById("page");
const curves = h("section", { id: "curves" }), curveBody = h("div"), rollouts = rolloutSection(), heldout = heldoutSection();
let machine = machineSection();
let drawnNames;
const nav = h("nav", { "aria-label": "sections" }, [["curves", "Curves"], ["rollouts", "Rollouts"], ["heldout", "Over training"], ["machine", "Machine"], ["details", "Details"]].map(([id, text]) => h("a", { href: "#" + id }, text)));

function drawCurves() {
  const metrics = RUNS.map((r) => [...r.series.keys()].sort().join()).join(";");
  if (metrics === drawnNames) { charts.forEach((c) => c.draw()); return; }
  drawnNames = metrics;
  [...charts].forEach((c) => c.remove());
  show(curveBody, curveSections(), everyMetric());
  const fresh = machineSection();
  machine.el.replaceWith(fresh.el);
  machine = fresh;
}

function drawNumbers() {
  const problems = RUNS.flatMap((r) => r.problems.map((p) => (several ? r.label + ": " : "") + p));
  show(document.getElementById("problems"), problems.length ? h("div", { class: "problem", role: "alert" }, h("b", null, problems.length === 1 ? "One thing could not be read" : problems.length + " things could not be read"),
    h("ul", null, problems.slice(0, 20).map((p) => h("li", null, p))), problems.length > 20 ? "and " + (problems.length - 20) + " more" : null) : null);
  show(document.getElementById("numbers"), several ? comparison() : numberCards());
}

page.append(header(), nav, curves, rollouts.el, heldout.el, machine.el, details());
curves.append(curveTools(), curveBody);
drawNumbers();
drawCurves();
rollouts.update();
heldout.update();
machine.update();
addEventListener("beforeprint", allSeen);
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.painted = performance.now().toFixed(0); }));

if (SERVED) {
  const live = document.getElementById("live");
  let changed = 0;
  const tick = async () => {
    if (!document.hidden) try {
      for (const run of RUNS) {
        const news = await run.refresh();
        if (news.numbers || news.problems) drawNumbers();
        if (news.numbers) { drawCurves(); machine.update(); changed = Date.now(); }
        if (news.index) { rollouts.refresh(); heldout.update(); }
      }
      live.className = Date.now() - changed < 20000 && changed ? "on" : "";
      live.textContent = live.className ? "live, step " + whole(Math.max(...RUNS.map((r) => r.step))) : "";
      document.documentElement.dataset.indexed = "yes";
    } catch (e) {
      live.className = "off";
      live.textContent = "no answer from fovea view: " + e.message;
    }
    setTimeout(tick, 2000);
  };
  tick();
} else document.documentElement.dataset.indexed = "yes";
