// What the stage shows while there is nothing else: what the model knows, and edits to try.

import * as api from "./api.js";
import { crisp, h, once, toast } from "./dom.js";
import { trySample } from "./compose.js";
import { state } from "./store.js";

/** The view without a job. */
export function welcome() {
  const { capabilities } = state;
  if (!capabilities) return h("div", { class: "empty" }, h("p", { class: "muted" }, "Asking the daemon …"));
  const samples = capabilities.samples ?? [];
  if (!samples.length) {
    return h("div", { class: "empty" },
      h("h2", {}, "Nothing here yet"),
      h("p", { class: "muted" }, "Add a picture, say what shall change, and watch it happen here. Jobs that come by other doors are in the list."));
  }
  return h("div", { class: "empty top" },
    h("h2", {}, capabilities.demo ? "This is the demo" : "Try it"),
    capabilities.demo ? h("p", {}, `No model is configured, so a toy answers, and it says so with each picture. What it knows: ${lower(capabilities.knows)}`) : h("p", {}, capabilities.knows ?? ""),
    h("p", { class: "muted" }, "One click, one edit:"),
    h("ul", { class: "samples" }, samples.map(card)));
}

const lower = (text) => (text ? text[0].toLowerCase() + text.slice(1) : "coloured shapes.");

function card(sample) {
  const pictures = sample.images.map((name) => crisp(h("img", { src: api.sampleUrl(name), alt: "", loading: "lazy" })));
  const go = (event) => once(event.currentTarget, () => trySample(sample).catch((failure) => toast(failure.message, true)));
  return h("li", {}, h("button", { type: "button", class: "sample", onclick: go },
    h("span", { class: "strip" }, pictures), h("span", {}, sample.prompt)));
}
