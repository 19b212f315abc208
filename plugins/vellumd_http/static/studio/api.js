// The daemon's HTTP API as this page uses it.

/** What went wrong, in words for people; `code` as in docs/errors.md, or `offline`. */
export class Failure extends Error {
  constructor(message, code, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function request(method, path, options) {
  let answer;
  try {
    answer = await fetch(path, { method, ...options });
  } catch {
    throw new Failure("The daemon does not answer.", "offline");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401) dispatchEvent(new Event("signed-out"));
  throw new Failure(told.detail || `The daemon answered ${answer.status}.`, told.code || "internal", answer.status);
}

async function json(method, path, body, headers = {}) {
  const sent = body === undefined ? {} : { body: JSON.stringify(body) };
  if (body !== undefined) headers = { "Content-Type": "application/json", ...headers };
  const answer = await request(method, path, { headers, ...sent });
  return answer.status === 204 ? null : parse(await answer.text());
}

/** As JSON; seeds go up to 2^63, and those beyond what a number holds exactly stay text. */
const parse = (text) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));

const job = (id) => `/v1/jobs/${id}`;

export const capabilities = () => json("GET", "/v1/capabilities");
export const readJob = (id) => json("GET", job(id));
export const cancel = (id) => json("POST", `${job(id)}/cancel`);
export const retry = (id) => json("POST", `${job(id)}/retry`);
export const remove = (id) => json("DELETE", job(id));
export const prioritise = (id, priority) => json("PATCH", job(id), { priority });
export const setQueue = (way) => json("POST", `/v1/queue/${way}`);
export const setEngine = (way) => json("POST", `/v1/engine/${way}`);
export const presets = () => json("GET", "/v1/presets");
export const savePreset = (name, fields) => json("PUT", `/v1/presets/${encodeURIComponent(name)}`, fields);
export const dropPreset = (name) => json("DELETE", `/v1/presets/${encodeURIComponent(name)}`);
export const invite = () => json("POST", "/v1/session/code");

/** A page of jobs, newest first; empty filters count as none. */
export function listJobs(filters, cursor) {
  const query = new URLSearchParams(Object.entries({ ...filters, cursor }).filter(([, value]) => value));
  return json("GET", `/v1/jobs?${query}`);
}

/** Keep a picture for an hour: its hash and size. */
export async function upload(blob) {
  const headers = { "Content-Type": blob.type || "application/octet-stream" };
  return (await request("POST", "/v1/inputs", { body: blob, headers })).json();
}

/** Accept an edit; the same key again is the same job, so a lost answer costs nothing. */
export const submit = (edit, key) => json("POST", "/v1/jobs", edit, { "Idempotency-Key": key });

/** The bytes at an address of the daemon. */
export const bytes = async (path) => (await request("GET", path)).blob();

export const inputUrl = (id, n) => `${job(id)}/inputs/${n}`;
export const maskUrl = (id) => `${job(id)}/mask`;
export const resultUrl = (id, n = 1) => `${job(id)}/result/${n}`;
export const thumbUrl = (id, n = 1) => `${resultUrl(id, n)}?format=webp&max_side=256`;
export const sampleUrl = (name) => `/v1/samples/${encodeURIComponent(name)}`;

/** The input as a small picture, or null where that would cost more than it shows. */
export function inputThumb(shown, n = 1) {
  const picture = shown.request?.images[n - 1];
  const drawable = picture && /^image\/(png|jpeg|webp|avif|bmp)$/.test(picture.type);
  return drawable && picture.bytes <= 2 << 20 ? inputUrl(shown.id, n) : null;
}
