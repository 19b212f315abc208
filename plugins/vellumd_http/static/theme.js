// Before the first paint: the chosen theme, and that there is script at all.
"use strict";

document.documentElement.classList.add("js");
try {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage the system's choice counts.
}
