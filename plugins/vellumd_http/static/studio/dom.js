// Making elements; nothing here ever parses a text as HTML.

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** An element: `on…` are listeners, the rest are properties, or attributes where it has none. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element with attributes. */
export function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** One of the page's symbols. */
export const icon = (name) => svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

/** A button with an icon and a text, or a round one with the text as its name. */
export function button(text, name, onclick, { round = false, kind = "plain", ...rest } = {}) {
  const inside = round ? [icon(name)] : [name ? icon(name) : null, text];
  const named = round ? { title: text, "aria-label": text } : {};
  return h("button", { type: "button", class: round ? "round" : kind, onclick, ...named, ...rest }, inside);
}

/** Have a control do nothing until `act` is done. Disabled, it would lose the focus. */
export async function once(control, act) {
  if (control.hasAttribute("aria-disabled")) return;
  control.setAttribute("aria-disabled", "true");
  try {
    await act();
  } finally {
    control.removeAttribute("aria-disabled");
  }
}

/** Let the frame of a picture have its shape. */
export function shaped(frame, image) {
  image.addEventListener("load", () => frame.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight));
  return frame;
}

/** 128 random bits in hex; `crypto.randomUUID` exists on secure origins alone. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Say something that needs no answer; it goes away by itself, or for the next one. */
export function toast(text, trouble = false) {
  const shown = h("p", { class: trouble ? "toast trouble" : "toast" }, text);
  $("toasts").replaceChildren(shown);
  setTimeout(() => shown.remove(), trouble ? 8000 : 4000);
}

/** A modal dialog with a heading and a way out; it is gone once it is closed. */
export function dialog(title, content, className = "") {
  const close = button("Close", "close", () => shown.close(), { round: true });
  const heading = h("h2", { id: "dialog-title" }, title);
  const shown = h("dialog", { class: className, "aria-labelledby": "dialog-title", onclose: () => shown.remove() },
    h("header", { class: "line" }, heading, close), content);
  shown.addEventListener("click", (event) => {
    if (event.target === shown) shown.close();
  });
  document.body.append(shown);
  shown.showModal();
  return shown;
}

/** Ask before something that cannot be undone; true for yes. */
export function sure(title, text, yes) {
  return new Promise((resolve) => {
    const go = button(yes, null, () => { resolve(true); shown.close(); }, { kind: "main danger" });
    const stay = button("Keep", null, () => shown.close());
    const shown = dialog(title, [h("p", {}, text), h("p", { class: "actions" }, go, stay)], "small");
    shown.addEventListener("close", () => resolve(false));
    stay.focus();
  });
}

/** Small pictures keep their pixels crisp when they are shown at twice their size or more. */
export function crisp(image) {
  const look = () => image.classList.toggle("crisp", image.naturalWidth > 0 && 2 * image.naturalWidth <= image.clientWidth * devicePixelRatio);
  image.addEventListener("load", () => requestAnimationFrame(look));
  return image;
}
