// What this page knows of the daemon: jobs, capabilities, whether it answers.

import * as api from "./api.js";
import { follow } from "./stream.js";

const TOGETHER = 4; // more changed jobs than these are read as a page
const PAUSE_MS = 100; // between two readings of changed jobs
const LOOK_MS = 4000; // between two looks at the engine, which sends no events
const HURRY_MS = 6000; // in which a switch that was turned shows
const MOST = 2000; // jobs that are remembered: a page left open for weeks begins its list anew

export const state = {
  jobs: new Map(),
  previews: new Map(),
  capabilities: null,
  linked: null, // null until the first answer, then whether the daemon answers
  loaded: false,
  filters: { status: "", source: "", batch: "" },
  next: null, // cursor of the following page
  floor: "", // the oldest id that the pages reach
  selected: null,
  rate: null, // steps a second of the running job
};

const listeners = new Map();

/** Call `listener` when `topic` changes: jobs, job, capabilities, link, selected. */
export function on(topic, listener) {
  listeners.set(topic, [...(listeners.get(topic) ?? []), listener]);
}

function emit(topic, value) {
  for (const listener of listeners.get(topic) ?? []) listener(value);
}

/** Jobs that the list shows, newest first: ids are made in the order of time. */
export function shown() {
  const { status, source, batch } = state.filters;
  return [...state.jobs.values()]
    .filter((job) => (!status || job.status === status) && (!source || job.source === source))
    .filter((job) => (!batch || job.batch === batch) && job.id >= state.floor)
    .sort((a, b) => (a.id < b.id ? 1 : -1));
}

export const selectedJob = () => state.jobs.get(state.selected) ?? null;
export const ended = (job) => ["done", "failed", "cancelled"].includes(job.status);

/** Show a job on the stage; null shows none. */
export function select(id) {
  state.selected = id;
  emit("selected");
}

const asked = new Map(); // job id → when what is held of it was asked for

/** Take jobs as they were told when asked at `at`: an answer may overtake an older one. */
function hold(jobs, at) {
  for (const job of jobs) {
    if (at < (asked.get(job.id) ?? 0)) continue;
    asked.set(job.id, at);
    state.jobs.set(job.id, job);
  }
  emit("jobs");
}

function drop(id) {
  for (const map of [state.jobs, state.previews, asked]) map.delete(id);
}

/** Show a job as the answer to a deed told it; its events may have been faster, so it is read again. */
export function keep(job) {
  state.jobs.set(job.id, job);
  emit("jobs");
  dirty.add(job.id);
  pump();
}

/** Forget a job that is gone, whatever an answer says that was asked for before. */
export function forget(id) {
  drop(id);
  asked.set(id, performance.now());
  if (state.selected === id) select(null);
  emit("jobs");
}

/** Read the newest page, or the one after what is there; other filters begin anew. The ids. */
export async function loadJobs({ more = false, filters = state.filters } = {}) {
  const known = filters === state.filters && state.loaded ? shown() : [];
  state.filters = filters;
  const at = performance.now();
  const from = state.next;
  const page = await api.listJobs(filters, more ? from : null);
  const there = new Set(page.jobs.map((job) => job.id));
  hold(page.jobs, at);
  if (filters !== state.filters) return there; // another filter was chosen meanwhile
  if (more && from !== state.next) return there; // the list began anew meanwhile: it would leave a gap
  const last = page.next ? page.jobs.at(-1).id : "";
  if (!more) {
    // What we show from here on and the page has not may be gone, or another status by now.
    known.filter((job) => job.id >= last && !there.has(job.id)).forEach((job) => dirty.add(job.id));
    if (dirty.size) pump();
  }
  // Pages that were loaded further down stay, unless there is a gap between them and this one.
  const joined = !more && known.length > 0 && known[0].id >= last && state.floor < last;
  if (!joined) {
    state.next = page.next;
    state.floor = last;
  }
  if (!more && state.jobs.size > MOST) trim(page);
  state.loaded = true;
  emit("jobs");
  return there;
}

/** Keep no more than the newest page, and the job on the stage. */
function trim(newest) {
  const kept = new Set([...newest.jobs.map((job) => job.id), state.selected]);
  [...state.jobs.keys()].filter((id) => !kept.has(id)).forEach(drop);
  state.next = newest.next;
  state.floor = newest.next ? newest.jobs.at(-1).id : "";
}

/** Look at engine, queue and presets. */
export async function look() {
  const told = await api.capabilities();
  state.capabilities = told;
  emit("capabilities");
}

/** What a switch of queue or engine answered. */
export function taken(control) {
  state.capabilities = { ...state.capabilities, ...control };
  emit("capabilities");
  hurry = performance.now() + HURRY_MS;
  soon();
}

const BECOMES = { queued: "queued", started: "running", done: "done", failed: "failed", cancelled: "cancelled" };
const dirty = new Set();
let reading = false;

function take(type, event) {
  const { job_id: id, data } = event;
  const job = state.jobs.get(id);
  if (type === "step") {
    measure(id, data);
    if (job) state.jobs.set(id, { ...job, status: "running", progress: data, eta_s: data.eta_s });
    emit("step", id);
  } else if (type === "preview") {
    state.previews.set(id, `data:image/jpeg;base64,${data.jpeg}`);
    emit("step", id);
  } else if (type in BECOMES) {
    // A picture that is not there yet would be asked for: done is told with its results.
    if (job && type === "started") state.jobs.set(id, { ...job, status: "running", position: null });
    if (type !== "started" && type !== "queued") state.previews.delete(id);
    dirty.add(id);
    emit("jobs");
    pump();
    soon();
  }
}

/** Read what changed: the first at once, what comes in a flock together. */
async function pump() {
  if (reading) return;
  reading = true;
  while (dirty.size) {
    const ids = [...dirty];
    let pause = PAUSE_MS;
    dirty.clear();
    try {
      const told = ids.length > TOGETHER || state.jobs.size > MOST ? await loadJobs() : null;
      // What the page of a filter leaves out matters where it is still shown.
      const left = ids.filter((id) => !told || (!told.has(id) && state.jobs.has(id)));
      left.forEach((id) => dirty.delete(id));
      while (left.length) await Promise.all(left.splice(0, TOGETHER).map(readOne));
    } catch {
      ids.forEach((id) => dirty.add(id));
      if (!state.linked) break; // once the daemon is back they are read
      pause = LOOK_MS;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  reading = false;
}

async function readOne(id) {
  const at = performance.now();
  try {
    hold([await api.readJob(id)], at);
  } catch (failure) {
    if (failure.code !== "not_found" && failure.code !== "expired") throw failure;
    forget(id);
  }
}

// steps a second, over the last ten of a job
let pace = { id: null, steps: [] };

function measure(id, { image, steps, step }) {
  if (pace.id !== id) pace = { id, steps: [] };
  pace.steps.push([performance.now(), (image - 1) * steps + step]);
  if (pace.steps.length > 10) pace.steps.shift();
  const [[from, first], [to, last]] = [pace.steps[0], pace.steps.at(-1)];
  if (last > first && to > from) state.rate = (1000 * (last - first)) / (to - from);
}

let looking = 0;
let hurry = 0; // until when to look often

/** Look at the engine again shortly, and then now and then while somebody sees the page. */
function soon(after = 150) {
  clearTimeout(looking);
  looking = setTimeout(async () => {
    if (state.linked && !document.hidden) await look().catch(() => {});
    const calm = state.capabilities?.engine.ready && performance.now() > hurry;
    soon(calm ? LOOK_MS : LOOK_MS / 8);
  }, after);
}

/** Begin: listen first, then read, so that nothing falls in between. */
export function start() {
  follow({
    onEvent: take,
    onOpen: async () => {
      state.linked = true;
      emit("link");
      await Promise.all([look(), loadJobs()]).catch(() => {});
      soon(LOOK_MS);
    },
    onLost: () => {
      state.linked = false;
      emit("link");
    },
    needed: () => selectedJob() && !ended(selectedJob()), // the tab's title tells how far it is
  });
  document.addEventListener("visibilitychange", () => document.hidden || soon(0));
}
