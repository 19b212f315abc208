// Trades a key or a one-time code, pasted or from a link, for a cookie that no script can read.
"use strict";

async function trade(secret, method, path) {
  const headers = { Authorization: `Bearer ${secret}` };
  const answer = await fetch(path, { method, headers });
  if (answer.ok) location.reload();
  else if (answer.status !== 401) tell(`Error ${answer.status}.`);
  else if (method === "PUT") tell("This link opens nothing: it is old, or was used before.");
  else tell("This key opens nothing here.");
}

const withKey = (key) => trade(key, "POST", "/v1/session");
const withCode = (code) => trade(code, "PUT", "/v1/session/code");

function tell(text) {
  const told = document.getElementById("told");
  if (told) told.textContent = text;
}

const given = new URLSearchParams(location.hash.slice(1));
if (given.has("key") || given.has("code")) {
  history.replaceState(null, "", location.pathname); // out of the address bar and the history
  if (given.has("key")) withKey(given.get("key"));
  else withCode(given.get("code"));
}
const form = document.getElementById("key");
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    withKey(new FormData(form).get("key").trim());
  });
}
