// The list of jobs from every door, with what can be done to one that waits.

import * as api from "./api.js";
import { $, button, crisp, h, icon, toast } from "./dom.js";
import { atNextPaint } from "./paint.js";
import { ago, seconds, sourceName } from "./words.js";
import { keep, loadJobs, on, select, shown, state, taken } from "./store.js";

const rows = new Map(); // job id → the list's element and what it was drawn from
const list = h("ul", { id: "list" });
const head = h("p", { class: "muted", id: "queue-text" });
const more = button("Older jobs", null, () => read({ more: true }), { hidden: true });
const empty = h("p", { class: "muted", hidden: true });
let queueSwitch;

const STATUSES = { "": "Every status", queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };

async function read(options) {
  try {
    await loadJobs(options);
  } catch (failure) {
    if (failure.code !== "offline") toast(failure.message, true);
  }
}

function filters() {
  const status = h("select", { "aria-label": "Status" }, Object.entries(STATUSES).map(([value, text]) => h("option", { value }, text)));
  const source = h("select", { id: "source", "aria-label": "Came by" }, h("option", { value: "" }, "Every door"));
  const batch = h("input", { type: "search", placeholder: "Batch", "aria-label": "Batch" });
  const choose = () => read({ filters: { status: status.value, source: source.value, batch: batch.value.trim() } });
  for (const one of [status, source]) one.addEventListener("change", choose);
  batch.addEventListener("change", choose);
  return h("div", { class: "filters" }, status, source, batch);
}

/** Doors that are open, and those that jobs came by before. */
function drawSources() {
  const known = new Set([...Object.keys(state.capabilities?.doors ?? {}), ...[...state.jobs.values()].map((job) => job.source)]);
  const there = new Set([...$("source").options].map((option) => option.value));
  for (const name of known) if (!there.has(name)) $("source").append(h("option", { value: name }, sourceName(name)));
}

function drawQueue() {
  const queue = state.capabilities?.queue;
  if (!queue) return;
  const held = { paused: "Paused. ", storage_full: "Held: the disk is full. ", stopping: "The daemon is stopping. " }[queue.held] ?? "";
  const nothing = !queue.queued && !queue.running;
  head.textContent = held + (nothing ? "Nothing waits." : `${queue.running} running, ${queue.queued} waiting.`);
  const way = queue.held === "paused" ? "resume" : "pause";
  if (queueSwitch.dataset.way !== way) {
    queueSwitch.dataset.way = way;
    queueSwitch.replaceChildren(icon(way === "resume" ? "play" : "pause"), way === "resume" ? "Resume" : "Pause");
  }
}

function draw() {
  drawSources();
  const jobs = shown();
  const kept = new Set(jobs.map((job) => job.id));
  const at = [...list.children].findIndex((element) => element.contains(document.activeElement));
  for (const [id, row] of rows) {
    if (!kept.has(id)) {
      row.element.remove();
      rows.delete(id);
    }
  }
  jobs.forEach((job, index) => {
    const element = rowOf(job);
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  if (at >= 0 && !list.contains(document.activeElement)) (list.children[Math.min(at, jobs.length - 1)]?.querySelector(".row") ?? queueSwitch).focus();
  more.hidden = !state.next;
  empty.hidden = jobs.length > 0 || !state.loaded;
  empty.textContent = Object.values(state.filters).some(Boolean) ? "No job fits." : "No jobs yet. Yours and those of every other door will be here.";
}

function rowOf(job) {
  const key = [job.status, job.position, job.request?.priority, job.results.length, state.selected === job.id, Math.floor(Date.now() / 60_000)].join();
  const known = rows.get(job.id);
  if (known?.key === key) return known.element;
  const element = known?.element ?? h("li", {});
  const focused = known && element.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") ?? "" : null;
  element.className = job.status;
  element.replaceChildren(
    h("button", { type: "button", class: "row", "aria-current": state.selected === job.id ? "true" : null, onclick: () => open(job.id) },
      thumb(job),
      h("span", { class: "text" },
        h("span", { class: "title" }, job.request?.prompt ?? "An edit"),
        h("small", {}, h("span", { class: `state ${job.status}` }, statusText(job)), ` · ${sourceName(job.source)}${job.batch ? ` · ${job.batch}` : ""} · ${ago(job.created)}`))),
    job.status === "queued" ? queued(job) : null ?? "");
  rows.set(job.id, { element, key });
  if (focused !== null) (element.querySelector(focused ? `[aria-label="${CSS.escape(focused)}"]` : ".row") ?? element.querySelector(".row")).focus();
  return element;
}

function open(id) {
  select(id);
  document.body.dataset.tab = "stage";
  dispatchEvent(new Event("tab"));
}

function thumb(job) {
  const url = job.status === "done" ? api.thumbUrl(job.id) : state.previews.get(job.id) ?? api.inputThumb(job);
  return h("span", { class: "thumb" }, url ? crisp(h("img", { src: url, alt: "", loading: "lazy" })) : icon("picture"));
}

function statusText(job) {
  const { step, steps, image, images } = job.progress ?? {};
  switch (job.status) {
    case "queued": return job.position ? `Waiting, ${job.position} before` : "Waiting";
    case "running": return steps ? `Running ${Math.round((100 * ((image - 1) * steps + step)) / (images * steps))} %` : "Running";
    case "done": return job.elapsed_s === null ? "Done" : `Done in ${seconds(job.elapsed_s)}`;
    case "failed": return "Failed";
    default: return "Cancelled";
  }
}

/** A step of a running job: only what moves is touched. */
function drawStep(id) {
  const row = rows.get(id);
  const job = state.jobs.get(id);
  if (!row || !job) return;
  const text = row.element.querySelector(".state");
  if (text) text.textContent = statusText(job);
  const preview = state.previews.get(id);
  const image = row.element.querySelector(".thumb img");
  if (preview && image) image.src = preview;
}

function queued(job) {
  const priority = job.request?.priority ?? 0;
  const to = async (value) => {
    try {
      keep(await api.prioritise(job.id, Math.max(-100, Math.min(100, value))));
      read();
    } catch (failure) {
      toast(failure.message, true);
    }
  };
  const cancel = () => api.cancel(job.id).then(keep, (failure) => toast(failure.message, true));
  return h("span", { class: "order" },
    priority ? h("small", { title: "Priority" }, priority > 0 ? `+${priority}` : String(priority)) : null,
    button("Sooner", "up", () => to(priority + 1), { round: true }),
    button("Later", "down", () => to(priority - 1), { round: true }),
    button("Cancel", "close", cancel, { round: true }));
}

async function turn() {
  try {
    taken(await api.setQueue(queueSwitch.dataset.way));
  } catch (failure) {
    toast(failure.message, true);
  }
}

export function start() {
  queueSwitch = button("Pause", "pause", turn, { "data-way": "pause" });
  $("jobs").append(
    h("header", { class: "line" }, h("h2", { id: "jobs-title" }, "Jobs"), queueSwitch),
    head, filters(), list, empty, more);
  const soon = atNextPaint(draw);
  on("jobs", soon);
  on("selected", soon);
  on("capabilities", atNextPaint(() => { drawQueue(); drawSources(); }));
  const steps = new Set();
  const drawSteps = atNextPaint(() => { steps.forEach(drawStep); steps.clear(); });
  on("step", (id) => { steps.add(id); drawSteps(); });
  setInterval(soon, 60_000); // "2 min ago" grows old
}
