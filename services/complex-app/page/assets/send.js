// The form: one event, or a burst of them.
const $ = (id) => document.getElementById(id);
const atOnce = 4, inOrder = 50; // a browser has six connections to a host, and one is the updates'

export function setUpSending() {
  let refused = [];
  $("send").addEventListener("submit", (event) => {
    event.preventDefault();
    start([{ name: $("name").value, content: $("content").value }]);
  });
  $("send-burst").addEventListener("click", () => {
    if (!$("send").reportValidity()) return;
    const n = $("number").valueAsNumber;
    start(Array.from({ length: n }, (_, i) => ({ name: $("name").value + (i + 1), content: $("content").value && $("content").value + (i + 1) })));
  });
  $("send-again").addEventListener("click", () => start(refused));

  async function start(events) {
    const buttons = [$("send-one"), $("send-burst"), $("send-again")];
    for (const button of buttons) button.disabled = true;
    $("send-again").hidden = true;
    refused = [];
    const queue = [...events], reasons = new Map();
    let accepted = 0;
    const show = () => {
      const all = `${accepted} of ${events.length} accepted`;
      const why = [...reasons].map(([reason, n]) => `${n} refused: ${reason}`);
      $("sent").textContent = [all, ...why].join("; ");
    };
    show();
    await Promise.all(Array.from({ length: events.length > inOrder ? atOnce : 1 }, async () => {
      for (let event; (event = queue.shift());) {
        // one key for all tries: sent again, it is still one event
        event.key ??= newKey();
        const reason = await send(event);
        if (reason === "") accepted++;
        else {
          refused.push(event);
          reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
        }
        show();
      }
    }));
    for (const button of buttons) button.disabled = false;
    $("send-again").hidden = refused.length === 0;
  }
}

// send returns why the event was refused, or "".
async function send({ key, name, content }) {
  try {
    const response = await fetch("send", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      body: JSON.stringify({ name, content }),
    });
    return response.ok ? "" : (await response.json()).detail;
  } catch {
    return "complex-app did not answer";
  }
}

// newKey does not use randomUUID, which plain HTTP has on localhost only.
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
