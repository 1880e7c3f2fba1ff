// The form: one event, or a burst of them, in one request.
const $ = (id) => document.getElementById(id);

export function setUpSending(model, show) {
  let last; // {key, events}
  const entered = (n) => ({ name: $("name").value + n, content: $("content").value && $("content").value + n });
  $("send-one").addEventListener("click", () => { $("number").required = false; });
  $("send").addEventListener("submit", (event) => {
    event.preventDefault();
    send({ key: newKey(), events: [entered("")] });
  });
  $("send-burst").addEventListener("click", () => {
    $("number").required = true; // for a burst only
    if (!$("send").reportValidity()) return;
    send({ key: newKey(), events: Array.from({ length: $("number").valueAsNumber }, (_, i) => entered(i + 1)) });
  });
  $("send-again").addEventListener("click", () => send(last)); // under the same key, so that nothing counts twice

  async function send(batch) {
    last = batch;
    const buttons = [$("send-one"), $("send-burst"), $("send-again")], sentAt = model.now();
    for (const button of buttons) button.disabled = true;
    $("sent").textContent = "sending";
    const { accepted, refused, errors } = await post(batch);
    const reasons = new Map();
    for (const { detail } of errors) reasons.set(detail, (reasons.get(detail) ?? 0) + 1);
    const parts = [...reasons].map(([reason, n]) => `${n} refused: ${reason}`);
    const more = refused - errors.length; // without a reason
    if (more > 0) parts.push(`${more} more refused`);
    $("sent").textContent = [`${accepted} of ${batch.events.length} accepted`, ...parts].join("; ");
    $("send-again").hidden = refused === 0;
    for (const button of buttons) button.disabled = false;
    const wrong = new Set(errors.map(({ line }) => line));
    // line n of a batch with the key k has the id k-n
    const sent = batch.events.map(({ name }, i) => ({ id: `${batch.key}-${i + 1}`, name, sentAt, line: i + 1 }));
    if (more <= 0) model.addSent(sent.filter(({ line }) => !wrong.has(line)));
    show();
  }
}

async function post({ key, events }) {
  const none = (detail) => ({ accepted: 0, refused: events.length, errors: events.map((_, i) => ({ line: i + 1, detail })) });
  try {
    const response = await fetch("send/batch", {
      method: "POST",
      headers: { "Content-Type": "application/x-ndjson", "Idempotency-Key": key },
      body: events.map((event) => JSON.stringify(event) + "\n").join(""),
    });
    const answer = await response.json();
    return "accepted" in answer ? { ...answer, errors: answer.errors ?? [] } : none(answer.detail);
  } catch {
    return none("complex-app did not answer");
  }
}

// newKey does not use randomUUID, which plain HTTP has on localhost only.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
