// Held-out tasks that were answered at several evaluations: how the answer to one question changed.

const spans = { run: 0, from: null, to: null };
const CARDS = 24;

function heldoutSection() {
  const el = h("section", { id: "heldout" }), cards = h("div", { class: "grid journey" }), tools = h("div", { class: "tools" });
  let shown = CARDS;
  el.append(h("h2", null, "The same question over training"), h("p", { class: "lede" }, "Held-out tasks, chosen once before training and never trained on. Each dot is one evaluation; choose two to see what changed."), tools, cards);

  function update() {
    const run = RUNS[spans.run], history = new Map();
    for (const g of run.groups) if (g.split !== "train" && g.episodes.length) {
      if (!history.has(g.task)) history.set(g.task, new Map());
      history.get(g.task).set(g.step, g);
    }
    const tasks = [...history.entries()].filter(([, m]) => m.size > 1), steps = [...new Set(tasks.flatMap(([, m]) => [...m.keys()]))].sort((a, b) => a - b);
    el.hidden = !several && tasks.length === 0;
    if (!steps.includes(spans.from)) spans.from = steps[0];
    if (!steps.includes(spans.to) || spans.latest) { spans.to = steps[steps.length - 1]; spans.latest = true; }
    const options = steps.map((s) => [s, "step " + whole(s)]);
    show(tools,
      several ? select("run", RUNS.map((r) => [r.id, r.label]), spans.run, (v) => { spans.run = +v; spans.latest = true; update(); }) : null,
      h("label", null, "from ", select("from", options, spans.from, (v) => { spans.from = +v; update(); })),
      h("label", null, "to ", select("to", options, spans.to, (v) => { spans.to = +v; spans.latest = +v === steps[steps.length - 1]; update(); })));
    const made = tasks.slice(0, shown).map(([, m]) => journey(m, update));
    show(cards, made.length ? made : h("p", { class: "empty" }, "No held-out task was logged twice yet."));
    if (tasks.length > shown) cards.append(h("button", { class: "more", onclick: () => { shown += CARDS; update(); } }, "show " + Math.min(CARDS, tasks.length - shown) + " more of " + tasks.length));
  }
  return { el, update };
}

function journey(history, update) {
  const steps = [...history.keys()].sort((a, b) => a - b), pick = (wanted, other) => history.get(steps.includes(wanted) ? wanted : other);
  const a = pick(spans.from, steps[0]), b = pick(spans.to, steps[steps.length - 1]);
  const dots = h("p", { class: "dots" }, steps.map((s) => h("button", { class: verdictOf(history.get(s).episodes[0]) + (s === a.step || s === b.step ? " on" : ""), title: "step " + s, "aria-label": "compare with step " + s,
    onclick: () => { spans.to = s; spans.latest = s === steps[steps.length - 1]; update(); } })));
  const el = h("article", { class: "card" }, h("div", { class: "body" }, h("p", { class: "tag" }, b.source), dots));
  whenSeen(el, async () => {
    try {
      const [first, last] = await Promise.all([record(a), record(b)]);
      if (!first || !last) throw new Error("not in this file");
      const [left, right] = difference(first.episodes[0].text || "", last.episodes[0].text || "");
      const at = (rec) => (rec.places ? rec.places.said[0] : []), places = last.places && { true: last.places.true, said: [at(first), at(last)] };
      const both = { ...last, places, episodes: [first.episodes[0], last.episodes[0]] };
      show(el, last.images.length ? pictures(b.run, both, [0, 1], ["was", "now"]) : null, h("div", { class: "body" }, h("p", { class: "tag" }, b.source), question(last.prompt), gold(last),
        said(a, left, "gone", film(a.run, first.episodes[0])), a === b ? null : said(b, right, "new", film(b.run, last.episodes[0])), dots));
    } catch (e) {
      show(el, h("div", { class: "body" }, h("p", { class: "tag" }, b.source), h("p", { class: "problem" }, b.task + " cannot be shown: " + e.message), dots));
    }
  });
  return el;
}

const said = (g, words, kind, shown) => h("div", { class: "said " + verdictOf(g.episodes[0]) }, h("b", null, "step " + whole(g.step)), shown, shown && !words.length ? null :
  h("p", null, words.length ? words.map(([text, both]) => (both ? tagged(text) : h(kind === "new" ? "ins" : "del", null, tagged(text)))) : h("em", null, "(nothing)")));
