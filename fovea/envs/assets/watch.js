"use strict";
// Reads keys and a gamepad twenty times a second, tells them to the run, and draws what it answers. Text from the run is set as text.
(() => {
  const TICK = 50, SLOWLY = 0.35, DEAD = 0.15;
  const by = (id) => document.getElementById(id), visitor = crypto.getRandomValues(new Uint32Array(2)).join("-");
  const down = new Set(), seats = new Map(), has = {};
  let seat = -1, kept = false, slow = true, mark = null, buttons = [];

  const h = (tag, attrs, ...children) => {
    const el = document.createElement(tag);
    for (const [name, value] of Object.entries(attrs || {})) name.startsWith("on") ? el.addEventListener(name.slice(2), value) : el.setAttribute(name, value);
    el.append(...children);
    return el;
  };
  const NAMES = { ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓" };
  const named = (code) => NAMES[code] || code.replace("Key", "");
  const ordered = () => [...seats.keys()].sort((a, b) => a - b), place = (s) => ordered().indexOf(s) + 1;
  const axes = () => (seats.get(seat) || { axes: [] }).axes;

  // What a gamepad says of a dimension: "a0" an axis, "b7-b6" one button less another, a leading "-" or "!" the other way round.
  function padded(pad, words) {
    const plain = words.replace(/^!?-?/, ""), sign = words.startsWith("!-") ? 1 : /^[-!]/.test(words) ? -1 : 1;
    if (plain.startsWith("b")) {
      const [more, less] = plain.split("-").map((b) => (pad.buttons[+b.slice(1)] || { value: 0 }).value);
      return sign * (more - less);
    }
    const x = pad.axes[+plain.slice(1)] || 0;
    return sign * (Math.abs(x) < DEAD ? 0 : x);
  }

  // The action that keys and gamepad ask for; null with hands off.
  function action() {
    const pad = [...(navigator.getGamepads ? navigator.getGamepads() : [])].find((p) => p && p.connected), used = axes();
    const out = new Array(Math.max(0, ...used.map((a) => +a.dim + 1))).fill(0);
    let moved = kept;
    for (const a of used) {
      const keys = (down.has(a.plus) ? 1 : 0) - (down.has(a.minus) ? 1 : 0), stick = pad ? padded(pad, a.pad) : 0;
      moved = moved || down.has(a.plus) || down.has(a.minus) || stick !== 0;
      out[+a.dim] = Math.max(-1, Math.min(1, keys + stick)) * (down.has("ShiftLeft") || down.has("ShiftRight") ? SLOWLY : 1);
    }
    if (pad) {
      const now = pad.buttons.map((b) => b.pressed), fresh = (i) => now[i] && !buttons[i];
      if (fresh(9)) mark = true;
      if (fresh(8)) mark = false;
      buttons = now;
      by("pad").textContent = "Gamepad: " + pad.id;
    }
    return moved ? out : null;
  }

  function choose(chosen) { seat = chosen; kept = false; by("stage").replaceChildren(); delete has[chosen]; drawKeys(); }

  function drawKeys() {
    by("keys").replaceChildren(...axes().map((a) => h("tr", null, h("td", null, h("kbd", { "data-code": a.plus }, named(a.plus)), " ", h("kbd", { "data-code": a.minus }, named(a.minus))), h("td", null, a.name, ", and back"))));
    light();
  }
  const light = () => document.querySelectorAll("kbd[data-code]").forEach((k) => k.classList.toggle("down", down.has(k.dataset.code) || (k.dataset.code === "Space" && kept)));

  function draw(told) {
    const known = new Set(told.seats.map((s) => s.seat));
    for (const gone of [...seats.keys()].filter((s) => !known.has(s))) seats.delete(gone);
    for (const s of told.seats) {
      const before = seats.get(s.seat);
      seats.set(s.seat, { ...s, frames: s.frames.length ? s.frames : before ? before.frames : [] });
      has[s.seat] = s.count;
    }
    if (!seats.has(seat) && seats.size) choose(Math.min(...seats.keys()));
    const mine = seats.get(seat);
    if (mine) {
      if (by("keys").childElementCount !== mine.axes.length) drawKeys();
      const stage = by("stage");
      if (stage.childElementCount !== mine.frames.length) stage.replaceChildren(...mine.frames.map(([name]) => h("figure", null, h("img", { alt: name || "camera" }), h("figcaption", null, name))));
      mine.frames.forEach(([, uri], i) => { stage.children[i].firstChild.src = uri; });
      by("who").textContent = mine.acts ? "a person acts" : "the policy acts";
      document.body.className = mine.acts ? "mine" : "policy";
      const where = "copy " + place(seat) + ", episode " + mine.episode + ", step " + mine.steps + ", " + mine.taken + " taken over";
      by("note").textContent = (mine.frames.length ? "" : "it draws no pictures · ") + (told.other ? "somebody else has their hands on · " : "") + (mine.idle > 1 ? "the run is learning · " : "") + (slow ? told.hz + " steps a second · " : "full speed · ") + where;
    }
    const list = by("seats");
    if ([...list.children].map((b) => b.dataset.seat).join() !== ordered().join()) list.replaceChildren(...ordered().map((s) => h("button", { "data-seat": s, onclick: () => choose(s) }, h("img", { alt: "" }), h("span", null, ""))));
    [...list.children].forEach((b) => {
      const s = seats.get(+b.dataset.seat);
      if (!s) return;
      b.setAttribute("aria-pressed", String(s.seat === seat));
      if (s.frames.length) b.firstChild.src = s.frames[0][1];
      b.lastChild.textContent = "copy " + place(s.seat) + (s.acts ? ", taken over" : "");
    });
  }

  async function tick() {
    const sent = mark;
    mark = null;
    try {
      const body = JSON.stringify({ visitor, seat, action: document.hasFocus() ? action() : null, mark: sent, slow, has });
      const answer = await fetch("/state", { method: "POST", body, credentials: "same-origin" });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
      draw(await answer.json());
    } catch (e) {
      mark = null;  // what was said of an episode says nothing of the one that runs when the answer comes back
      document.body.className = "";
      by("who").textContent = "no answer from the run: " + e.message;
    }
    setTimeout(tick, TICK);
  }

  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const ours = ["Space", "Enter", "Backspace", "KeyP", "ShiftLeft", "ShiftRight"].includes(e.code) || /^Digit[1-9]$/.test(e.code) || axes().some((a) => a.plus === e.code || a.minus === e.code);
    if (!ours) return;
    e.preventDefault();
    if (e.repeat) return;
    down.add(e.code);
    if (e.code === "Space") kept = !kept;
    if (e.code === "Enter") mark = true;
    if (e.code === "Backspace") mark = false;
    if (e.code === "KeyP") slow = !slow;
    if (e.code.startsWith("Digit") && +e.code.slice(5) <= seats.size) choose(ordered()[+e.code.slice(5) - 1]);
    light();
  });
  addEventListener("keyup", (e) => { down.delete(e.code); light(); });
  addEventListener("blur", () => { down.clear(); kept = false; light(); });
  tick();
})();
