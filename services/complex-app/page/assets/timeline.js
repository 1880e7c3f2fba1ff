// The timeline: a row for each message, and the queue's depth on the same axis.
import { CanvasRenderer, CustomChart, DataZoomComponent, GridComponent, LineChart, init, use } from "./echarts.js";
import { seconds, states } from "./model.js";

use([CanvasRenderer, CustomChart, DataZoomComponent, GridComponent, LineChart]);

// The phases of a message: how high their bars are, of the row, and how a sentence says
// them. The colour of each is in style.css.
const phases = {
  waiting: { height: 0.3, words: (took, { to }) => to ? `waited ${took}` : `waiting for ${took}` },
  starting: { height: 0.6, words: (took) => `its Job took ${took} to start` },
  working: { height: 0.85, words: (took) => `working for ${took}` },
  retrying: { height: 0.3, words: (took) => `waiting for another attempt for ${took}` },
  done: { height: 0.85, words: (took) => `done after ${took} of work` },
  failed: { height: 0.85, words: (took, { run }) => `failed after at most ${took}${run ? ` in ${run.job}` : ""}`, hatched: true },
};
const minSpan = 30_000, maxLive = 15 * 60_000; // of the live section
const shortest = 1000, longest = 10 * 366 * 86_400_000; // section that can be chosen
const quiet = 60_000; // a pause that ends a burst
const depthHeight = 90, below = 76; // below it, the times and the slider

export class Timeline {
  #chart; #element; #detail; #buttons; #model;
  #live = true;
  #from = 0; #to = 0; // the section that is shown
  #rows = []; // the messages in it
  #chosen; // key of the message whose details are shown
  #range = [0, 100]; // percent of the rows
  #setting = false;

  constructor(element, detail, buttons, model) {
    this.#element = element;
    this.#detail = detail;
    this.#buttons = buttons;
    this.#model = model;
    this.#chart = init(element, null, { renderer: "canvas" });
    this.#chart.on("datazoom", () => this.#moved());
    this.#chart.on("mouseover", ({ seriesId, data }) => { if (seriesId === "bars") this.#choose(this.#rows[data.row]?.key); });
    this.#chart.on("click", ({ seriesId, data }) => { if (seriesId === "bars") this.#choose(this.#rows[data.row]?.key); });
    for (const button of buttons) button.addEventListener("click", () => this.#view(button.dataset.view));
    element.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => { this.#chart.resize(); this.draw(); }).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  draw() {
    const now = this.#model.now(), all = this.#model.messages();
    const [first, liveFrom] = extent(all, now);
    if (this.#live) [this.#from, this.#to] = [liveFrom, Math.max(now + (now - liveFrom) * 0.02, liveFrom + minSpan)];
    this.#rows = all.filter(({ bars }) => bars[0].from <= this.#to && (bars.at(-1).to ?? now) >= this.#from);
    this.#paint(now, first, this.#model.curves(all, now));
    this.#describe(now);
    for (const button of this.#buttons) {
      if (button.dataset.view === "live") button.setAttribute("aria-pressed", this.#live);
    }
  }

  #paint(now, first, { told, counted }) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const width = this.#element.clientWidth, narrow = width < 560;
    const rows = this.#rows.length, many = rows > 40;
    const lanes = Math.min(Math.max(rows * 22, 110), narrow ? 300 : 440);
    const total = `${6 + lanes + 14 + depthHeight + below}px`;
    if (this.#element.style.height !== total) {
      this.#element.style.height = total;
      this.#chart.resize();
    }
    if (!many) this.#range = [0, 100];
    const left = narrow ? 34 : 170, right = many ? 34 : 14;
    const data = [];
    this.#rows.forEach(({ bars, key }, row) => {
      bars.forEach(({ phase, from, to, run }, i) => {
        data.push({ value: [from, to ?? now, row], row, phase, attempt: run?.attempt, chosen: i === 0 && key === this.#chosen });
      });
    });
    const time = {
      type: "time", min: Math.min(first, this.#from), max: Math.max(now, this.#to),
      axisLine: { lineStyle: { color: colour("faint") } }, splitLine: { show: true, lineStyle: { color: colour("line") } },
      axisLabel: { color: colour("faint"), hideOverlap: true }, splitNumber: narrow ? 3 : 8,
    };
    const depth = (id, data, more) => ({
      id, type: "line", xAxisIndex: 1, yAxisIndex: 1, data, step: "end", symbol: "none", silent: true, connectNulls: false,
      lineStyle: { color: colour("depth"), width: 2 }, ...more,
    });
    const zoom = { xAxisIndex: [0, 1], filterMode: "none", startValue: this.#from, endValue: this.#to, minValueSpan: 1000 };
    const upright = { yAxisIndex: 0, filterMode: "none", start: this.#range[0], end: this.#range[1] };
    this.#setting = true;
    this.#chart.setOption({
      animation: false,
      textStyle: { fontFamily: "system-ui, sans-serif" },
      grid: [{ left, right, top: 6, height: lanes }, { left, right, top: 6 + lanes + 14, height: depthHeight }],
      xAxis: [
        { ...time, gridIndex: 0, axisLabel: { show: false }, axisTick: { show: false } },
        { ...time, gridIndex: 1 },
      ],
      yAxis: [{
        gridIndex: 0, type: "category", inverse: true, data: this.#rows.map((message) => narrow ? "" : label(message)),
        axisLine: { lineStyle: { color: colour("faint") } }, axisTick: { show: false },
        axisLabel: {
          color: colour("text"), width: left - 16, overflow: "truncate",
          interval: (row) => row % Math.ceil(rows * (this.#range[1] - this.#range[0]) / 100 * 16 / lanes) === 0,
        },
      }, {
        gridIndex: 1, type: "value", minInterval: 1, min: 0, max: ({ max }) => max < 4 ? 4 : null, splitNumber: 3,
        axisLabel: { color: colour("faint") }, splitLine: { lineStyle: { color: colour("line") } },
        name: narrow ? "" : "waiting", nameLocation: "middle", nameGap: 40, nameTextStyle: { color: colour("faint") },
      }],
      dataZoom: [
        { ...zoom, id: "inside", type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: "shift", preventDefaultMouseMove: false },
        {
          ...zoom, id: "slider", type: "slider", bottom: 4, height: 26, left, right, brushSelect: false,
          borderColor: colour("line"), fillerColor: "rgba(120,140,170,0.25)", textStyle: { color: colour("faint") }, showDetail: false,
          showDataShadow: false,
        },
        {
          ...upright, id: "upright", type: "slider", show: many, right: 4, top: 6, height: lanes, width: 20, brushSelect: false, showDetail: false,
          showDataShadow: false, borderColor: colour("line"), fillerColor: "rgba(120,140,170,0.25)",
        },
      ],
      series: [
        { id: "bars", type: "custom", xAxisIndex: 0, yAxisIndex: 0, clip: true, data, encode: { x: [0, 1], y: 2 }, progressive: 0, renderItem: renderBar(data, colour) },
        depth("told", told, { areaStyle: { color: colour("depth"), opacity: 0.2 } }),
        depth("counted", counted, { lineStyle: { color: colour("depth"), width: 1, type: "dashed" } }),
      ],
    });
    this.#setting = false;
  }

  // #moved follows what a mouse or a finger has done.
  #moved() {
    if (this.#setting) return;
    const [inside, , upright] = this.#chart.getOption().dataZoom;
    this.#range = [upright.start, upright.end];
    if (Math.abs(inside.startValue - this.#from) + Math.abs(inside.endValue - this.#to) > 1) {
      this.#live = false;
      [this.#from, this.#to] = [inside.startValue, inside.endValue];
    }
    this.draw();
  }

  #view(what) {
    const span = this.#to - this.#from, now = this.#model.now();
    const shift = { back: -span / 4, forward: span / 4 }[what] ?? 0;
    const factor = { in: 0.6, out: 1 / 0.6 }[what] ?? 1;
    this.#live = what === "live";
    if (what === "all") {
      this.#from = extent(this.#model.messages(), now)[0];
      this.#to = now;
    } else if (what !== "live") {
      const middle = (this.#from + this.#to) / 2 + shift, next = Math.min(Math.max(span * factor, shortest), longest);
      this.#from = middle - next / 2;
      this.#to = middle + next / 2;
    }
    this.draw();
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const view = { ArrowLeft: "back", ArrowRight: "forward", "+": "in", "=": "in", "-": "out", l: "live", a: "all" }[event.key];
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (view) this.#view(view);
    else if (by && this.#rows.length > 0) {
      const row = this.#rows.findIndex(({ key }) => key === this.#chosen);
      this.#choose(this.#rows[Math.min(Math.max(row + by, 0), this.#rows.length - 1)].key);
    } else return;
    event.preventDefault();
  }

  #choose(key) {
    if (key === this.#chosen) return;
    this.#chosen = key;
    this.draw();
  }

  // #describe puts the chosen message, or all of them, into words.
  #describe(now) {
    const message = this.#rows.find(({ key }) => key === this.#chosen);
    const counts = Object.entries(states).map(([state, words]) => `${this.#rows.filter((message) => message.state === state).length} ${words}`);
    const text = message ? sentence(message, now)
      : this.#rows.length === 0 ? "Nothing here: send some events."
      : `${this.#rows.length} ${this.#rows.length === 1 ? "message" : "messages"}: ${counts.join(", ")}.`;
    if (this.#detail.textContent !== text) this.#detail.textContent = text;
  }
}

function renderBar(data, colour) {
  return ({ dataIndex, coordSys }, api) => {
    const { phase, attempt, chosen } = data[dataIndex];
    const [x0, y] = api.coord([api.value(0), api.value(2)]), [x1] = api.coord([api.value(1), api.value(2)]);
    const row = api.size([0, 1])[1], tall = row < 5 ? row : Math.max(Math.min(row, 30) * phases[phase].height, 2);
    const left = Math.max(x0, coordSys.x), right = Math.min(x1, coordSys.x + coordSys.width);
    const lit = chosen && { type: "rect", silent: true, shape: { x: coordSys.x, y: y - row / 2, width: coordSys.width, height: row }, style: { fill: colour("accent"), opacity: 0.25 } };
    if (right < coordSys.x || left > coordSys.x + coordSys.width) return lit || null;
    const shape = { x: left, y: y - tall / 2, width: Math.max(right - left, 1.5), height: tall };
    const children = [{
      type: "rect", shape,
      style: {
        fill: colour(phase),
        decal: phases[phase].hatched && row >= 5 ? hatch(colour("ground")) : undefined,
      },
    }];
    if (row >= 14 && shape.width > 54 && attempt > 1 && phase !== "starting" && phase !== "waiting") {
      children.push({ type: "text", silent: true, style: { text: `attempt ${attempt}`, x: left + 4, y, textVerticalAlign: "middle", fill: "#000", fontSize: 11, backgroundColor: colour(phase) } });
    }
    if (lit) children.unshift(lit);
    return { type: "group", children };
  };
}

function hatch(color) {
  return { color, dashArrayX: [1, 0], dashArrayY: [2, 4], rotation: -Math.PI / 4, symbol: "rect" };
}

function label({ name, job }) {
  const pod = job?.replace(/^processor-job-/, "");
  return pod ? `${name} · ${pod}` : name;
}

// extent returns the first time that is known, and that from which on the live
// section shows: the beginning of the last burst, or as much as can be read.
function extent(messages, now) {
  let from = now, first = now, chained = true;
  for (const { bars } of messages.toReversed()) { // the last that was sent comes first
    first = Math.min(first, bars[0].from);
    chained &&= from === now || ends(bars, now) > from - quiet;
    if (chained && bars[0].from > now - maxLive) from = Math.min(from, bars[0].from);
  }
  return [first, from - Math.max(now - from, minSpan) * 0.03];
}

const ends = (bars, now) => bars.at(-1).to ?? now;

function sentence({ name, job, attempts, bars, state, reason }, now) {
  const parts = bars.map((bar) => phases[bar.phase].words(seconds((bar.to ?? now) - bar.from), bar));
  return `${name}: ${parts.join(", ")}${attempts > 1 ? `; attempt ${attempts}` : ""}${job ? `; Job ${job}` : ""}${state !== "done" && reason ? `; reason: ${reason}` : ""}.`;
}
