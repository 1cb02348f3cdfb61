// Keyboard shortcuts of all pages, and the list of them. The browser closes the list at Escape, and then returns the
// focus. Users of speech input can disable the shortcuts: <https://www.w3.org/WAI/WCAG22/Understanding/character-key-shortcuts>.
"use strict";
{
const SETTING = "sync-operator-shortcuts", SEQUENCE = 1500;
const list = document.getElementById("keys"), enabled = document.getElementById("keys-on");
const help = document.getElementById("help");
const field = () => document.querySelector("main input[type=search]");
let sequence = -SEQUENCE;

function search() {
  if (field()) { field().focus(); field().select(); } else follow("r", "#text");
}

function follow(key, part = "") {
  const link = [...document.querySelectorAll("nav a")].find((link) => link.dataset.key === key);
  if (link) location.assign(link.href + part);
}

function onKey(event) {
  const isText = event.target.matches("select, textarea, input:not([type=checkbox], [type=radio])");
  if (!enabled.checked || list.open || isText || event.ctrlKey || event.altKey || event.metaKey) return;
  const isSecond = event.timeStamp - sequence < SEQUENCE;
  sequence = -SEQUENCE;
  if (isSecond) follow(event.key);
  else if (event.key === "g") sequence = event.timeStamp;
  else if (event.key === "?") list.showModal();
  else if (event.key === "/") search();
  else return;
  event.preventDefault();
}

// Browsers without storage keep the setting for the page only.
function stored(write) {
  try { return write ? localStorage.setItem(SETTING, write) : localStorage.getItem(SETTING); } catch { return null; }
}

enabled.checked = stored() !== "off";
enabled.addEventListener("change", () => stored(enabled.checked ? "on" : "off"));
help.hidden = false;
help.addEventListener("click", () => list.showModal());
list.querySelector("button").addEventListener("click", () => list.close());
document.addEventListener("keydown", onKey);
if (location.hash === "#text") field()?.focus();
}
