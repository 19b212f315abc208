// The form of a new edit: from fields to a job, and from a job back to fields.

import * as api from "./api.js";
import { $, h, once, randomId, toast } from "./dom.js";
import * as pictures from "./pictures.js";
import { select, keep, on, state } from "./store.js";

const FIELDS = ["prompt", "preset", "n", "size", "seed", "steps", "true_cfg_scale", "negative_prompt", "batch"];
const MORE = ["size", "seed", "steps", "true_cfg_scale", "negative_prompt", "batch"];
const UNSEEN = ["tier", "loras", "output"]; // what a job has and the form has no field for
const CUSTOM = "custom";
const form = $("edit");
let kept = null; // of the job whose change this is, while its preset is the chosen one
let attempt = null; // the edit that is being sent, and the key it is sent under

/** What the fields ask for, without pictures; empty ones are left to the preset. */
export function fields() {
  const given = {};
  for (const name of FIELDS) {
    const value = form.elements[name].value.trim();
    if (value) given[name] = value;
  }
  if (given.size === CUSTOM) given.size = `${$("width").value}x${$("height").value}`;
  return { ...given, ...kept };
}

/** Fill the fields; those that `given` lacks become empty. */
export function fill(given) {
  kept = null;
  for (const name of FIELDS) form.elements[name].value = given[name] ?? "";
  const { size, preset } = given;
  if (!form.elements.preset.value) form.elements.preset.value = state.capabilities?.default_preset ?? "";
  if (preset && form.elements.preset.value !== preset) toast(`There is no preset ${preset} any more.`);
  if (size && form.elements.size.value !== size) {
    const [width, height] = size.split("x");
    const pixels = Number(height) > 0;
    if (!pixels) form.elements.size.append(h("option", { value: size }, `${size.replace("fit:", "")} megapixels at most`));
    form.elements.size.value = pixels ? CUSTOM : size;
    if (pixels) [$("width").value, $("height").value] = [width, height];
  }
  $("more").open = MORE.some((name) => given[name]);
  changed();
}

/** Keep what the form has no field for, and say so. */
function keepUnseen(request) {
  if (form.elements.preset.value !== request.preset) return;
  kept = Object.fromEntries(UNSEEN.map((name) => [name, request[name]]));
  changed();
}

/** What is kept, in words. */
function keptText({ tier, loras, output }) {
  const files = loras.map(({ name, scale }) => (scale === 1 ? name : `${name} at ${scale}`));
  const lora = files.length ? `with ${files.join(" and ")}` : "without a LoRA";
  return `As in that job: ${tier}, ${lora}, ${output.format === "same" ? "the format of picture 1" : output.format.toUpperCase()}. Another preset begins anew.`;
}

/** Take over what a job was made of, to change it and run it again. */
export async function fillFrom(job) {
  const { request } = job;
  const numbers = request.images.map((_, index) => index + 1);
  const [files, mask] = await Promise.all([
    Promise.all(numbers.map(async (n) => named(await api.bytes(api.inputUrl(job.id, n)), request.images[n - 1].name || `picture-${n}.png`))),
    request.mask ? api.bytes(api.maskUrl(job.id)) : null,
  ]);
  pictures.replace(files, mask);
  const { true_cfg_scale, negative_prompt } = request;
  fill({
    ...Object.fromEntries(["prompt", "preset", "size", "seed", "steps", "n"].map((name) => [name, request[name]])),
    true_cfg_scale, negative_prompt: negative_prompt.trim(), batch: job.batch, n: request.n > 1 ? request.n : "",
  });
  keepUnseen(request);
  show();
}

/** Use a result as the picture of the next edit. */
export async function goOnFrom(job, n) {
  const blob = await api.bytes(api.resultUrl(job.id, n));
  pictures.replace([named(blob, `${job.id.slice(-6)}-${n}.${blob.type.split("/")[1]}`)]);
  fill({ preset: job.request.preset });
  show();
}

/** Have a sample made at once. */
export async function trySample(sample) {
  const files = await Promise.all(sample.images.map(async (name) => named(await api.bytes(api.sampleUrl(name)), name)));
  pictures.replace(files);
  fill({ prompt: sample.prompt, preset: form.elements.preset.value });
  await send();
}

const named = (blob, name) => new File([blob], name, { type: blob.type });

function show() {
  document.body.dataset.tab = "compose";
  dispatchEvent(new Event("tab"));
  form.elements.prompt.focus();
}

async function send() {
  refuse("");
  if (!pictures.count()) return refuse("Add a picture first.");
  const preset = state.capabilities?.presets[form.elements.preset.value];
  if (!form.elements.prompt.value.trim() && !preset?.prompt) return refuse("Say what shall change.");
  return once($("submit"), sendOnce);
}

async function sendOnce() {
  try {
    const job = await submitted();
    attempt = null;
    keep(job);
    select(job.id);
    document.body.dataset.tab = "stage";
    dispatchEvent(new Event("tab"));
    if (job.position) toast(`Accepted; ${job.position} before it.`);
  } catch (failure) {
    const nothing = failure.code === "offline" ? " Nothing is lost: press Edit again once it is back." : "";
    refuse(failure.message + nothing);
  }
}

/** The job. What was sent and not answered is sent under the same key, so it is made once. */
async function submitted() {
  let edit = { ...fields(), ...(await pictures.references()) };
  const same = JSON.stringify(edit);
  if (attempt?.same !== same) attempt = { same, key: randomId() };
  try {
    return await api.submit(edit, attempt.key);
  } catch (failure) {
    if (failure.code !== "not_found") throw failure;
    edit = { ...edit, ...(await pictures.references(true)) }; // they were not kept any longer
    return api.submit(edit, attempt.key);
  }
}

function refuse(text) {
  $("refused").textContent = text;
  $("refused").hidden = !text;
}

/** Show what the preset leaves open, and only what is asked for. */
function changed() {
  const { preset, size } = form.elements;
  $("kept").hidden = !kept;
  if (kept) $("kept").textContent = keptText(kept);
  const chosen = state.capabilities?.presets[preset.value] ?? {};
  for (const name of ["steps", "true_cfg_scale"]) form.elements[name].placeholder = chosen[name] ?? "";
  $("custom").hidden = size.value !== CUSTOM;
  for (const id of ["width", "height"]) $(id).required = size.value === CUSTOM;
}

export function start() {
  form.elements.size.append(h("option", { value: CUSTOM }, "Other…"));
  form.noValidate = false;
  form.elements.prompt.required = false; // we say it in our own words
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.elements.preset.addEventListener("input", () => { kept = null; });
  form.addEventListener("input", changed);
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  $("reset").addEventListener("click", () => {
    pictures.replace([]);
    fill({});
    refuse("");
    select(null);
  });
  pictures.start(() => refuse(""));
  on("capabilities", changed);
}
