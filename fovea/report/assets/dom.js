// Elements, words for numbers, differences of texts. Everything that came from data enters the page through `h`, as text.

const SVG = "http://www.w3.org/2000/svg";

function build(el, attrs, children) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(el.dataset, value);
    else el.setAttribute(name, value === true ? "" : value);
  }
  el.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false).map((c) => (c instanceof Node ? c : String(c))));
  return el;
}
const h = (tag, attrs, ...children) => build(document.createElement(tag), attrs, children);
const svg = (tag, attrs, ...children) => build(document.createElementNS(SVG, tag), attrs, children);
const show = (el, ...children) => el.replaceChildren(...children.flat(Infinity).filter(Boolean));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const known = (y) => typeof y === "number" && Number.isFinite(y);

function select(label, options, value, onchange) {
  const el = h("select", { "aria-label": label, onchange: () => onchange(el.value) },
    options.map(([v, text]) => h("option", { value: v, selected: String(v) === String(value) }, text)));
  return el;
}

function number(y, percent) {
  if (!known(y)) return "–";
  if (percent) return (y * 100).toFixed(1) + "%";
  const a = Math.abs(y);
  if (a === 0 || (a >= 1e-3 && a < 1e4)) return String(+y.toPrecision(4));
  return a < 1e-3 ? y.toExponential(1) : Math.round(y).toLocaleString("en");
}
const whole = (n) => Math.round(n).toLocaleString("en");
const big = (n) => (n >= 1e6 ? (n / 1e6).toFixed(1) + " M" : n >= 1e4 ? (n / 1e3).toFixed(1) + " k" : whole(n));
function clock(s) {
  if (!known(s)) return "–";
  if (s < 60) return Math.round(s) + "s";
  if (s < 3600) return Math.floor(s / 60) + "m " + String(Math.floor(s % 60)).padStart(2, "0") + "s";
  return Math.floor(s / 3600) + "h " + String(Math.floor((s % 3600) / 60)).padStart(2, "0") + "m";
}
const lastName = (place) => (typeof place === "string" ? place.split("/").pop() : String(place ?? ""));

// Wilson score interval of a share of n answers, 95 %.
function interval(p, n) {
  if (!known(p) || !known(n) || n <= 0 || p < 0 || p > 1) return null;
  const z = 1.959964, shrink = 1 + (z * z) / n, centre = (p + (z * z) / (2 * n)) / shrink;
  const half = (z / shrink) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

const TAG = /(<\/?[\w|]+>)/, WORD = /<\/?[\w|]+>|\s+|[^\s<>]+|[<>]/g;
// A text whose tags stand back behind what they hold.
const tagged = (text) => text.split(TAG).map((part, i) => (i % 2 ? h("span", { class: "markup" }, part) : part));

// Words of `a` and `b` with whether both have them, in order: longest common subsequence, for texts of sensible length.
function difference(a, b) {
  const A = a.match(WORD) || [], B = b.match(WORD) || [];
  if (A.length * B.length > 4e6) return [[[a, false]], [[b, false]]];
  const L = Array.from({ length: A.length + 1 }, () => new Uint16Array(B.length + 1));
  for (let i = A.length - 1; i >= 0; i--)
    for (let j = B.length - 1; j >= 0; j--) L[i][j] = A[i] === B[j] ? L[i + 1][j + 1] + 1 : Math.max(L[i + 1][j], L[i][j + 1]);
  const left = [], right = [];
  const put = (out, word, both) => {
    const last = out[out.length - 1];
    if (last && last[1] === both) last[0] += word; else out.push([word, both]);
  };
  let i = 0, j = 0;
  while (i < A.length || j < B.length) {
    if (i < A.length && j < B.length && A[i] === B[j]) { put(left, A[i++], true); put(right, B[j++], true); }
    else if (j >= B.length || (i < A.length && L[i + 1][j] >= L[i][j + 1])) put(left, A[i++], false);
    else put(right, B[j++], false);
  }
  return [left, right];
}

// Call `work` once, when `el` is about to be seen.
const waiting = new Map();
const watcher = new IntersectionObserver((seen) => {
  for (const s of seen) if (s.isIntersecting && waiting.has(s.target)) {
    const work = waiting.get(s.target);
    waiting.delete(s.target);
    watcher.unobserve(s.target);
    work();
  }
}, { rootMargin: "250px" });
function whenSeen(el, work) { waiting.set(el, work); watcher.observe(el); }
function allSeen() { for (const [el, work] of [...waiting]) { waiting.delete(el); work(); } }
