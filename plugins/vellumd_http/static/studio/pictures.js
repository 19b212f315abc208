// The pictures of the edit that is being made: taken, ordered, sent ahead.

import * as api from "./api.js";
import { $, button, crisp, h, icon, toast } from "./dom.js";
import { paintMask } from "./mask.js";
import { atNextPaint } from "./paint.js";

const most = Number(document.body.dataset.most);
let pictures = [];
let onChange = () => {};

/** How many there are. */
export const count = () => pictures.length;

/** Their names, for samples of commands. */
export const names = () => pictures.map((picture) => picture.name);

/** Take files; those beyond what an edit can have are left out and said. */
export function add(files) {
  const taken = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  const room = most - pictures.length;
  if (taken.length > room) toast(`An edit takes at most ${most} pictures.`, true);
  if (files.length && !taken.length) toast("This is no picture.", true);
  for (const file of taken.slice(0, room)) pictures.push(made(file));
  changed();
}

/** Put other pictures in place of those there are; `mask` belongs to the first. */
export function replace(files, mask = null) {
  pictures.forEach((picture) => URL.revokeObjectURL(picture.url));
  pictures = [...files].slice(0, most).map(made);
  if (mask && pictures.length) setMask(pictures[0], mask);
  changed();
}

function made(file) {
  const picture = { file, name: file.name || "picture.png", url: URL.createObjectURL(file), error: null };
  send(picture);
  return picture;
}

function send(picture) {
  picture.error = null;
  picture.sending = api.upload(picture.file).then(
    (kept) => Object.assign(picture, kept),
    (failure) => { picture.error = failure; },
  );
  picture.sending.then(drawSoon);
}

function setMask(picture, blob) {
  if (picture.mask) URL.revokeObjectURL(picture.mask.url);
  picture.mask = blob && { file: blob, url: URL.createObjectURL(blob) };
  if (picture.mask) send(picture.mask);
}

/**
 * `images` and `mask` of a request, once all of them have arrived. `anew` sends them again:
 * the daemon keeps what no job uses for an hour. Raises the failure of the first that did not.
 */
export async function references(anew = false) {
  const mask = pictures[0]?.mask;
  const all = mask ? [...pictures, mask] : pictures;
  all.filter((one) => anew || one.error?.code === "offline").forEach(send);
  await Promise.all(all.map((one) => one.sending));
  const bad = all.find((one) => one.error);
  if (bad) throw bad.error;
  const images = pictures.map((picture) => `sha256:${picture.sha256}`);
  return mask ? { images, mask: `sha256:${mask.sha256}` } : { images };
}

function move(index, by) {
  const [picture] = pictures.splice(index, 1);
  pictures.splice(index + by, 0, picture);
  changed();
  tiles()[index + by]?.querySelector(by < 0 ? ".back, .forth" : ".forth, .back")?.focus();
}

async function mask(picture) {
  const painted = await paintMask(picture.url, picture.mask?.url);
  if (painted === undefined) return; // closed without a decision
  setMask(picture, painted);
  changed();
}

/** Show what somebody did to them; an upload that ends is no such deed. */
function changed() {
  draw();
  onChange();
}

const tiles = () => [...$("pictures").querySelectorAll(".tile")];

function draw() {
  tiles().forEach((tile) => tile.remove());
  $("pick").before(...pictures.map(tile));
  $("pictures").classList.toggle("some", pictures.length > 0);
  $("pick").hidden = pictures.length >= most;
  $("pick").querySelector("b").textContent = pictures.length ? "Add" : "Add pictures";
}

const drawSoon = atNextPaint(draw);

function tile(picture, index) {
  const image = crisp(h("img", { src: picture.url, alt: `Picture ${index + 1}: ${picture.name}`, draggable: false }));
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "unseen" }, picture.name)));
  const place = `picture ${index + 1}`;
  const shown = h("div", { class: "tile", draggable: true, role: "group", "aria-label": `Picture ${index + 1}` },
    image,
    picture.mask && index === 0 ? h("img", { class: "masked", src: picture.mask.url, alt: "" }) : null,
    h("span", { class: "number" }, String(index + 1)),
    picture.error ? h("span", { class: "fault", role: "alert" }, picture.error.message) : null,
    button(`Remove ${place}`, "close", () => { pictures.splice(index, 1); URL.revokeObjectURL(picture.url); changed(); }, { round: true, class: "round remove" }),
    h("span", { class: "foot" },
      index > 0 ? button(`Move ${place} forward`, "left", () => move(index, -1), { round: true, class: "round back" }) : null,
      index < pictures.length - 1 ? button(`Move ${place} back`, "right", () => move(index, 1), { round: true, class: "round forth" }) : null,
      index === 0 && picture.width ? button(picture.mask ? "Change the mask" : "Paint a mask", "brush", () => mask(picture), { round: true, class: "round brush" }) : null,
      picture.width ? h("small", {}, `${picture.width}×${picture.height}`) : null));
  shown.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/x-picture", String(index)));
  shown.addEventListener("dragover", (event) => event.preventDefault());
  shown.addEventListener("drop", (event) => {
    const from = event.dataTransfer.getData("text/x-picture");
    if (from === "") return;
    event.preventDefault();
    event.stopPropagation();
    move(Number(from), index - Number(from));
  });
  return shown;
}

/** Let pictures come by choice, camera, drop and paste. */
export function start(whenChanged) {
  onChange = whenChanged;
  const pick = $("pick").querySelector("input");
  pick.required = false;
  const chosen = (event) => {
    add(event.target.files);
    event.target.value = "";
  };
  pick.addEventListener("change", chosen);
  const camera = h("input", { type: "file", accept: "image/*", capture: "environment", onchange: chosen });
  $("pictures").append(h("label", { class: "camera" }, icon("camera"), "Take a photo", camera));

  addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) add(event.clipboardData.files);
  });
  let depth = 0; // of the elements that a drag has entered
  const over = (by) => {
    depth = by ? depth + by : 0;
    document.body.classList.toggle("dropping", depth > 0);
  };
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => carriesFiles(event) && over(1));
  addEventListener("dragleave", (event) => carriesFiles(event) && over(-1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    over(0);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
  draw();
}
