// What a message asks for, and what an answer holds: pure functions, no Node-RED.
"use strict";

/** Fields of an edit that a message may set, beside the node's own. */
const OPTIONS = ["preset", "negative_prompt", "steps", "true_cfg_scale", "seed", "size", "n", "tier",
    "loras", "output", "priority", "batch", "client_id"];

/** The pictures of a payload, as buffers; throws where there are none. */
function pictures(payload) {
    const given = Array.isArray(payload) ? payload : [payload];
    const found = given.map((one) => {
        if (Buffer.isBuffer(one)) return one;
        if (typeof one === "string") {
            return Buffer.from(one.replace(/^data:[^,]*;base64,/i, ""), "base64");
        }
        return Buffer.alloc(0);
    });
    if (!found.length || found.some((one) => !one.length)) {
        throw new Error("msg.payload: a picture is a Buffer or base64; several are an array of them");
    }
    return found;
}

/** The request's fields, without its pictures; throws where the sentence is missing. */
function fields(msg, node) {
    const asked = {};
    if (node.preset) asked.preset = node.preset;
    for (const name of OPTIONS) if (msg[name] !== undefined) asked[name] = msg[name];
    const prompt = msg.prompt || node.prompt;
    if (prompt) asked.prompt = prompt;
    // A preset may bring the sentence.
    if (!asked.prompt && !asked.preset) throw new Error("msg.prompt: say what to do, or choose a preset");
    return asked;
}

/** A status text of less than 20 characters. */
function badge(job) {
    const at = job.progress;
    if (job.status === "queued") return job.position ? `waits, place ${job.position}` : "waits";
    if (job.status !== "running") return job.status;
    if (at && at.steps && at.step) {
        return `step ${at.step}/${at.steps}` + (at.images > 1 ? `, ${at.image} of ${at.images}` : "");
    }
    return ((at && at.phase) || "runs").slice(0, 19);
}

/** What an answer's pictures lack: their bytes, or some of their quality. */
function isPartial(data) {
    return !data.image || (data.warnings || []).some((one) => one.code === "reencoded");
}

module.exports = { pictures, fields, badge, isPartial };
