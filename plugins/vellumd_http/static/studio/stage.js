// The job that is looked at: waiting, being made, made, or not.

import * as api from "./api.js";
import { $, button, crisp, h, icon, shaped, sure, toast } from "./dom.js";
import { compare } from "./compare.js";
import { fillFrom, goOnFrom } from "./compose.js";
import { asCurl, asFlow } from "./copy.js";
import { atNextPaint } from "./paint.js";
import { ago, seconds, sourceName } from "./words.js";
import { ended, forget, keep, on, select, selectedJob, state } from "./store.js";
import { welcome } from "./samples.js";

const stage = $("stage");
let drawn = null; // what the stage shows: job, status, number of the result
let shownResult = 1;

/** Do something for a job, and say it where it fails. */
async function attempt(act) {
  try {
    await act();
  } catch (failure) {
    toast(failure.message, true);
  }
}

/** Told at once, since a tab that nobody sees paints nothing, and its title is all there is of it. */
function title() {
  const job = selectedJob();
  document.title = job && !ended(job) ? `${progressText(job)} · vellumd` : "vellumd";
}

function draw() {
  const job = selectedJob();
  const key = job ? [job.id, job.status, job.results.length, shownResult].join() : `none ${state.capabilities?.model}`;
  if (key !== drawn) {
    if (!drawn?.startsWith(job?.id)) shownResult = 1;
    drawn = key;
    const focused = focusedName();
    const opened = stage.querySelector(".facts")?.open;
    stage.replaceChildren(job ? view(job) : welcome());
    if (opened && job) stage.querySelector(".facts").open = true;
    if (focused !== null) (controls().find((one) => nameOf(one) === focused) ?? stage).focus({ preventScroll: true });
  }
  if (job && !ended(job)) drawProgress(job);
}

const controls = () => [...stage.querySelectorAll("a, button, input, summary")];
const nameOf = (control) => control.getAttribute("aria-label") ?? control.textContent;

/** The control of the stage that has the focus, which goes with it when it is made anew; null for none. */
function focusedName() {
  const active = document.activeElement;
  return active && active !== stage && stage.contains(active) ? nameOf(active) : null;
}

function view(job) {
  const views = { queued: making, running: making, done, failed, cancelled: failed };
  return h("div", { class: `job ${job.status}` },
    h("header", { class: "line" }, h("h2", { class: "prompt" }, job.request?.prompt ?? "An edit"),
      button("Close", "close", () => select(null), { round: true })),
    views[job.status](job),
    facts(job));
}

function making(job) {
  return [
    frame(job, "making", crisp(h("img", { id: "preview", alt: "Preview", hidden: true }))),
    h("div", { class: "line" },
      h("progress", { id: "bar", max: 1, "aria-label": "Progress" }), h("span", { id: "far", class: "far" })),
    h("p", { class: "actions" }, button("Cancel", "close", () => attempt(async () => keep(await api.cancel(job.id))))),
  ];
}

/** Picture 1 while there is no result, below whatever `over` is. */
function frame(job, kind, ...over) {
  const before = api.inputThumb(job);
  if (!before) return h("div", { class: kind }, h("span", { class: "unseen" }, icon("picture")), over);
  const picture = crisp(h("img", { class: "before", src: before, alt: "Picture 1" }));
  return shaped(h("div", { class: kind }, picture, over), picture);
}

/** Moves on with every step: what is there is changed, nothing is made anew. */
function drawProgress(job) {
  const preview = state.previews.get(job.id);
  const image = $("preview");
  if (preview && image && image.src !== preview) {
    image.src = preview;
    image.hidden = false;
  }
  const { step, steps, image: n, images } = job.progress ?? {};
  const bar = $("bar");
  if (steps && job.status === "running") bar.value = ((n - 1) * steps + step) / (images * steps);
  else bar.removeAttribute("value");
  $("far").textContent = farText(job);
}

function progressText(job) {
  const { step, steps, image, images } = job.progress ?? {};
  return job.status === "running" && steps ? `${Math.round((100 * ((image - 1) * steps + step)) / (images * steps))} %` : job.status;
}

function farText(job) {
  if (job.status === "queued") {
    if (state.capabilities?.queue.held === "paused") return "Waiting: the queue is paused";
    const { engine } = state.capabilities ?? {};
    if (engine && !engine.ready) return `Waiting for the engine: ${engine.state}`;
    const eta = job.eta_s === null ? "" : `, about ${seconds(job.eta_s)}`;
    return job.position ? `Waiting, ${job.position} before it${eta}` : `Next${eta}`;
  }
  const { step, steps, image, images, eta_s: eta } = job.progress ?? {};
  if (!steps) return "Starting";
  const which = images > 1 ? `Picture ${image} of ${images}, ` : "";
  return `${which}step ${step} of ${steps}${eta ? `, ${seconds(eta)} left` : ""}`;
}

function done(job) {
  const result = job.results[Math.min(shownResult, job.results.length) - 1];
  const url = api.resultUrl(job.id, result.n);
  const drawable = job.request && api.inputThumb(job) ? api.inputUrl(job.id, 1) : null;
  const others = job.results.length > 1 ? h("p", { class: "others", role: "group", "aria-label": "Results" }, job.results.map((one) =>
    h("button", { type: "button", "aria-label": `Result ${one.n}`, "aria-pressed": String(one.n === result.n), onclick: () => { shownResult = one.n; draw(); } },
      crisp(h("img", { src: api.thumbUrl(job.id, one.n), alt: "" }))))) : null;
  return [
    compare(drawable, url, `Result: ${job.request?.prompt ?? ""}`),
    others,
    h("p", { class: "actions" },
      h("a", { class: "main", href: url, download: "" }, icon("download"), "Download"),
      button("Edit further", "picture", () => attempt(() => goOnFrom(job, result.n))),
      changeButton(job), againButton(job),
      navigator.canShare ? button("Share", "share", () => attempt(() => share(job, result))) : null,
      copyButtons(job), deleteButton(job)),
    warnings(job),
  ];
}

function failed(job) {
  const why = job.error ?? { message: "It was cancelled.", code: "cancelled" };
  return [
    frame(job, "making over"),
    h("p", { class: job.error ? "trouble" : "note", role: "alert" }, why.message, job.error ? h("code", {}, why.code) : null),
    h("p", { class: "actions" }, againButton(job, "main", "Try again"), changeButton(job), copyButtons(job), deleteButton(job)),
    warnings(job),
  ];
}

const changeButton = (job) => button("Change", "pencil", () => attempt(() => fillFrom(job)), { "aria-label": "Change and run again", title: "Change and run again" });

function againButton(job, kind = "plain", text = "Run again") {
  return button(text, "again", () => attempt(async () => {
    const again = await api.retry(job.id);
    keep(again);
    select(again.id);
  }), { kind });
}

const copyButtons = (job) => [
  button("curl", "copy", () => asCurl(job), { "aria-label": "Copy as curl", title: "Copy as a curl command" }),
  button("Node-RED", "copy", () => asFlow(job), { "aria-label": "Copy as Node-RED", title: "Copy as a Node-RED flow" }),
];

function deleteButton(job) {
  return button("Delete", "bin", () => attempt(async () => {
    if (!(await sure("Delete this job?", "Its pictures and its entry are gone for good.", "Delete"))) return;
    await api.remove(job.id);
    forget(job.id);
  }));
}

async function share(job, result) {
  const blob = await api.bytes(api.resultUrl(job.id, result.n));
  const files = [new File([blob], `${job.id}.${blob.type.split("/")[1]}`, { type: blob.type })];
  if (navigator.canShare({ files })) await navigator.share({ files }).catch(() => {}); // closed without sharing
}

function warnings(job) {
  return job.warnings.length ? h("ul", { class: "notes" }, job.warnings.map((one) => h("li", {}, one.message))) : null;
}

function facts(job) {
  const { request } = job;
  const result = job.results[0];
  const rows = {
    Preset: request?.preset, Steps: request?.steps, Guidance: request?.true_cfg_scale, Seed: request?.seed,
    Tier: request?.tier, Size: result ? `${result.width} × ${result.height}` : request?.size,
    Pictures: request && request.images.length > 1 ? request.images.length : null,
    Batch: job.batch, "Came by": sourceName(job.source), Created: ago(job.created),
    Took: job.elapsed_s === null ? null : seconds(job.elapsed_s), Attempt: job.attempt > 1 ? job.attempt : null, Job: job.id,
  };
  const known = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined);
  return h("details", { class: "facts" }, h("summary", {}, "Details"),
    h("dl", {}, known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))));
}

export function start() {
  const drawSoon = atNextPaint(draw);
  const soon = () => { title(); drawSoon(); };
  for (const topic of ["jobs", "selected", "capabilities"]) on(topic, soon);
  on("step", (id) => id === state.selected && soon());
  draw();
}
