// The way around the broker: pictures that are too large for it go by vellumd's HTTP door.
"use strict";

const UPLOAD_MS = 120000;

async function ask(url, key, options) {
    const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const answer = await fetch(url, { ...options, headers, signal: AbortSignal.timeout(UPLOAD_MS) });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw new Error(`${new URL(url).origin} answers ${answer.status}: ${told.detail || answer.statusText}`);
}

/** Send a picture ahead; what stands for it in a request. */
async function upload(base, key, picture) {
    const options = { method: "POST", body: picture, headers: { "Content-Type": "application/octet-stream" } };
    const answer = await ask(`${base}/v1/inputs`, key, options);
    return `sha256:${(await answer.json()).sha256}`;
}

/** The results of a job, as they are. */
async function results(base, key, job) {
    const found = [];
    for (const result of job.results) {
        // A link opens its result without a key, which must not go to another host.
        const [url, sent] = base ? [`${base}/v1/jobs/${job.id}/result/${result.n}`, key] : [result.url, ""];
        found.push(Buffer.from(await (await ask(url, sent, {})).arrayBuffer()));
    }
    return found;
}

module.exports = { upload, results };
