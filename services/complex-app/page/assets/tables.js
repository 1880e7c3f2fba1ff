// The tables of the records and the dead letters.
import { nameOf, say, seconds, states } from "./model.js";

const $ = (id) => document.getElementById(id);
const page = 100;
let confirmed; // what to do after a yes

export function setUpTables(model) {
  let limit = page;
  const show = () => {
    showRecords(model, limit);
    showDead(model);
  };
  for (const state in states) if (state !== "waiting") $("status").append(new Option(state));
  $("filter").addEventListener("input", show);
  $("status").addEventListener("change", show);
  $("more").addEventListener("click", () => { limit += page; show(); });
  const all = () => `all dead letters (${model.status?.dead ?? "their number is not known"})`;
  $("redrive-all").addEventListener("click", () => ask("redrive", "", `Send ${all()} back to the queue?`));
  $("discard-all").addEventListener("click", () => ask("discard", "", `Discard ${all()}? They cannot be brought back.`));
  $("yes").addEventListener("click", () => confirmed());
  return show;
}

function showRecords(model, limit) {
  const text = $("filter").value.toLowerCase(), wanted = $("status").value;
  const found = [...model.records.values()].reverse().filter((record) =>
    (!wanted || model.state(record) === wanted) &&
    (!text || [record.name, record.content, record.job, record.id].some((field) => field.toLowerCase().includes(text))));
  found.sort((a, b) => b.storedAt - a.storedAt);
  fill($("rows"), found.slice(0, limit), (record) => record.id, (record) => {
    const last = record.runs?.at(-1), state = model.state(record), why = ["retrying", "failed"].includes(state) && record.error;
    return [
      record.name, record.content, why ? `${state}: ${why}` : state, record.attempts,
      record.sentAt ? new Date(record.sentAt).toLocaleTimeString([], { hour12: false }) : "",
      record.sentAt ? seconds(Math.max(record.storedAt - record.sentAt, 0)) : "",
      record.finishedAt ? seconds(Math.max(record.finishedAt - (last?.claimedAt ?? record.storedAt), 0)) : "",
      record.job,
    ];
  });
  const stored = model.status?.records, known = model.records.size;
  say($("found"), `${found.length} of ${known}` + (stored > known ? `, the last of ${stored.toLocaleString("en")} to change` : ""));
  $("more").hidden = found.length <= limit;
}

function showDead(model) {
  const all = model.status?.dead;
  $("no-dead").hidden = all !== 0 || model.dead.length > 0;
  $("dead-found").textContent = all > model.dead.length && model.dead.length > 0 ? `${model.dead.length} of ${all.toLocaleString("en")}. The next look shows others.` : "";
  $("some-dead").hidden = model.dead.length === 0 && $("redriven").textContent === "";
  fill($("dead-rows"), model.dead, (letter) => letter.key, (letter) => [
    letter.body, letter.reason, letter.attempts || "", letter.job, letter.deadAt ? new Date(letter.deadAt).toLocaleString([], { hour12: false }) : "",
  ], (letter, row) => {
    const cell = row.insertCell();
    if (!letter.id) return; // one without an id can only go with all the others
    for (const [action, question] of [
      ["redrive", `Send the dead letter “${nameOf(letter)}” back to the queue?`],
      ["discard", `Discard the dead letter “${nameOf(letter)}”? It cannot be brought back.`],
    ]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = actions[action].label;
      button.addEventListener("click", () => ask(action, letter.id, question));
      cell.append(button);
    }
  });
}

// fill makes one row for each item, and leaves those alone that are there and say
// the same: a selected text stays selected.
function fill(body, items, key, cells, finish) {
  const keys = new Set(items.map(key)), before = new Map();
  for (const row of [...body.rows]) { // first, or those below it would all move
    if (keys.has(row.dataset.key)) before.set(row.dataset.key, row);
    else row.remove();
  }
  items.forEach((item, i) => {
    const texts = cells(item).map(String);
    let row = before.get(key(item));
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = key(item);
      for (const _ of texts) row.insertCell();
      finish?.(item, row);
    }
    texts.forEach((text, j) => say(row.cells[j], text));
    if (body.rows[i] !== row) body.insertBefore(row, body.rows[i] ?? null);
  });
}

const actions = {
  redrive: { label: "Send back", method: "POST", path: "dead-letters/redrive", done: (answer) => `${answer.redriven} sent back.` },
  discard: { label: "Discard", method: "DELETE", path: "dead-letters", done: (answer) => `${answer.discarded} discarded.` },
};

// ask does an action with one dead letter, or with all, once the user has agreed.
function ask(action, id, question) {
  const { label, method, path, done } = actions[action];
  $("question").textContent = question;
  $("yes").textContent = label;
  confirmed = async () => {
    try {
      const response = await fetch(path + (id && `?id=${encodeURIComponent(id)}`), { method });
      const answer = await response.json();
      $("redriven").textContent = response.ok ? done(answer) : answer.detail;
    } catch {
      $("redriven").textContent = "complex-app did not answer.";
    }
  };
  $("ask").showModal();
}
