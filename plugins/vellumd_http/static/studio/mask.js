// Painting where a picture may change: white on black, as the daemon reads a mask.

import { button, dialog, h, icon } from "./dom.js";

const SIDE = 1536; // pixels of a mask's longer side; the daemon scales it to its picture
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The mask as a PNG, null for none, undefined where the dialog was closed without a decision. */
export async function paintMask(pictureUrl, maskUrl) {
  const picture = await loaded(pictureUrl);
  const scale = Math.min(1, SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
  const canvas = h("canvas", {
    width: Math.round(picture.naturalWidth * scale), height: Math.round(picture.naturalHeight * scale),
    tabIndex: 0, role: "img", "aria-label": "Mask. Arrow keys move the brush, space paints, E erases.",
  });
  const brush = new Brush(canvas);
  if (maskUrl) brush.begin(await loaded(maskUrl));
  return new Promise((resolve) => {
    const finish = (value) => { resolve(value); shown.close(); };
    const size = h("input", { type: "range", min: 2, max: 40, value: 12, oninput: () => { brush.share = size.value / 100; } });
    const erase = button("Erase", null, () => {
      brush.erasing = !brush.erasing;
      erase.setAttribute("aria-pressed", String(brush.erasing));
    }, { "aria-pressed": "false" });
    brush.onKey = (key) => key === "e" && erase.click();
    const use = async () => finish(brush.empty() ? null : await brush.blob());
    picture.alt = "";
    picture.className = picture.naturalWidth < 400 ? "crisp" : "";
    const board = h("div", { class: "board" }, picture, canvas, brush.cursor);
    const shown = dialog("Where may it change?", [
      board,
      h("div", { class: "line wrap" },
        h("label", { class: "line grow" }, "Brush ", size), erase,
        button("Undo", null, () => brush.undo()),
        button("Clear", null, () => brush.clear())),
      h("p", { class: "actions" }, button("Use the mask", null, use, { kind: "main" }),
        maskUrl ? button("Remove the mask", null, () => finish(null)) : null),
    ], "wide");
    board.style.setProperty("--ratio", canvas.width / canvas.height);
    brush.share = size.value / 100;
    canvas.focus();
    shown.addEventListener("close", () => resolve(undefined));
  });
}

function loaded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

/** Strokes on a canvas that shows the mask as a tint; `share` of the shorter side is its width. */
class Brush {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.share = 0.12;
    this.erasing = false;
    this.before = [];
    this.at = { x: canvas.width / 2, y: canvas.height / 2 };
    this.cursor = h("span", { class: "cursor", hidden: true }, icon("add"));
    this.onKey = () => {};
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  get width() {
    return Math.max(2, this.share * Math.min(this.canvas.width, this.canvas.height));
  }

  /** Take over a mask that was painted before. */
  begin(mask) {
    const { width, height } = this.canvas;
    this.context.drawImage(mask, 0, 0, width, height);
    const pixels = this.context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const white = pixels.data[i] > 127;
      pixels.data.set([255, 255, 255, white ? 255 : 0], i);
    }
    this.context.putImageData(pixels, 0, 0);
  }

  remember() {
    this.before.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.before.length > 8) this.before.shift();
  }

  undo() {
    const last = this.before.pop();
    if (last) this.context.putImageData(last, 0, 0);
  }

  clear() {
    this.remember();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  down(event) {
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor.hidden = true;
    this.remember();
    this.at = this.place(event);
    this.stroke(this.at);
    const move = (moved) => {
      for (const one of moved.getCoalescedEvents?.() ?? [moved]) this.stroke(this.place(one));
    };
    const up = () => this.canvas.removeEventListener("pointermove", move);
    this.canvas.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, up, { once: true });
  }

  key(event) {
    const way = KEYS[event.key];
    if (way) {
      const to = { x: this.at.x + (way[0] * this.width) / 2, y: this.at.y + (way[1] * this.width) / 2 };
      const inside = (value, end) => Math.min(Math.max(value, 0), end);
      this.at = { x: inside(to.x, this.canvas.width), y: inside(to.y, this.canvas.height) };
      this.cursor.hidden = false;
      this.cursor.style.left = `${(100 * this.at.x) / this.canvas.width}%`;
      this.cursor.style.top = `${(100 * this.at.y) / this.canvas.height}%`;
    } else if (event.key === " ") {
      this.remember();
      this.stroke(this.at);
    } else {
      return this.onKey(event.key.toLowerCase());
    }
    return event.preventDefault();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  stroke(to) {
    const { context } = this;
    context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineWidth = this.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this.at.x, this.at.y);
    context.lineTo(to.x, to.y + 0.01); // a line without length is not drawn
    context.stroke();
    this.at = to;
  }

  empty() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return false;
    return true;
  }

  /** White strokes on black. */
  blob() {
    const { width, height } = this.canvas;
    const made = h("canvas", { width, height });
    const context = made.getContext("2d");
    context.fillRect(0, 0, width, height);
    context.drawImage(this.canvas, 0, 0);
    return new Promise((resolve) => made.toBlob(resolve, "image/png"));
  }
}
