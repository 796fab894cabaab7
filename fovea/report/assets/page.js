(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const charts = [...document.querySelectorAll(".chart")].map((el) => {
    const d = data[el.dataset.chart];
    const keys = [...el.querySelectorAll(".legend b")];
    const xs = d.series.flatMap((s) => s.x);
    return { el, ...d, keys, last: keys.map((k) => k.textContent), x0: Math.min(...xs), x1: Math.max(...xs),
      cursor: el.querySelector(".cursor"), at: el.querySelector(".at"), plot: el.querySelector(".plot") };
  });
  const text = (y, percent) => {
    if (y === null || y === undefined) return "–";
    if (percent) return (y * 100).toFixed(1) + "%";
    const a = Math.abs(y);
    if (a === 0 || (a >= 1e-3 && a < 1e4)) return String(+y.toPrecision(4));
    return a < 1e-3 ? y.toExponential(1) : Math.round(y).toLocaleString("en");
  };
  const nearest = (xs, x) => xs.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(xs[best] - x) ? i : best), 0);
  const show = (step) => {
    for (const c of charts) {
      if (step < c.x0 || step > c.x1) { hide(c); continue; }
      c.cursor.style.left = ((step - c.x0) / (c.x1 - c.x0 || 1)) * 100 + "%";
      c.el.classList.add("hot");
      c.at.textContent = "step " + step.toLocaleString("en");
      c.series.forEach((s, i) => { if (c.keys[i]) c.keys[i].textContent = text(s.y[nearest(s.x, step)], c.percent); });
    }
  };
  const hide = (c) => {
    c.el.classList.remove("hot");
    c.at.textContent = "step";
    c.keys.forEach((k, i) => { k.textContent = c.last[i]; });
  };
  for (const c of charts) {
    c.plot.addEventListener("pointermove", (e) => {
      const box = c.plot.getBoundingClientRect();
      const t = Math.min(1, Math.max(0, (e.clientX - box.left) / box.width));
      const xs = c.series[0].x, x = c.x0 + t * (c.x1 - c.x0);
      show(xs.length > 40 ? xs[nearest(xs, x)] : Math.round(x));
    });
    c.plot.addEventListener("pointerleave", () => charts.forEach(hide));
  }

  for (const b of document.querySelectorAll(".why")) {
    b.addEventListener("click", () => {
      const figure = b.closest("figure"), old = figure.querySelector(".note");
      if (old) { old.remove(); return; }
      const p = document.createElement("p");
      p.className = "note";
      p.textContent = b.dataset.why;
      figure.querySelector("figcaption").after(p);
    });
  }
  for (const b of document.querySelectorAll("[data-copy]")) {
    b.addEventListener("click", () => {
      const done = () => { b.textContent = "copied"; setTimeout(() => { b.textContent = "copy"; }, 1200); };
      if (navigator.clipboard) navigator.clipboard.writeText(b.dataset.copy).then(done, () => {});
    });
  }

  const samples = document.getElementById("samples");
  if (!samples) return;
  const slider = samples.querySelector("input[type=range]"), steps = JSON.parse(slider.dataset.steps);
  const panes = [...samples.querySelectorAll(".pane")], out = samples.querySelector("output");
  const go = (i) => {
    i = Math.min(steps.length - 1, Math.max(0, i));
    slider.value = i;
    out.textContent = "step " + steps[i].toLocaleString("en");
    panes.forEach((p, k) => p.classList.toggle("on", k === i));
  };
  slider.addEventListener("input", () => go(+slider.value));
  for (const b of samples.querySelectorAll("[data-go]")) b.addEventListener("click", () => go(+slider.value + +b.dataset.go));
  document.addEventListener("keydown", (e) => {
    if (e.altKey || e.ctrlKey || e.metaKey || e.target === slider) return;
    if (e.key === "ArrowLeft") go(+slider.value - 1);
    if (e.key === "ArrowRight") go(+slider.value + 1);
  });
  const tints = [...samples.querySelectorAll(".tints button")];
  for (const b of tints) {
    b.addEventListener("click", () => {
      samples.dataset.tint = b.dataset.tint;
      tints.forEach((t) => t.classList.toggle("on", t === b));
    });
  }
  for (const card of samples.querySelectorAll(".answer")) {
    const mark = (on) => {
      const group = card.closest(".group");
      group.classList.toggle("focus", on);
      group.querySelectorAll(".place.said").forEach((p) => p.classList.toggle("lit", on && p.dataset.episode === card.dataset.episode));
    };
    card.addEventListener("pointerenter", () => mark(true));
    card.addEventListener("pointerleave", () => mark(false));
  }
})();
