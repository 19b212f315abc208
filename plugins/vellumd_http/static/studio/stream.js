// The daemon's events, for ever: read as they come, taken up again where they broke off.
//
// Not an EventSource: that one does not see the heartbeats, so it would wait for ever on a
// connection that a sleeping phone or a pulled cable has left half open.

const SILENCE_MS = 40_000; // the daemon sends a comment every 15 s
const PAUSES_MS = [300, 1000, 2000, 4000];
const UNSEEN_MS = 60_000; // browsers open six connections to a host: a tab that nobody sees gives its own back

/**
 * Call `onEvent(type, data)` for each event, `onOpen()` each time the stream is open again,
 * `onLost()` when it breaks. While the page is not seen it rests, unless `needed()`.
 */
export function follow({ onEvent, onOpen, onLost, needed }) {
  let last = null;
  let tries = 0;
  let wake = () => {};
  let rest = () => {};
  const unseen = () => document.hidden && !needed();

  async function read() {
    const ending = new AbortController();
    rest = () => ending.abort();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => ending.abort(), SILENCE_MS);
    };
    alive();
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const answer = await fetch("/v1/events?preview=1", { headers, signal: ending.signal, cache: "no-store" });
      if (answer.status === 401) dispatchEvent(new Event("signed-out"));
      if (!answer.ok) return;
      tries = 0;
      onOpen();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let unread = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        alive();
        const blocks = (unread + value).split("\n\n");
        unread = blocks.pop();
        blocks.forEach(take);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  function take(block) {
    const fields = {};
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
    }
    if (fields.id) last = fields.id;
    if (fields.data) onEvent(fields.event, JSON.parse(fields.data));
  }

  async function run() {
    for (;;) {
      await read().catch(() => {});
      const resting = unseen();
      if (!resting) onLost();
      const pause = PAUSES_MS[Math.min(tries++, PAUSES_MS.length - 1)];
      await new Promise((resolve) => {
        wake = resolve;
        if (!resting) setTimeout(resolve, pause);
      });
    }
  }

  addEventListener("online", () => wake());
  document.addEventListener("visibilitychange", () => document.hidden || wake());
  setInterval(() => unseen() && rest(), UNSEEN_MS);
  run();
}
