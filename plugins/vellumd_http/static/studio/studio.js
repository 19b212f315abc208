// The page: its parts, its tabs on a phone, its banner, its theme.

import { $, h } from "./dom.js";
import * as compose from "./compose.js";
import * as engine from "./engine.js";
import * as jobs from "./jobs.js";
import { invite } from "./phone.js";
import * as presets from "./presets.js";
import * as stage from "./stage.js";
import { on, start, state } from "./store.js";

const GRACE_MS = 400; // a break shorter than this is not worth a banner

function tabs() {
  const { tab } = document.body.dataset;
  for (const button of document.querySelectorAll(".tabs button")) {
    if (button.dataset.tab === tab) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
}

function banner(text, ...more) {
  $("banner").hidden = !text;
  $("banner").replaceChildren(...(text ? [text, ...more] : []));
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // Without storage it holds until the page is left.
  }
}

let signedOut = false;
let breaking;

for (const part of [compose, stage, jobs, engine, presets]) part.start();
document.querySelector(".tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("button")?.dataset.tab;
  if (!tab) return;
  document.body.dataset.tab = tab;
  tabs();
  scrollTo(0, 0);
});
addEventListener("tab", () => { tabs(); scrollTo(0, 0); });
tabs();
$("theme").addEventListener("click", theme);
$("phone").addEventListener("click", invite);
on("link", () => {
  clearTimeout(breaking);
  if (state.linked) banner("");
  else breaking = setTimeout(() => signedOut || banner("The daemon does not answer. Trying again; nothing on this page is lost."), GRACE_MS);
});
addEventListener("signed-out", () => {
  signedOut = true;
  banner("The key that this page came in with opens nothing any more. ", h("a", { href: "/" }, "Sign in"));
});
start();
performance.mark("interactive"); // for tests/bench/studio.py
