// The engine's card: what is loaded, how it is, and the switch.

import * as api from "./api.js";
import { $, button, h, toast } from "./dom.js";
import { atNextPaint } from "./paint.js";
import { on, state, taken } from "./store.js";

const WORDS = { loading: "Loading", ready: "Ready", restarting: "Restarting", failed: "Failed", unloaded: "Unloaded" };

function draw() {
  const told = state.capabilities;
  if (!told) return;
  const { engine } = told;
  const rows = {
    Tier: told.tiers.join(", ") || null,
    Device: engine.capabilities?.device,
    Memory: memory(engine.capabilities),
    Speed: state.rate ? `${state.rate.toFixed(state.rate < 10 ? 2 : 0)} steps/s` : null,
    Restarts: engine.restarts || null,
  };
  const focused = document.activeElement?.closest("#engine") && document.activeElement.id;
  $("engine").replaceChildren(...[
    h("header", { class: "line" }, h("h2", { id: "engine-title" }, told.model),
      h("span", { class: `lamp ${engine.state}`, role: "status" }, stateText(told))),
    engine.of && !engine.loaded ? h("progress", { max: engine.of, value: engine.done, "aria-label": engine.phase || "Loading" }) : null,
    engine.reason && engine.state !== "ready" ? h("p", { class: engine.state === "failed" ? "trouble" : "muted" }, engine.reason) : null,
    h("dl", {}, Object.entries(rows).filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
    ...(engine.capabilities?.notes ?? []).filter((note) => note !== told.note).map((note) => h("p", { class: "muted" }, note)),
    ...doors(told.doors),
    h("p", { class: "actions" }, switchOf(engine)),
  ].filter(Boolean));
  if (focused) $(focused)?.focus();
}

function stateText({ engine, queue }) {
  if (engine.state === "ready" && queue.running) return "Working";
  if (engine.warming) return `${WORDS.ready}, warming up`;
  const phase = engine.state === "loading" && engine.phase ? `: ${engine.phase}` : "";
  return (WORDS[engine.state] ?? engine.state) + phase;
}

/** What a loaded engine tells of its memory, in whatever words it has. */
function memory(capabilities) {
  const plan = capabilities?.memory ?? capabilities?.plan;
  if (!plan) return null;
  if (typeof plan !== "object") return plan;
  return Object.entries(plan).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
}

function doors(shown) {
  return Object.entries(shown ?? {}).filter(([, door]) => !door.ok).map(([name, door]) => h("p", { class: "trouble" }, `${name}: ${door.text}`));
}

function switchOf(engine) {
  const way = engine.state === "unloaded" || engine.state === "failed" ? "load" : "unload";
  const text = { load: engine.state === "failed" ? "Try again" : "Load", unload: "Unload" }[way];
  const turn = async () => {
    try {
      taken(await api.setEngine(way));
    } catch (failure) {
      toast(failure.message, true);
    }
  };
  return button(text, null, turn, { id: "engine-switch" });
}

export function start() {
  $("engine").append(h("h2", { id: "engine-title" }, "Engine"));
  const soon = atNextPaint(draw);
  on("capabilities", soon);
  on("jobs", soon);
}
