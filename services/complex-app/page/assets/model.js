// What the page knows: records, events without a record, dead letters and the
// queue's depth, and the bars that follow from them. Times are in milliseconds,
// by complex-app's clock.

const kept = 1000; // records that are done, as complex-app keeps them

export class Model {
  records = new Map();
  accepted = new Map();
  dead = [];
  depth = []; // [{at, ready}], ready is null where nobody looked
  status = null;
  connected = false;
  lost = false;
  version = 0; // of everything but the time
  #ahead = 0; // complex-app's clock less ours
  #died = new Map();

  now() { return Date.now() + this.#ahead; }

  apply(update) {
    this.#ahead = update.at - Date.now();
    if (update.whole) {
      this.records.clear();
      this.accepted.clear();
      this.depth = [];
    }
    if (update.status) this.status = update.status;
    for (const sample of update.depth ?? []) {
      if (!(this.depth.at(-1)?.at >= sample.at)) this.depth.push(sample);
    }
    for (const event of update.accepted ?? []) {
      if (!this.records.has(event.id)) this.accepted.set(event.id, event);
    }
    for (const id of update.gone ?? []) this.accepted.delete(id);
    for (const record of update.records ?? []) {
      this.records.delete(record.id); // the last to change is last
      this.records.set(record.id, record);
      this.accepted.delete(record.id);
    }
    if (update.dead) {
      this.dead = update.dead;
      for (const letter of this.dead) this.#died.set(letter.id, letter.deadAt || this.now());
    }
    for (const record of this.records.values()) {
      if (this.records.size <= kept) break;
      if (record.status === "done") this.records.delete(record.id);
    }
    if (this.depth.length > 4000) this.depth.splice(0, 1000);
    this.version++;
  }

  isDead(id) { return this.dead.some((letter) => letter.id === id); }

  // state is the record's status as the tables show it.
  state(record) {
    return record.status === "processing" && this.isDead(record.id) ? "dead" : record.status;
  }

  // messages returns everything that has a row in the timeline, in the order of
  // sending: {key, name, job, attempts, state, bars: [{phase, from, to, run}]}. An
  // end that is missing is now.
  messages() {
    const dead = new Map(this.dead.map((letter) => [letter.id, letter]));
    const all = [];
    for (const record of this.records.values()) all.push(this.#fromRecord(record, dead.get(record.id)));
    for (const event of this.accepted.values()) {
      all.push({ key: event.id, name: event.name, state: "waiting", attempts: 0, bars: [{ phase: "waiting", from: event.sentAt }] });
    }
    for (const letter of this.dead) {
      if (this.records.has(letter.id)) continue;
      const to = letter.deadAt || this.now();
      all.push({
        key: letter.id || letter.body, name: nameOf(letter), job: letter.job, state: "dead", attempts: letter.attempts, reason: letter.reason,
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
    else if (letter) add("failed", at, Math.max(died, at + 1), last);
    else if (died > at) { // sent back, and not claimed yet
      add("failed", at, died, last);
      bars.push({ phase: "waiting", from: died });
    } else bars.push({ phase: "working", from: at, run: last });
    return {
      key: record.id, name: record.name, job: record.job, attempts: record.attempts, bars,
      state: record.status === "done" ? "done" : letter ? "dead" : "processing", reason: letter?.reason,
    };
  }

  // #strangers are the messages that wait and of which we know no more than that:
  // another complex-app has accepted them, or they came back. The queue's depth
  // tells since when, as the oldest message leaves first.
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
    const unknown = Math.max(0, Math.min(since.length, this.status.ready) - this.accepted.size);
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
  return letter.body || letter.id;
}

export function seconds(ms) {
  return ms < 59_950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}
