// A Node-RED flow of built-in nodes that makes an edit: read the pictures, submit a job, ask
// until it has ended, write the result. The job survives restarts of vellumd; the request's
// key is the message's own id, so a repeated message is the same job.

const ASK = `msg.pictures = (msg.pictures || []).concat(msg.payload.toString("base64"));
const next = env.get("PICTURE_" + (msg.pictures.length + 1));
if (next) {
    msg.filename = next;
    return [msg, null];
}
msg.url = env.get("URL") + "/v1/jobs";
msg.headers = { "Content-Type": "application/json", "Idempotency-Key": msg._msgid };
if (env.get("KEY")) msg.headers.Authorization = "Bearer " + env.get("KEY");
msg.requestTimeout = 120000;
msg.payload = Object.assign({ images: msg.pictures }, env.get("EDIT"));
delete msg.pictures;
return [null, msg];`;

const ENDED = `const job = msg.payload;
if (msg.statusCode !== 200 && msg.statusCode !== 202) {
    node.error((job && job.detail) || "vellumd: " + msg.statusCode, msg);
    return null;
}
msg.headers = env.get("KEY") ? { Authorization: "Bearer " + env.get("KEY") } : {};
msg.payload = "";
msg.url = env.get("URL") + "/v1/jobs/" + job.id;
node.status({ text: job.status });
if (job.status === "done") {
    msg.url += "/result";
    return [null, msg];
}
if (job.error || job.status === "cancelled") {
    node.error(job.error ? job.error.message : "cancelled", msg);
    return null;
}
msg.headers.Prefer = "wait=60";
msg.requestTimeout = 90000;
return [msg, null];`;

const WHOLE = `if (msg.statusCode !== 200) {
    node.error("vellumd: " + msg.statusCode, msg);
    return null;
}
return msg;`;

/** The nodes; `names` are the pictures' files, `edit` the fields besides them. */
export function flow(edit, names, origin, withKey) {
  const tab = hex();
  const id = Object.fromEntries(["inject", "read", "ask", "submit", "ended", "poll", "fetch", "whole", "write", "told", "catch", "failed"].map((name) => [name, hex()]));
  const node = (name, type, x, y, wires, more = {}) => ({ id: id[name], z: tab, type, name, x, y, wires: wires.map((ports) => ports.map((to) => id[to])), ...more });
  const code = (func, outputs) => ({ func, outputs, timeout: 0, noerr: 0, initialize: "", finalize: "", libs: [] });
  const http = (method, ret) => ({ method, ret, url: "", paytoqs: "ignore", tls: "", persist: false, proxy: "", authType: "", senderr: false, headers: [] });
  const pictures = names.map((name, index) => ({ name: `PICTURE_${index + 1}`, value: name || `picture-${index + 1}.png`, type: "str" }));
  const env = [
    ...pictures, { name: "RESULT", value: "result.png", type: "str" }, { name: "URL", value: origin, type: "str" },
    { name: "EDIT", value: JSON.stringify(edit), type: "json" }, ...(withKey ? [{ name: "KEY", value: "", type: "cred" }] : []),
  ];
  const debug = { active: true, tosidebar: true, console: false, tostatus: true, targetType: "msg", statusVal: "", statusType: "auto" };
  return [
    { id: tab, type: "tab", label: `vellumd: ${edit.prompt.slice(0, 40)}`, disabled: false, info: "The tab's environment names the pictures, the result and the edit.", env },
    node("inject", "inject", 110, 80, [["read"]], { props: [{ p: "filename", v: "PICTURE_1", vt: "env" }], repeat: "", once: false }),
    node("read", "file in", 250, 80, [["ask"]], { filename: "filename", filenameType: "msg", format: "", chunk: false, sendError: false, encoding: "none", allProps: false }),
    node("ask", "function", 390, 80, [["read"], ["submit"]], code(ASK, 2)),
    node("submit", "http request", 530, 80, [["ended"]], http("POST", "obj")),
    node("ended", "function", 670, 80, [["poll"], ["fetch"]], code(ENDED, 2)),
    node("poll", "http request", 670, 160, [["ended"]], http("GET", "obj")),
    node("fetch", "http request", 810, 80, [["whole"]], http("GET", "bin")),
    node("whole", "function", 950, 80, [["write"]], code(WHOLE, 1)),
    node("write", "file", 1090, 80, [["told"]], { filename: "RESULT", filenameType: "env", appendNewline: false, createDir: true, overwriteFile: "true", encoding: "none" }),
    node("told", "debug", 1230, 80, [], { ...debug, complete: "filename" }),
    node("catch", "catch", 110, 220, [["failed"]], { name: "", scope: null, uncaught: false }),
    node("failed", "debug", 270, 220, [], { ...debug, complete: "error" }),
  ];
}

const hex = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
