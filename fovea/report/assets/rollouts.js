// The rollout browser: filters over an index of every logged answer, a list that draws only what is in sight, one group at a time.

const ROW = 44;  // pixels
const EMPTY = { run: "", split: "", source: "", verdict: "", stop: "", low: "", high: "", from: "", to: "", task: "" };
const browser = { filter: { ...EMPTY }, found: [], at: -1, tint: "p", key: "" };

const verdictOf = ([score, correct]) => (correct === 1 ? "right" : correct === 0 ? "wrong" : score === null ? "unscored" : "graded");
const isOdd = (stop) => ["length", "error", "cut"].includes(stop);

function matches(f, e) {
  if (f.verdict && verdictOf(e) !== f.verdict) return false;
  if (f.stop && e[2] !== f.stop) return false;
  if (f.low !== "" && (e[0] === null || e[0] < +f.low)) return false;
  return !(f.high !== "" && (e[0] === null || e[0] > +f.high));
}
const byAnswer = (f) => Boolean(f.verdict || f.stop || f.low !== "" || f.high !== "");

function search() {
  const f = browser.filter, word = f.task.trim().toLowerCase();
  const found = [];
  let answers = 0;
  for (const run of RUNS) {
    if (f.run !== "" && run.id !== +f.run) continue;
    for (const g of run.groups) {
      if ((f.split && (f.split === "train") !== (g.split === "train")) || (f.source && g.source !== f.source)) continue;
      if ((f.from !== "" && g.step < +f.from) || (f.to !== "" && g.step > +f.to) || (word && !g.task.toLowerCase().includes(word))) continue;
      const hits = byAnswer(f) ? g.episodes.filter((e) => matches(f, e)).length : g.episodes.length;
      if (!hits && byAnswer(f)) continue;
      answers += hits;
      found.push(g);
    }
  }
  browser.found = found;
  browser.answers = answers;
  const old = found.findIndex((g) => g.key === browser.key), trained = found.findLastIndex((g) => g.split === "train");
  browser.at = old >= 0 ? old : trained >= 0 ? trained : found.length - 1;
}

// -- the section --------------------------------------------------------------------------------------------------------------------

function rolloutSection() {
  const el = h("section", { id: "rollouts" });
  const list = h("div", { class: "list", tabindex: 0, "aria-label": "groups" }), rows = h("div", { class: "rows" }), detail = h("div", { class: "detail" });
  const count = h("p", { class: "count" }), place = h("output"), bar = h("div", { class: "filters" });
  list.append(rows);
  list.addEventListener("scroll", () => requestAnimationFrame(drawList));

  function drawList() {
    const n = browser.found.length, first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(n, first + Math.ceil((list.clientHeight || 600) / ROW) + 8);
    rows.style.height = n * ROW + "px";
    show(rows, browser.found.slice(first, last).map((g, i) => {
      const row = h("button", { class: "item" + (first + i === browser.at ? " on" : ""), onclick: () => go(first + i) },
        h("b", null, several ? h("i", { class: "swatch " + g.run.colour }) : null, whole(g.step)), h("span", null, g.split === "train" ? "" : "held out ", g.source),
        h("span", { class: "dots" }, g.episodes.slice(0, 16).map((e) => h("i", { class: verdictOf(e) }))), h("em", null, g.mean === null ? "–" : g.mean.toFixed(2)));
      row.style.top = (first + i) * ROW + "px";
      return row;
    }));
  }

  function go(i) {
    if (!browser.found.length) { browser.at = -1; browser.key = ""; show(detail, h("p", { class: "empty" }, SERVED && !RUNS.some((r) => r.revision) ? "…" : "No group matches.")); place.textContent = "0 of 0"; return drawList(); }
    browser.at = Math.min(browser.found.length - 1, Math.max(0, i));
    const g = browser.found[browser.at];
    const fresh = browser.key !== g.key;
    browser.key = g.key;
    place.textContent = whole(browser.at + 1) + " of " + whole(browser.found.length);
    const top = browser.at * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawList();
    if (fresh || !detail.childElementCount) open(g);
  }

  async function open(g) {
    if (!detail.childElementCount) show(detail, h("p", { class: "empty" }, "…"));
    try {
      const found = await record(g);
      if (browser.key === g.key) show(detail, drawn(g, found));
    } catch (e) {
      if (browser.key === g.key) show(detail, h("p", { class: "problem" }, "rollouts/" + g.file + ", line " + (g.line + 1) + " cannot be shown: " + e.message));
    }
    for (const next of [browser.at + 1, browser.at - 1]) if (SERVED && browser.found[next]) record(browser.found[next]).catch(() => {});
  }

  function update() {
    search();
    const f = browser.filter, all = RUNS.reduce((n, r) => n + r.groups.reduce((m, g) => m + g.episodes.length, 0), 0);
    const groups = RUNS.reduce((n, r) => n + r.groups.length, 0), active = Object.keys(EMPTY).some((k) => f[k] !== "");
    const logged = SERVED ? null : DATA.runs.reduce((n, r) => [n[0] + r.logged.groups, n[1] + r.logged.episodes], [0, 0]);
    show(count, h("b", null, whole(browser.answers)), active ? " of " + whole(all) : "", " answers in ", h("b", null, whole(browser.found.length)), active ? " of " + whole(groups) : "", " groups.",
      logged && logged[0] > groups ? h("span", { class: "sampled" }, " This file holds a sample of the " + whole(logged[1]) + " answers that were logged; ", h("code", null, "fovea view"), " shows them all.") : "");
    count.append(active ? h("button", { onclick: () => { browser.filter = { ...EMPTY }; controls(); update(); } }, "clear") : "");
    el.hidden = !groups && !SERVED;
    drawList();
    go(browser.at);
  }

  function controls() {
    const f = browser.filter, every = (pick) => [...new Set(RUNS.flatMap((r) => r.groups.flatMap(pick)))].sort();
    const set = (name) => (value) => { f[name] = value; update(); };
    const field = (name, label, type) => {
      const box = h("input", { type, value: f[name], step: "any", "aria-label": label, placeholder: label, data: { filter: name }, oninput: () => set(name)(box.value) });
      return box;
    };
    const choose = (name, label, values) => {
      const box = select(label, [["", label], ...values], f[name], set(name));
      box.dataset.filter = name;
      return box;
    };
    const plain = (values) => values.map((v) => [v, v]);
    const splits = every((g) => [g.split === "train" ? "train" : "eval"]);
    show(bar,
      several ? choose("run", "every run", RUNS.map((r) => [r.id, r.label])) : null,
      splits.length > 1 ? choose("split", "training and held out", [["train", "training"], ["eval", "held out"]]) : null,
      choose("source", "every source", plain(every((g) => [g.source]))),
      choose("verdict", "right and wrong", [["right", "right"], ["wrong", "wrong"], ["graded", "graded"], ["unscored", "unscored"]]),
      choose("stop", "every stop reason", plain(every((g) => g.episodes.map((e) => e[2])))),
      h("span", { class: "pair" }, "reward ", field("low", "from", "number"), field("high", "to", "number")),
      h("span", { class: "pair" }, "step ", field("from", "from", "number"), field("to", "to", "number")),
      field("task", "task", "search"));
  }

  const step = (d) => go(browser.at + d);
  const more = h("button", { class: "only-narrow", onclick: () => el.classList.toggle("listing") }, "list");
  el.append(h("h2", null, "What it saw and said"), bar, count,
    h("div", { class: "bar" }, h("button", { "aria-label": "previous group", onclick: () => step(-1) }, "←"), place, h("button", { "aria-label": "next group", onclick: () => step(1) }, "→"), more,
      h("span", { class: "soft keys" }, "keys: ", h("kbd", null, "←"), h("kbd", null, "→"), " or ", h("kbd", null, "k"), h("kbd", null, "j"), " group, ", h("kbd", null, "["), h("kbd", null, "]"), " step, ", h("kbd", null, "f"), " filter, ", h("kbd", null, "t"), " colours, ", h("kbd", null, "Esc"), " clear")),
    h("div", { class: "browser" }, list, detail));

  document.addEventListener("keydown", (e) => {
    if (e.altKey || e.ctrlKey || e.metaKey || el.hidden) return;
    const typing = e.target.matches("input, select, textarea");
    if (e.key === "Escape") {
      if (typing) e.target.blur();
      browser.filter = { ...EMPTY };
      controls();
      return update();
    }
    if (typing) return;
    const stepped = (d) => {
      const here = browser.found[browser.at], i = browser.found.findIndex((g) => here && (d > 0 ? g.step > here.step : g.step === [...browser.found].reverse().find((x) => x.step < here.step)?.step));
      if (i >= 0) go(i);
    };
    const act = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), j: () => step(1), k: () => step(-1), "]": () => stepped(1), "[": () => stepped(-1),
      f: () => bar.querySelector("[data-filter=source]").focus(), "/": () => bar.querySelector("[data-filter=task]").focus(), t: () => turnTint(1) }[e.key];
    if (act) { e.preventDefault(); act(); }
  });
  controls();
  return { el, update, refresh: () => { if (!bar.contains(document.activeElement)) controls(); update(); } };
}

// -- one group ------------------------------------------------------------------------------------------------------------------------

const TINTS = [["p", "probability"], ["a", "advantage"], ["m", "loss mask"]];
const STREAMS = { visual: "visual dependency", reference: "drift from the reference" };

function tintsOf(rec) {
  const segments = rec.episodes.flatMap((e) => e.segments || []);
  const kinds = Object.keys(Object.assign({}, ...segments.map((s) => s.streams || {})));
  return [...TINTS, ...kinds.map((k) => [k, STREAMS[k] || k]), ["n", "plain"]];
}
let turnTint = () => {};

function drawn(g, rec) {
  const tints = tintsOf(rec);
  if (!tints.some(([k]) => k === browser.tint)) browser.tint = "p";
  const answers = h("div", { class: "answers" }), el = h("article", { class: "group" }), f = browser.filter;
  const fill = () => show(answers, rec.episodes.map((e, k) => answer(g, rec, e, k, byAnswer(f) && g.episodes[k] && !matches(f, g.episodes[k]), el)));
  const buttons = tints.map(([kind, label]) => h("button", { data: { tint: kind }, onclick: () => { browser.tint = kind; mark(); fill(); } }, label));
  const legend = h("span", { class: "scale" });
  const mark = () => {
    buttons.forEach((b) => b.classList.toggle("on", b.dataset.tint === browser.tint));
    const kind = browser.tint, ramp = (c, list) => list.map((n) => h("i", { class: c + n }));
    show(legend, kind === "p" ? ["less likely ", ramp("p", [1, 3, 5, 7, 9]), " certain"] : kind === "m" ? [h("i", { class: "trains" }), " trains ", h("i", { class: "given" }), " given, not trained"]
      : kind === "n" ? "" : [kind === "a" ? "discouraged " : kind === "visual" ? "less likely with the picture " : "less ", ramp("a", [0, 2, 4, 6, 8]), kind === "a" ? " encouraged" : kind === "visual" ? " needs the picture" : " more"]);
  };
  turnTint = (d) => { const i = tints.findIndex(([k]) => k === browser.tint); buttons[(i + d + tints.length) % tints.length].click(); };
  mark();
  fill();
  const scores = g.episodes.filter((e) => e[4] === "sample" && e[0] !== null).map((e) => e[0]);
  const right = g.episodes.filter((e) => e[1] === 1).length, judged = g.episodes.filter((e) => e[1] !== null).length;
  const tally = judged ? right + " of " + judged + " right" : g.mean !== null ? "mean " + g.mean.toFixed(2) : "unscored";
  const flat = scores.length > 1 && new Set(scores).size === 1 ? h("span", { class: "flat", title: "All scores are equal: no gradient." }, "no gradient") : null;
  el.append(
    h("aside", null, pictures(g.run, rec, rec.episodes.map((_, k) => k)), placesKey(rec),
      h("div", null, h("p", { class: "tag" }, g.source, h("span", null, (g.split === "train" ? "step " : "held out, step ") + whole(g.step)), h("span", null, tally), flat),
        question(rec.prompt), gold(rec), h("p", { class: "id" }, g.task))),
    h("div", { class: "said-by" }, h("div", { class: "tints", role: "group", "aria-label": "colour of tokens" }, buttons, legend), answers));
  return el;
}

function picture(run, image, overlay, labels) {
  const url = pictureURL(run, String(image.file)), { width, height } = image;
  if (!url || !(width > 0) || !(height > 0)) return h("div", { class: "missing" }, "picture " + image.file + " is missing");
  const shown = svg("image", { href: url, width, height, preserveAspectRatio: "none", class: Math.max(width, height) <= 160 ? "crisp" : "" });
  const el = svg("svg", { class: "picture", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "picture" }, shown, overlay || []);
  const frame = h("div", { class: "frame" + ((labels || []).length > MANY ? " many" : "") }, el, labels || []);
  shown.addEventListener("error", () => frame.replaceWith(h("div", { class: "missing" }, "picture " + image.file + " is missing")));
  return frame;
}

// A filmed episode of a simulator, with what became of it.
function film(run, e) {
  if (!e.film || typeof e.film !== "object") return null;
  const url = filmURL(run, String(e.film.file)), { width, height, fps } = e.film, { success } = e.parts || {};
  const words = [known(success) ? (success > 0 ? "success" : "no success") : "", known(e.score) ? "return " + number(e.score) : "", known(e.length) ? whole(e.length) + " steps" : ""];
  const caption = h("figcaption", null, words.filter(Boolean).join(", "), e.stop === "cut" ? ", cut off" : "");
  if (!url) return h("figure", { class: "film" }, h("div", { class: "missing" }, "film " + e.film.file + " is not in this file"), caption);
  const shown = h("video", { src: url, width, height, controls: true, loop: true, playsinline: true, preload: "auto", title: known(fps) ? number(fps) + " frames a second" : null });
  shown.muted = true;
  shown.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  shown.addEventListener("error", () => shown.replaceWith(h("div", { class: "missing" }, "film " + e.film.file + " cannot be played here")));
  return h("figure", { class: "film" }, shown, caption);
}

// The pictures of a task with the expected places and those that some episodes named drawn on the one they are about.
function pictures(run, rec, which, classes) {
  const { true: gold, said } = rec.places || { true: [], said: [] };
  return h("div", { class: "pictures" }, rec.images.map((image, i) => {
    const here = (places) => places.filter((p) => p.image === i), named = which.flatMap((k, n) => here(said[k] || []).map((p) => [p, "said " + verdictAt(rec.episodes[k], p) + " " + ((classes || [])[n] || ""), k]));
    const all = [...named, ...here(gold).map((p) => [p, "true"])];
    return picture(run, image, [...named.map(([p, kind, k]) => shape(p.at, kind, k)), ...here(gold).flatMap((p) => [shape(p.at, "under"), shape(p.at, "true")])],
      all.filter(([p]) => p.label).map(([p, kind, k]) => label(p, kind, k, image)));
  }));
}

// Whether a place counts: the verifier's word on it, else the verdict on the whole answer.
const verdictAt = (e, place) => (place.hit !== null ? (place.hit ? "right" : "wrong") : verdictOf([e.score, { true: 1, false: 0 }[e.correct] ?? null]));
const MANY = 12;  // labels beyond this are shown for the answer under the pointer only

function shape(numbers, kind, episode) {
  const data = episode === undefined ? {} : { "data-episode": episode }, [x, y, x2, y2] = numbers;
  return svg("path", { class: "place " + (numbers.length === 2 ? "point " : "") + kind, ...data, d: numbers.length === 2 ? "M" + x + " " + y + "h0" : "M" + x + " " + y + "H" + x2 + "V" + y2 + "H" + x + "Z" });
}

// A label is text over the picture, of one size whatever the picture's: expected ones inside the top of their box, named ones inside its bottom.
function label(place, kind, episode, image) {
  const el = h("span", { class: "label " + kind.replace("said", "named"), data: episode === undefined ? {} : { episode } }, place.label), [x, y, x2 = x, y2 = y] = place.at;
  const share = (v, full) => Math.min(100, Math.max(0, (v / full) * 100)), left = share(x, image.width);
  if (left > 60) el.style.right = 100 - share(x2, image.width) + "%";
  else el.style.left = left + "%";
  el.style.top = share(kind === "true" ? y : y2, image.height) + "%";
  return el;
}

function placesKey(rec) {
  if (!rec.places) return null;
  const kinds = new Set(rec.episodes.flatMap((e, k) => (rec.places.said[k] || []).map((p) => verdictAt(e, p))));
  const words = [["true", rec.places.true.length && "expected"], ["right", "right"], ["wrong", "wrong"], ["graded", kinds.has("graded") && "graded"]];
  return h("p", { class: "places" }, words.filter(([, word]) => word).map(([kind, word]) => h("span", null, h("i", { class: kind }), word)));
}

function question(prompt) {
  const spoken = prompt.map((m) => [m.role, parts(m).filter((p) => p.type === "text").map((p) => p.text).join(" ").trim()]).filter(([, t]) => t);
  return h("p", { class: "question" }, spoken.map(([role, text], i) => [i ? h("br") : null, spoken.length > 1 ? h("b", null, role, " ") : null, text]));
}
const parts = (m) => (typeof m.content === "string" ? [{ type: "text", text: m.content }] : Array.isArray(m.content) ? m.content.filter((p) => p && typeof p === "object") : []);

function gold(rec) {
  if (rec.answer === null || rec.answer === undefined) return null;
  return h("p", { class: "gold" }, h("span", null, "expected"), " ", (typeof rec.answer === "string" ? rec.answer : JSON.stringify(rec.answer)).slice(0, 300));
}

function answer(g, rec, e, k, off, group) {
  const verdict = verdictOf(g.episodes[k] || [null, null]);
  const reward = Object.entries(e.parts || {}).filter(([, v]) => known(v));
  const why = e.error || (e.score === null ? e.reason : "");
  const lit = (on) => { group.classList.toggle("focus", on); group.querySelectorAll(".place.said, .label.named").forEach((p) => p.classList.toggle("lit", on && p.dataset.episode === String(k))); };
  return h("div", { class: "answer " + verdict + (off ? " off" : ""), data: { episode: k }, onpointerenter: () => lit(true), onpointerleave: () => lit(false) },
    h("div", { class: "top" }, h("b", { class: "score" }, known(e.score) ? e.score.toFixed(2) : "unscored"), e.role && e.role !== "sample" ? h("span", { class: "role" }, e.role) : null,
      h("span", { class: "stop" + (isOdd(e.stop) ? " odd" : "") }, e.stop), h("span", { class: "count" }, e.length)),
    film(g.run, e), turns(g, e), branches(e), why ? h("p", { class: "reason" }, why) : null,
    reward.length ? h("ul", { class: "parts" }, reward.map(([name, v]) => {
      const bar = h("b");
      bar.style.width = Math.min(1, Math.max(0, v)) * 100 + "%";
      return h("li", null, h("span", { title: name }, name), h("i", null, bar), h("em", null, v.toFixed(2)));
    })) : null);
}

// What the environment showed and what was said, turn by turn.
function turns(g, e) {
  const tokens = (e.segments || []).flatMap((s) => (s.tokens || []).map((t, i) => ({
    t, mask: s.mask[i], logp: s.logp[i], adv: (s.adv || [])[i], turn: (s.turn || [])[i] || 0, more: i === s.tokens.length - 1 ? s.units - s.tokens.length : 0,
    streams: Object.fromEntries(Object.entries(s.streams || {}).map(([n, v]) => [n, v[i]])),
  })));
  const told = e.turns || [], kind = browser.tint === "a" ? "adv" : browser.tint, reach = Math.max(0, ...tokens.map((t) => Math.abs((kind === "adv" ? t.adv : t.streams[kind]) || 0)));
  const count = Math.max(1, told.length), placed = tokens.some((t) => t.turn > 0);
  const out = [];
  for (let k = 0; k < count; k++) {
    const turn = told[k] || {}, seen = (turn.images || []).map((i) => picture(g.run, i)), words = (turn.messages || []).flatMap(parts).filter((p) => p.type === "text" && p.text).map((p) => p.text).join(" ");
    if (k && (seen.length || words)) out.push(h("div", { class: "env" }, words ? h("p", null, words) : null, seen.length ? h("div", { class: "seen" }, seen) : null));
    const own = placed ? tokens.filter((t) => t.turn === k) : k ? [] : tokens;
    if (turn.drawn) out.push(h("div", { class: "seen" }, picture(g.run, turn.drawn)));
    const text = own.length ? own.map((t) => token(t, reach)) : tokens.length ? null : turn.text || (k ? "" : e.text) || (turn.drawn || e.film ? "" : h("em", null, "(nothing)"));
    if (text) out.push(h("div", { class: "text" }, text, known(turn.reward) && turn.reward ? h("em", { class: "rest" }, " reward " + number(turn.reward)) : null));
  }
  return out;
}

// What was said beside the conversation: each branch with what it was shown.
function branches(e) {
  return Object.entries(e.branches || {}).flatMap(([name, told]) => told.map((t) => {
    const words = (t.messages || []).flatMap(parts).filter((p) => p.type === "text" && p.text).map((p) => p.text).join(" ");
    return [h("div", { class: "env" }, h("p", null, h("b", null, name, " "), words)), h("div", { class: "text" }, t.text || h("em", null, "(nothing)"))];
  }));
}

// Tokens by class: p0 (unlikely) to p9 (certain), a0 (low) to a8 (high), m where the policy did not choose.
function token(t, reach) {
  const text = t.t.replace(/\n/g, "↵\n"), kind = browser.tint, more = t.more > 0 ? h("em", { class: "rest" }, " … " + t.more + " more") : null;
  const p = known(t.logp) ? Math.exp(Math.min(0, t.logp)) : null;
  const tip = [p !== null && t.mask ? "p " + p.toPrecision(3) : "", known(t.adv) && t.mask ? "advantage " + t.adv.toPrecision(3) : "", ...Object.entries(t.streams).map(([n, v]) => (known(v) ? n + " " + v.toPrecision(3) : "")), t.mask ? "" : "not chosen by the policy"].filter(Boolean).join(", ");
  const level = (v) => "a" + (reach ? Math.round((v / reach) * 4) + 4 : 4);
  const colour = !t.mask ? (kind === "m" ? "m given" : "m") : kind === "p" ? (p === null ? "" : "p" + Math.min(9, Math.floor(p * 10))) : kind === "m" ? "trains" + (t.adv === 0 ? " idle" : "")
    : kind === "a" ? (known(t.adv) ? level(t.adv) : "") : kind === "n" ? "" : known(t.streams[kind]) ? level(t.streams[kind]) : "";
  return [h("i", { class: colour, title: tip }, text), more];
}
