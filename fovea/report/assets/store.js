// What the page knows: inside the file, or asked from `fovea view` when it is needed.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SERVED = DATA.served, GLOSSARY = DATA.glossary, RUN_COLOURS = ["c0", "c1", "c2", "c4", "c5", "c6", "good", "c7"];

async function ask(path, query) {
  const answer = await fetch(path + "?" + new URLSearchParams(query), { credentials: "same-origin" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ? body.error.message : answer.statusText);
  return body;
}

class Run {
  constructor(data, id) {
    Object.assign(this, data);
    this.id = id;
    this.colour = RUN_COLOURS[id % RUN_COLOURS.length];
    this.label = DATA.runs.filter((r) => r.name === this.name).length > 1 ? this.name + " (" + this.folder + ")" : this.name;
    this.revision = 0;
    this.files = new Map(Object.entries(data.index || {}));
    this.setColumns(data.metrics);
    this.gather();
  }

  setColumns({ axes, series }) {
    this.series = new Map(Object.entries(series).map(([name, [axis, y]]) => [name, { x: axes[axis].slice(), y }]));
  }

  addRows(rows) {
    for (const row of rows) for (const [name, y] of Object.entries(row)) {
      if (name === "step" || y === null) continue;
      if (!this.series.has(name)) this.series.set(name, { x: [], y: [] });
      const s = this.series.get(name), end = s.x.length - 1;
      if (end >= 0 && s.x[end] >= row.step) s.y[end] = y; else { s.x.push(row.step); s.y.push(y); }
    }
  }

  // Groups of all files, oldest first.
  gather() {
    this.groups = [];
    for (const [file, entries] of this.files) {
      const split = file.startsWith("step-") ? "train" : file.split("-")[0];
      for (const [line, task, source, step, episodes] of entries) {
        const scores = episodes.filter((e) => e[4] === "sample" && e[0] !== null).map((e) => e[0]);
        const mean = scores.length ? scores.reduce((a, b) => a + b, 0) / scores.length : null;
        this.groups.push({ key: this.id + "/" + file + "/" + line, run: this, file, line, task, source, step, split, episodes, mean });
      }
    }
    this.groups.sort((a, b) => a.step - b.step || (a.split < b.split ? 1 : a.split > b.split ? -1 : a.line - b.line));
  }

  get(name) { return this.series.get(name) || { x: [], y: [] }; }
  last(name) { const { y } = this.get(name); return y.length ? y[y.length - 1] : NaN; }
  at(name, step) { const { x, y } = this.get(name), i = x.indexOf(step); return i < 0 ? NaN : y[i]; }
  get step() { return Math.max(0, ...[...this.series.values()].map((s) => s.x[s.x.length - 1])); }
  // Names of a family that the glossary does not name itself: parts of the reward, sources of an accuracy.
  family(prefix) {
    return [...this.series.keys()].filter((n) => n.startsWith(prefix + "/") && !(n in GLOSSARY)).map((n) => n.slice(prefix.length + 1)).sort();
  }

  // Ask for what came since; true when something did.
  async refresh() {
    const news = await ask("/news", { run: this.id, total: this.total, last: this.last_step, since: this.revision });
    const grown = news.total !== this.total || news.last !== this.last_step, indexed = Object.keys(news.index).length > 0;
    if (news.columns) this.setColumns(news.columns);
    else if (news.rows) this.addRows(news.rows);
    for (const [file, entries] of Object.entries(news.index)) { this.files.set(file, entries); forget(this.id + "/" + file); }
    const troubled = String(news.problems) !== String(this.problems);
    [this.total, this.last_step, this.revision, this.problems] = [news.total, news.last, news.revision, news.problems];
    if (indexed) this.gather();
    if (news.compare) DATA.compare = news.compare;
    // the last step grows when its evaluation is logged
    const tail = JSON.stringify(news.rows ? news.rows[news.rows.length - 1] : null), amended = this.tail !== undefined && tail !== this.tail;
    this.tail = tail;
    return { numbers: grown || amended, index: indexed, problems: troubled };
  }
}

const RUNS = DATA.runs.map((data, id) => new Run(data, id));
const several = RUNS.length > 1;

// Records of groups: at most 300 are kept.
const records = new Map();
function forget(prefix) { for (const key of records.keys()) if (key.startsWith(prefix + "/")) records.delete(key); }
function record(group) {
  if (!SERVED) return Promise.resolve(DATA.records[group.key]);
  if (!records.has(group.key)) {
    const asked = ask("/record", { run: group.run.id, file: group.file, line: group.line });
    asked.catch(() => records.delete(group.key));
    records.set(group.key, asked);
    if (records.size > 300) records.delete(records.keys().next().value);
  }
  return records.get(group.key);
}
const filmURL = (run, name) => (SERVED ? "/film?" + new URLSearchParams({ run: run.id, name }) : DATA.images[name]);
const pictureURL = (run, name) => (SERVED ? "/picture?" + new URLSearchParams({ run: run.id, name }) : DATA.images[name]);

function explain(name) {
  if (name in GLOSSARY) return GLOSSARY[name];
  for (let stem = name; stem.includes("/");) {
    stem = stem.slice(0, stem.lastIndexOf("/"));
    const key = Object.keys(GLOSSARY).find((k) => k.startsWith(stem + "/<"));
    if (key) return GLOSSARY[key];
  }
  return "";
}
