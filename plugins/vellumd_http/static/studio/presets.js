// Presets: which there are, and saving what the fields say as one.

import * as api from "./api.js";
import { $, dialog, h, sure, toast } from "./dom.js";
import { fields } from "./compose.js";
import { look, on, state } from "./store.js";

const SHARED = ["steps", "true_cfg_scale", "size", "n", "seed", "negative_prompt", "tier", "loras", "output"];
const select = $("preset");
let own = new Set(); // those that a page may change

async function read() {
  const told = await api.presets();
  own = new Set(told.presets.filter((preset) => preset.origin === "saved").map((preset) => preset.name));
  draw();
}

function draw() {
  const names = Object.keys(state.capabilities?.presets ?? {});
  const there = [...select.options].map((option) => option.value);
  if (names.length && names.slice().sort().join() !== there.slice().sort().join()) {
    const first = state.capabilities.default_preset;
    const chosen = select.value;
    names.sort((a, b) => (b === first) - (a === first) || a.localeCompare(b));
    select.replaceChildren(...names.map((name) => h("option", {}, name)));
    choose(chosen, names.includes(chosen) ? chosen : first);
  }
  $("preset-save").hidden = false;
  $("preset-drop").hidden = !own.has(select.value);
}

/** Choose another preset as a hand would, so that the form hears of it. */
function choose(before, name) {
  select.value = name;
  if (name !== before) select.dispatchEvent(new Event("input", { bubbles: true }));
}

/** The fields of a preset: what is chosen now over what the present one says. */
function chosen() {
  const given = fields();
  const base = state.capabilities.presets[select.value] ?? {};
  const changed = Object.fromEntries(SHARED.filter((name) => given[name]).map((name) => [name, given[name]]));
  return { ...base, ...changed };
}

function save() {
  const prompt = fields().prompt;
  const name = h("input", { id: "preset-name", required: true, maxLength: 64, autocomplete: "off", placeholder: "winter" });
  const along = h("input", { type: "checkbox", id: "preset-prompt" });
  const trouble = h("p", { class: "trouble", role: "alert", hidden: true });
  const form = h("form", { method: "dialog" },
    h("p", { class: "field" }, h("label", { htmlFor: "preset-name" }, "Name"), name),
    prompt ? h("p", {}, h("label", { class: "line" }, along, `With the instruction “${prompt.slice(0, 60)}”`)) : null,
    trouble,
    h("p", { class: "actions" }, h("button", { class: "main" }, "Save")));
  const shown = dialog("Save as preset", form, "small");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await api.savePreset(name.value, { ...chosen(), ...(along.checked ? { prompt } : {}) });
      await Promise.all([look(), read()]);
      choose(select.value, name.value);
      draw();
      shown.close();
      toast(`Preset ${name.value} is saved.`);
    } catch (failure) {
      trouble.textContent = failure.message;
      trouble.hidden = false;
    }
  });
  name.addEventListener("input", () => { trouble.hidden = true; });
  name.focus();
}

async function drop() {
  const name = select.value;
  if (!(await sure("Delete this preset?", `Jobs made with ${name} stay.`, "Delete"))) return;
  try {
    await api.dropPreset(name);
    await Promise.all([look(), read()]);
  } catch (failure) {
    toast(failure.message, true);
  }
}

export function start() {
  $("preset-save").addEventListener("click", save);
  $("preset-drop").addEventListener("click", drop);
  select.addEventListener("change", draw);
  on("capabilities", draw);
  on("link", () => state.linked && read().catch(() => {})); // it is read again with the next link
}
