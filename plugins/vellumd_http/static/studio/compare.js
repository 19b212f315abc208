// Before and after, one over the other, with a line between that can be dragged.

import { crisp, h, shaped } from "./dom.js";

/** A frame of `after` over `before`; without `before` just the picture. */
export function compare(before, after, text) {
  const result = crisp(h("img", { class: "after", src: after, alt: text }));
  const frame = shaped(h("div", { class: "compare" }), result);
  if (!before) {
    frame.append(result);
    return frame;
  }
  const original = crisp(h("img", { class: "before", src: before, alt: "" }));
  const line = h("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Before and after" });
  const cut = () => {
    frame.style.setProperty("--cut", `${line.value}%`);
    line.setAttribute("aria-valuetext", `${line.value} % before`);
  };
  line.addEventListener("input", cut);
  original.addEventListener("error", () => frame.replaceChildren(result)); // a format browsers do not draw
  frame.append(original, result, h("span", { class: "cut", "aria-hidden": "true" }),
    h("span", { class: "tag left", "aria-hidden": "true" }, "before"), h("span", { class: "tag right", "aria-hidden": "true" }, "after"), line);
  cut();
  return frame;
}
