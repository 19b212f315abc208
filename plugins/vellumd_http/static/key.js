// Trades a key, pasted or from a link's #key=, for a cookie that no script can read.
"use strict";

async function trade(key) {
  const answer = await fetch("/v1/session", {
    method: "POST",
    headers: { Authorization: `Bearer ${key}` },
  });
  if (answer.ok) location.reload();
  else tell(answer.status === 401 ? "This key opens nothing here." : `Error ${answer.status}.`);
}

function tell(text) {
  const told = document.getElementById("told");
  if (told) told.textContent = text;
}

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  history.replaceState(null, "", location.pathname); // out of the address bar and the history
  trade(given);
}
const form = document.getElementById("key");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    trade(new FormData(form).get("key").trim());
  });
}
