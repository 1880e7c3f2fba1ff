// The page: receives updates and hands them to its parts. Whatever comes from
// outside reaches the document as text only, never as HTML.
import { Model } from "./model.js";
import { Timeline } from "./timeline.js";
import { setUpSending } from "./send.js";
import { setUpTables } from "./tables.js";

// No part of the page makes HTML from strings. The chart empties its own element
// with innerHTML = "", and that is all that this policy lets through.
window.trustedTypes?.createPolicy("default", {
  createHTML: (text) => { if (text !== "") throw new TypeError("HTML from a string"); return text; },
});

const $ = (id) => document.getElementById(id);
const model = new Model();
const timeline = new Timeline($("timeline"), $("detail"), document.querySelectorAll("[data-view]"), model);
const showTables = setUpTables(model);
setUpSending();

function showStatus() {
  const { status, connected } = model;
  for (const id of ["ready", "inWork", "jobs", "records", "dead"]) {
    $(id).textContent = connected && status?.[id] != null ? status[id].toLocaleString("en") : "–";
  }
  const problems = [];
  for (const [id, text] of [
    ["rabbitMQ", "RabbitMQ is down: no event is accepted. Those that were accepted are on its disk."],
    ["mongoDB", "MongoDB is down: events are accepted and wait; no Job begins, no record can be shown."],
  ]) {
    const down = connected && status?.[id] === "down";
    $(id).textContent = connected && status ? status[id] : "–";
    $(id).parentElement.classList.toggle("down", down);
    if (down) problems.push(text);
  }
  if (model.lost) problems.push("complex-app does not answer. What you see is old; the page goes on when it is back.");
  showBanner(problems);
  $("connection").textContent = connected ? "live" : model.lost ? "not connected, trying again" : "connecting";
  $("connection").classList.toggle("live", connected);
}

function showBanner(problems) {
  const banner = $("banner");
  if (banner.dataset.shown === problems.join("\n")) return; // or a screen reader would say it again
  banner.dataset.shown = problems.join("\n");
  banner.hidden = problems.length === 0;
  banner.replaceChildren(...problems.map((text) => {
    const p = document.createElement("p");
    p.textContent = text;
    return p;
  }));
}

// The browser connects again by itself when the connection breaks, but not after
// an answer such as 503, nor when the other side has fallen silent.
const silence = 15_000, pause = 2_000;
let source, watchdog;

function connect() {
  source = new EventSource("events");
  source.onmessage = (event) => {
    alive();
    model.apply(JSON.parse(event.data));
    model.connected = true;
    model.lost = false;
    show();
  };
  source.onerror = () => {
    model.connected = false;
    model.lost = true;
    showStatus();
    if (source.readyState === EventSource.CLOSED) reconnect();
  };
  alive();
}

function reconnect() {
  source.close();
  clearTimeout(watchdog);
  watchdog = setTimeout(connect, pause);
}

function alive() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => { model.connected = false; model.lost = true; showStatus(); reconnect(); }, silence);
}

let drawn = false;
function show() {
  if (drawn) return; // once a frame is enough
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    showStatus();
    timeline.draw();
    showTables();
  });
}

setInterval(() => { if (!document.hidden) timeline.draw(); }, 1000); // the bars grow
document.addEventListener("visibilitychange", () => { if (!document.hidden) show(); });
connect();
