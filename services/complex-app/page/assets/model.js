// What the page knows: records, dead letters, the queue's depth and the events that this
// tab has sent; and the bars that follow from them. Times are in milliseconds, by
// complex-app's clock.

const kept = 1000; // records and depths, as in complex-app
const claimPatience = 10_000; // from leaving the queue until there is a record

// The states of a message, as a sentence counts them. A new one needs a line here, one in
// #fromRecord, and where its bar has a look of its own a phase in timeline.js, and a
// colour in style.css and in the legend.
export const states = { waiting: "waiting", processing: "in work", retrying: "retrying", done: "done", failed: "failed" };

export class Model {
  records = new Map();
  dead = [];
  depth = []; // [{at, ready}], ready is null where it is not known
  status = null;
  connection = ""; // "live" or "lost"
  #sent = new Map(); // events of this tab that have no record yet
  #cursors = new Map(); // the last one of each complex-app that has answered
  #ahead = 0; // complex-app's clock less ours
  #died = new Map();

  now() { return Date.now() + this.#ahead; }

  // query asks for what has changed. There may be several complex-apps, and any of them
  // answers.
  query() { return new URLSearchParams([...this.#cursors.values()].map((cursor) => ["after", cursor])); }

  apply({ at, changes }) {
    const name = changes.cursor.split("-")[0]; // first: it fails when this is no answer of ours
    this.#ahead = at - Date.now();
    this.#cursors.delete(name); // the last to answer is last
    this.#cursors.set(name, changes.cursor);
    if (this.#cursors.size > 20) this.#cursors.delete(this.#cursors.keys().next().value); // gone long ago
    if (changes.whole) {
      this.records.clear();
      this.depth = [];
    }
    this.status = changes.status ?? null;
    for (const sample of changes.depth ?? []) {
      if (!(this.depth.at(-1)?.at >= sample.at)) this.depth.push(sample);
    }
    this.depth.splice(0, this.depth.length - 2 * kept);
    for (const record of changes.records ?? []) this.#add(record);
    if (changes.dead) this.#setDead(changes.dead);
    for (const record of this.records.values()) {
      if (this.records.size <= kept) break;
      if (record.status === "done" || record.status === "failed") this.records.delete(record.id);
    }
    this.#forgetSent();
  }

  #add(record) {
    if (this.records.get(record.id)?.changedAt > record.changedAt) return; // another complex-app was quicker
    this.records.delete(record.id); // the last to change is last
    this.records.set(record.id, record);
    this.#sent.delete(record.id);
  }

  #setDead(letters) {
    const before = this.#died, times = new Map();
    this.#died = new Map();
    this.dead = letters.map((letter) => {
      // neither an id nor a body is certain to be there only once
      const same = letter.id ? `id ${letter.id}` : `body ${letter.body}`, n = times.get(same) ?? 0;
      times.set(same, n + 1);
      this.#sent.delete(letter.id);
      return { ...letter, key: `${n} ${same}` };
    });
    for (const { id, deadAt } of letters) this.#died.set(id, deadAt || before.get(id) || this.now());
    for (const [id, at] of before) if (this.records.has(id) && !this.#died.has(id)) this.#died.set(id, at);
  }

  // addSent notes events that RabbitMQ has taken: until a Job stores its record, only
  // this tab knows the name of each.
  addSent(events) {
    for (const event of events) {
      if (!this.records.has(event.id) && !this.isDead(event.id)) this.#sent.set(event.id, event);
    }
  }

  // RabbitMQ hands out the oldest message first: when fewer wait than we have sent, the
  // first of ours wait no more. A record that does not come soon may be one that
  // complex-app no longer keeps.
  #forgetSent() {
    if (this.status?.ready == null || this.status.mongoDB !== "up") return;
    let claimed = this.#sent.size - this.status.ready;
    for (const event of this.#sent.values()) {
      event.claimedAt = claimed-- > 0 ? event.claimedAt ?? this.now() : undefined;
      if (this.now() - event.claimedAt > claimPatience) this.#sent.delete(event.id);
    }
  }

  isDead(id) { return this.dead.some((letter) => letter.id === id); }

  // state is the record's status, unless RabbitMQ has given its message up: then no Job
  // was left to say so.
  state(record) {
    return record.status === "processing" && this.isDead(record.id) ? "failed" : record.status;
  }

  // messages returns everything that has a row in the timeline, in the order of
  // sending: {key, name, job, attempts, state, bars: [{phase, from, to, run}]}. An
  // end that is missing is now.
  messages() {
    const dead = new Map(this.dead.map((letter) => [letter.id, letter]));
    const all = [];
    for (const record of this.records.values()) all.push(this.#fromRecord(record, dead.get(record.id)));
    for (const event of this.#sent.values()) {
      all.push({ key: event.id, name: event.name, state: "waiting", attempts: 0, bars: [{ phase: "waiting", from: event.sentAt }] });
    }
    for (const letter of this.dead) {
      const to = letter.deadAt || letter.sentAt;
      if (this.records.has(letter.id) || !to) continue; // without a time it has no place here
      all.push({
        key: `dead ${letter.key}`, name: nameOf(letter), job: letter.job, state: "failed", attempts: letter.attempts, reason: letter.reason,
        bars: [{ phase: "failed", from: Math.min(letter.sentAt || to, to), to: to + 1 }],
      });
    }
    all.push(...this.#strangers());
    return all.sort((a, b) => a.bars[0].from - b.bars[0].from || (a.key < b.key ? -1 : 1));
  }

  #fromRecord(record, letter) {
    const runs = record.runs ?? [{ job: record.job, attempt: record.attempts, startedAt: record.storedAt, claimedAt: record.storedAt }];
    const bars = [];
    const add = (phase, from, to, run) => { if (!(to <= from)) bars.push({ phase, from, to, run }); };
    let at = Math.min(record.sentAt || runs[0].startedAt, runs[0].claimedAt);
    runs.forEach((run, i) => {
      // the clocks of two machines may differ
      const claimed = Math.max(run.claimedAt, at), started = Math.min(Math.max(run.startedAt, at), claimed);
      if (i === 0) add("waiting", at, started, run);
      else add("failed", at, started, runs[i - 1]); // it ended at some time before
      add("starting", started, claimed, run);
      at = claimed;
    });
    const last = runs.at(-1), died = this.#died.get(record.id);
    if (record.status === "done") add("done", at, Math.max(record.finishedAt, at + 1), last);
    else if (record.status === "failed") add("failed", at, Math.max(record.changedAt, at + 1), last);
    else if (record.status === "retrying") {
      add("failed", at, Math.max(record.changedAt, at + 1), last);
      bars.push({ phase: "retrying", from: Math.max(record.changedAt, at + 1) });
    } else if (letter) add("failed", at, Math.max(died, at + 1), last);
    else if (died > at) { // sent back, and not claimed yet
      add("failed", at, died, last);
      bars.push({ phase: "waiting", from: died });
    } else bars.push({ phase: "working", from: at, run: last });
    return {
      key: record.id, name: record.name, job: record.job, attempts: record.attempts, bars,
      state: this.state(record), reason: letter?.reason ?? record.error,
    };
  }

  // #strangers are the messages that wait and of which we know no more than that:
  // others have sent them, or they came back. The queue's depth tells since when, as
  // the oldest message leaves first.
  #strangers() {
    if (this.status?.ready == null) return [];
    const since = [];
    let before = 0;
    for (const { at, ready } of this.depth) {
      if (ready == null) continue;
      if (ready < before) since.splice(0, before - ready);
      for (let n = before; n < ready; n++) since.push(at);
      before = ready;
    }
    const unknown = Math.max(0, Math.min(since.length, this.status.ready) - this.#sent.size);
    return since.slice(0, Math.min(unknown, kept)).map((from, i) => ({
      key: `stranger ${i}`, name: "(a message)", state: "waiting", attempts: 0, bars: [{ phase: "waiting", from }],
    }));
  }

  // curves returns the queue's depth as points [time, number]: as the bars tell it,
  // to the millisecond, and as complex-app has counted it, once a second.
  curves(messages, now) {
    const counted = this.depth.map(({ at, ready }) => [at, ready]);
    if (counted.length > 0 && counted.at(-1)[1] != null) counted.push([now, counted.at(-1)[1]]);
    const steps = [];
    for (const { bars } of messages) {
      for (const { phase, from, to } of bars) {
        if (phase !== "waiting" && phase !== "starting") continue;
        steps.push([from, 1]);
        if (to) steps.push([to, -1]);
      }
    }
    steps.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const told = [];
    let n = 0;
    for (const [at, by] of steps) {
      n += by;
      if (told.at(-1)?.[0] === at) told.pop();
      told.push([at, n]);
    }
    if (told.length > 0) told.push([now, n]);
    return { told, counted };
  }
}

export function nameOf(letter) {
  try {
    const { name } = JSON.parse(letter.body);
    if (name && typeof name === "string") return name;
  } catch { /* that may be why it is dead */ }
  return letter.body || letter.id || "(an empty message)";
}

// say changes a text only when it differs: a screen reader reads out each change.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function seconds(ms) {
  return ms < 59_950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}
