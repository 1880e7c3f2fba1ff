// The page: asks for what has changed and hands it to its parts. Whatever comes from
// outside reaches the document as text only, never as HTML.
import { Model, say } from "./model.js";
import { Timeline } from "./timeline.js";
import { setUpSending } from "./send.js";
import { setUpTables } from "./tables.js";

// No part of the page makes HTML from strings. The chart empties its own element
// with innerHTML = "", and that is all that this policy lets through.
window.trustedTypes?.createPolicy("default", {
  createHTML: (text) => { if (text !== "") throw new TypeError("HTML from a string"); return text; },
});

const $ = (id) => document.getElementById(id);
const interval = 1000, patience = 10_000;
const model = new Model();
const timeline = new Timeline($("timeline"), $("detail"), document.querySelectorAll("[data-view]"), model);
const showTables = setUpTables(model);
setUpSending(model, show);

// poll asks once a second while somebody can see the page, and once in any case.
let polling = false, timer;
async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  model.connection = await ask() ? "live" : "lost";
  polling = false;
  show();
  if (!document.hidden) timer = setTimeout(poll, interval);
}

async function ask() {
  try {
    const response = await fetch(`events?${model.query()}`, { signal: AbortSignal.timeout(patience) });
    if (response.ok) model.apply(JSON.parse(await response.text(), parseTime));
    return response.ok;
  } catch {
    return false; // complex-app is away, or something else answers in its place
  }
}

function parseTime(name, value) {
  return /^at$|At$/.test(name) && typeof value === "string" ? Date.parse(value) : value;
}

function showStatus() {
  const { connection } = model, status = connection === "live" ? model.status : null;
  for (const id of ["ready", "inWork", "jobs", "records", "dead"]) $(id).textContent = status?.[id]?.toLocaleString("en") ?? "–";
  const problems = [];
  for (const [id, text] of [
    ["rabbitMQ", "RabbitMQ is down: no event is accepted. Those that were accepted are on its disk."],
    ["mongoDB", "MongoDB is down: events are accepted and wait; no Job begins, no record can be shown."],
  ]) {
    const down = status?.[id] === "down";
    $(id).textContent = status?.[id] ?? "–";
    $(id).parentElement.classList.toggle("down", down);
    if (down) problems.push(text);
  }
  if (connection === "lost") problems.push("complex-app does not answer. What you see is old; the page goes on when it is back.");
  showBanner(problems);
  say($("connection"), { live: "live", lost: "not connected, trying again" }[connection] ?? "connecting");
  $("connection").classList.toggle("live", connection === "live");
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

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
