// The node: a picture and a sentence go to vellumd, the edit comes back, with progress.
"use strict";

const http = require("./http");
const request = require("./request");

/** Bytes of the largest message while vellumd has not told: below Mosquitto 2.1's default. */
const MAX_PAYLOAD = 1990000;
/** Milliseconds between two looks whether the broker is back. */
const RETRY_MS = 500;
/** Answers that are remembered: a broker may hand them over twice. */
const REMEMBERED = 1000;

module.exports = function (RED) {
    function VellumdEdit(config) {
        RED.nodes.createNode(this, config);
        const node = this;
        const broker = RED.nodes.getNode(config.broker);
        const base = `vellumd/${config.instance || "main"}`;
        if (!broker) {
            node.status({ fill: "red", shape: "ring", text: "no broker" });
            node.on("input", (msg, send, done) => done(new Error("no broker: choose one in this node's form")));
            return;
        }
        // The answers' topic: the same after a restart, where the broker keeps them for us.
        const lasting = Boolean(broker.clientid) && !broker.cleansession;
        const mine = ["node-red", broker.clientid, node.id].join("-").replace(/[^\w-]/g, "").slice(0, 128);
        const patience = 1000 * (Number(config.timeout) || 0);
        const key = (node.credentials && node.credentials.key) || "";
        /** Messages that wait for their answer, by the id under which they were sent. */
        const waiting = new Map();
        /** What the broker has not been handed yet. */
        const outgoing = [];
        const answered = new Set();
        let info = {};
        let online = null;
        let timer = null;

        const local = (config.url || "").replace(/\/+$/, "");
        const address = () => local || (info.public_url || "").replace(/\/+$/, "");

        function show(fill, shape, text) {
            node.status({ fill, shape, text });
        }

        function idle() {
            if (online === false) show("red", "ring", "vellumd is offline");
            else if (online) show("green", "ring", "ready");
        }

        // out

        function hand() {
            clearTimeout(timer);
            timer = null;
            while (outgoing.length && broker.connected) {
                const { id, payload } = outgoing.shift();
                broker.publish({ topic: `${base}/request/edit`, payload, qos: 1 }, (error) => {
                    if (error) fail(id, error);
                });
            }
            if (outgoing.length) {
                show("yellow", "ring", "broker is away");
                timer = setTimeout(hand, RETRY_MS);
            }
        }

        async function body(msg, id) {
            const asked = request.fields(msg, config);
            const pictures = request.pictures(msg.payload);
            const echo = { topic: msg.topic };
            const make = (images) => JSON.stringify({ ...asked, images, job_id: id, reply_to: mine, transaction: echo });
            const most = info.max_payload || MAX_PAYLOAD;
            const size = pictures.reduce((sum, one) => sum + Math.ceil(one.length / 3) * 4 + 3, 0) + 2000;
            if (size + JSON.stringify(asked).length <= most) return make(pictures.map((one) => one.toString("base64")));
            if (!address()) {
                throw new Error(`the message takes ${size} bytes, the broker ${most}: give the node vellumd's HTTP address`);
            }
            show("blue", "ring", "uploads");
            const images = [];
            for (const one of pictures) images.push(await http.upload(address(), key, one));
            return make(images);
        }

        function fail(id, error) {
            const one = waiting.get(id);
            if (!one) return;
            forget(id);
            show("red", "dot", (error.code || error.message || String(error)).slice(0, 19));
            one.done(error);
        }

        function forget(id) {
            clearTimeout((waiting.get(id) || {}).timer);
            waiting.delete(id);
        }

        node.on("input", async (msg, send, done) => {
            const id = RED.util.generateId() + RED.util.generateId();
            const one = { msg, send, done };
            waiting.set(id, one);
            try {
                const payload = await body(msg, id);
                if (!waiting.has(id)) return;
                if (patience) {
                    one.timer = setTimeout(() => fail(id, new Error(`no answer within ${patience / 1000} s`)), patience);
                }
                show("blue", "ring", "sent");
                outgoing.push({ id, payload });
                hand();
            } catch (error) {
                fail(id, error);
            }
        });

        // in

        function parsed(payload) {
            try {
                const found = JSON.parse(payload.toString());
                return found && typeof found === "object" ? found : {};
            } catch (_error) {
                return {};
            }
        }

        async function answer(topic, payload) {
            const told = parsed(payload);
            const id = told.client_job_id;
            if (!id || answered.has(id)) return;
            answered.add(id);
            if (answered.size > REMEMBERED) answered.delete(answered.values().next().value);
            // One that was sent before a restart has lost its message; its answer comes all the same.
            const topicThen = told.transaction && told.transaction.topic;
            const known = waiting.get(id);
            if (!known && !lasting) return; // of another Node-RED with the same flow
            const one = known || {
                msg: topicThen === undefined ? {} : { topic: topicThen },
                send: (msg) => node.send(msg),
                done: (error) => error && node.error(error, { topic: topicThen }),
            };
            if (!known) waiting.set(id, one);
            if (told.status !== "ok") {
                const error = new Error((told.error || {}).message || "the answer cannot be read");
                error.code = (told.error || {}).code;
                return fail(id, error);
            }
            try {
                const { image, image_type, images, ...job } = told.data;
                let found = image ? (images || [image]).map((text) => Buffer.from(text, "base64")) : [];
                if (request.isPartial(told.data) && (local || job.url)) {
                    show("blue", "dot", "fetches");
                    // Smaller than it was is better than nothing.
                    found = await http.results(local, key, job).catch((error) => {
                        if (!found.length) throw error;
                        node.warn(`the re-encoded picture is used: ${error.message}`);
                        return found;
                    });
                }
                if (!found.length) throw new Error("the picture is too large for the broker: give the node vellumd's HTTP address");
                forget(id);
                const msg = Object.assign(one.msg, { payload: found.length > 1 ? found : found[0], job });
                show("green", "dot", `done in ${Number(job.elapsed_s || 0).toFixed(1)} s`);
                one.send(msg);
                one.done();
            } catch (error) {
                fail(id, error);
            }
        }

        function progress(topic, payload) {
            const job = parsed(payload);
            if (waiting.has(job.client_job_id) && !answered.has(job.client_job_id)) {
                show("blue", job.status === "running" ? "dot" : "ring", request.badge(job));
            }
        }

        function state(topic, payload) {
            online = payload.toString() === "online";
            if (!online || !waiting.size) idle();
            hand();
        }

        const subscriptions = [
            [`${base}/response/edit/${mine}`, 1, answer],
            [`${base}/progress/+`, 0, progress],
            [`${base}/info`, 1, (topic, payload) => { info = parsed(payload); }],
            [`${base}/state`, 1, state],
        ];
        broker.register(node);
        for (const [topic, qos, take] of subscriptions) broker.subscribe(topic, { qos }, take, node.id);

        node.on("close", (removed, done) => {
            clearTimeout(timer);
            for (const id of [...waiting.keys()]) forget(id);
            for (const [topic] of subscriptions) broker.unsubscribe(topic, node.id, removed);
            broker.deregister(node, done, true);
        });
    }

    RED.nodes.registerType("vellumd-edit", VellumdEdit, { credentials: { key: { type: "password" } } });
};
