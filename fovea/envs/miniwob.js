// Runs once in each page of MiniWoB++: starts episodes by seed, tells their state, and knows what a good player does next (`ADVICE`).
// Points are in pixels of the picture that is shown: `scale` page pixels each, from `top` down.
window.fovea = (() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const said = (e) => e.textContent.trim();
  const query = () => document.getElementById("query").textContent;
  const quoted = (i) => [...query().matchAll(/"([^"]*)"/g)][i][1];
  const named = (selector, name) => all(selector).find((e) => said(e) === name);
  const submit = () => all("#subbtn, #submit, #area button.secondary-action")[0];
  const kept = {};
  if (window.shapes) {
    const { genGrid, generalDesc } = shapes;
    shapes.genGrid = function (n) {
      const grid = genGrid.call(this, n);
      return n === undefined ? (kept.grid = grid) : grid;
    };
    shapes.generalDesc = function (s) {
      return (kept.wanted = generalDesc.call(this, s));
    };
  }
  const matching = () => kept.grid.shapes.filter((s) => shapes.shapeMatchesText(s, kept.wanted));

  const fill = (selector, text) => {
    const field = all(selector)[0];
    if (field.value === text) return null;
    if (document.activeElement !== field) return field;
    return field.value ? { key: "Backspace" } : { type: text };
  };
  const choose = () => {
    const names = query().match(/Select (.*) and click Submit/)[1].split(", ");
    const wrong = all("#area label").find((e) => names.includes(said(e)) !== e.querySelector("input").checked);
    return wrong ? wrong.querySelector("input") : submit();
  };
  const link = () => {
    const links = all(".alink").filter((e) => said(e) === quoted(0));
    const seen = links.find((e) => e.offsetParent);
    return seen || all(`#area a[href="#${links[0].closest("[id^=tabs-]").id}"]`)[0];
  };
  const solved = () => {
    const [, a, sign, b] = document.getElementById("math-problem").textContent.match(/(\d) (.) (\d)/);
    return String({ "+": +a + +b, "-": a - b, x: a * b }[sign]);
  };
  const first = () => all("#subbtn")[0];
  const entered = () => fill("#tt", quoted(0)) || submit();

  const ADVICE = {
    "click-test": first,
    "click-test-2": first,
    "click-button": () => named("#area button", quoted(0)),
    "click-button-sequence": () => all(buttonsPushed.length ? "#subbtn2" : "#subbtn")[0],
    "click-dialog": () => all(".ui-dialog-titlebar button")[0],
    "click-dialog-2": () => named(".ui-dialog-buttonset button", quoted(0)) || all(".ui-dialog-titlebar button")[0],
    "click-tab": () => named("#area ul a", query().match(/Tab #\d/)[0]),
    "click-tab-2": link,
    "click-tab-2-easy": link,
    "click-link": link,
    "click-color": () => all(`#area [data-color="${core.getUtterance().split(" ")[3]}"]`)[0],
    "click-shape": () => matching()[0].svg_shape.node(),
    "count-shape": () => named("#count-buttons button", String(matching().length)),
    "click-shades": () => {
      const colour = query().match(/shades of (\w+)/)[1];
      return all("#area span").find((e) => (e.dataset.color === colour) !== (e.className === "selected")) || submit();
    },
    "click-checkboxes": choose,
    "click-checkboxes-large": choose,
    "click-checkboxes-transfer": choose,
    "click-option": choose,
    "click-widget": () => all(`#area [data-type="${quoted(0)}"]`)[0],
    "click-collapsible": () => (all(".ui-accordion-content").some((e) => e.offsetParent) ? submit() : all("#area h3")[0]),
    "focus-text": () => all("#tt")[0],
    "focus-text-2": () => all("#area input")[parseInt(query().match(/\d/)[0]) - 1],
    "grid-coordinate": () => all("circle").find((e) => e.id === expectedCoords),
    "enter-text": entered,
    "enter-text-dynamic": entered,
    "enter-password": () => fill("#password", quoted(0)) || fill("#verify", quoted(0)) || submit(),
    "login-user": () => fill("#username", quoted(0)) || fill("#password", quoted(1)) || submit(),
    "simple-arithmetic": () => fill("#math-answer", solved()) || submit(),
  };

  const owns = (e, hit) => hit === e || e.contains(hit);
  /** The point nearest to the middle of what is seen of an element, [x, y]; null where nothing is. */
  const point = (e, scale, top) => {
    let best = null;
    let nearest = Infinity;
    for (const r of e.getClientRects()) {
      const middle = [(r.left + r.right) / 2, (r.top + r.bottom) / 2];
      for (let y = Math.max(0, Math.floor((r.top - top) / scale)); top + y * scale < Math.min(r.bottom, 210); y++)
        for (let x = Math.max(0, Math.floor(r.left / scale)); x * scale < Math.min(r.right, 160); x++) {
          const [px, py] = [(x + 0.5) * scale, top + (y + 0.5) * scale];
          const far = Math.hypot(px - middle[0], py - middle[1]);
          if (far < nearest && owns(e, document.elementFromPoint(px, py))) [best, nearest] = [[x, y], far];
        }
    }
    return best;
  };
  const CLICKABLE = "#area button, #area input, #area a, #area .alink, #area span, #area h3, #area svg *, #area [data-color], .ui-dialog button";

  const settle = () => {
    if (window.jQuery) jQuery.fx.off = true;
    const style = document.createElement("style");
    style.textContent = "* { caret-color: transparent !important; animation: none !important; transition: none !important; }";
    document.head.append(style);
  };
  settle();

  return {
    /** Deal the episode of a seed; returns what is asked. A timer of MiniWoB's cannot be longer. */
    start: (seed) => {
      if (document.activeElement) document.activeElement.blur();
      core.EPISODE_MAX_TIME = 2 ** 31 - 1;
      Math.seedrandom(seed);
      core.startEpisodeReal();
      return core.getUtterance();
    },
    state: () => [WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL],
    /** What to do now: {click: [x, y]}, {type: text} or {key: name}; `others` are points of what else could be clicked. */
    advice: (task, scale, top) => {
      const next = ADVICE[task]();
      if (!(next instanceof Element)) return { ...next, others: [] };
      const others = all(CLICKABLE).filter((e) => !owns(e, next) && !owns(next, e));
      return { click: point(next, scale, top), others: others.map((e) => point(e, scale, top)).filter(Boolean) };
    },
    tasks: Object.keys(ADVICE),
  };
})();
