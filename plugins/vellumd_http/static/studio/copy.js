// A job as something to take elsewhere: a command for a shell, a flow for Node-RED.

import { button, dialog, h, toast } from "./dom.js";
import { flow } from "./flow.js";

// All of them were decided when the job was accepted, so its preset may be gone or changed by now.
const SENT = ["prompt", "steps", "true_cfg_scale", "seed", "size", "n", "negative_prompt", "tier", "loras", "output"];

/** The fields that make the same edit again; what says nothing is left out. */
export function asked(job) {
  const all = Object.fromEntries(SENT.map((name) => [name, job.request[name]]));
  if (all.n === 1) delete all.n;
  if (all.size === "match") delete all.size;
  if (!all.negative_prompt?.trim()) delete all.negative_prompt;
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null && value !== undefined));
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
/** A file name for curl's -F, where a bare comma begins another file and a semicolon an option. */
const file = (name) => `"${name.replace(/[\\"]/g, "\\$&")}"`;
const text = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
const withKey = () => document.body.dataset.key === "needed";

/** A curl command that sends the job's pictures from files of their names. */
export function curl(job, origin) {
  const name = (picture, n) => picture.name || `picture-${n}.png`;
  const parts = job.request.images.map((picture, index) => `-F ${quoted(`images=@${file(name(picture, index + 1))}`)}`);
  if (job.request.mask) parts.push("-F 'mask=@mask.png'");
  parts.push(...Object.entries(asked(job)).map(([field, value]) => `--form-string ${quoted(`${field}=${text(value)}`)}`));
  if (withKey()) parts.push('-H "Authorization: Bearer $VELLUMD_KEY"');
  parts.push("-H 'Prefer: wait=300'", "-H 'Accept: image/png'", "-o result.png", quoted(`${origin}/v1/jobs`));
  return `curl ${parts.join(" \\\n  ")}\n`;
}

export const asCurl = (job) => offer("As curl", curl(job, location.origin), "It sends files of these names from the shell's folder, and writes result.png.");

export function asFlow(job) {
  const text = JSON.stringify(flow(asked(job), job.request.images.map((picture) => picture.name), location.origin, withKey()), null, 2);
  offer("As Node-RED flow", text, "Import it in Node-RED (menu, Import). The tab's environment names the pictures and the result.");
}

/** Show a text that can be selected, and copy it where the browser lets us. */
function offer(title, text, hint) {
  const area = h("textarea", { readOnly: true, rows: Math.min(14, text.split("\n").length + 1), value: text, "aria-label": title, spellcheck: false });
  const copy = button("Copy", "copy", async () => toast((await copied(text, area)) ? "Copied." : "Select the text and copy it."), { kind: "main" });
  dialog(title, [h("p", { class: "muted" }, hint), area, h("p", { class: "actions" }, copy)], "wide");
  area.focus();
  area.select();
  area.scrollTop = 0;
}

/** Copy; the clipboard exists on secure origins alone, the old command everywhere. */
async function copied(text, area) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    area.focus();
    area.select();
    return document.execCommand("copy");
  }
}
