// Refreshes the main part of the page after an event of /ui/events, at most once per second. Without events, and to update
// relative times, the script refreshes the page every few seconds.
"use strict";
const LEAST = 1000, WITH_EVENTS = 30000, WITHOUT = 5000;
const sign = document.getElementById("live");
let events = null, live = false, last = Date.now(), waiting = null;

const main = () => document.getElementById("main");

function refresh() {
  waiting = null;
  // The page is hidden, or the user is selecting or typing.
  const field = document.activeElement;
  const typing = field?.matches("main input") && field.value !== field.defaultValue;
  const choosing = field?.matches("main select") || main().querySelector("input:checked");
  if (document.hidden || typing || choosing) return;
  last = Date.now();
  htmx.trigger(main(), "refresh");
}

function scheduleRefresh() {
  waiting ??= setTimeout(refresh, Math.max(0, last + LEAST - Date.now()));
}

function showState() {
  sign.textContent = live ? "live" : "every 5 s";
  sign.className = live ? "on" : "";
}

function listen() {
  const url = main().dataset.events;
  if (!url) return;
  // The browser reconnects with the id of the last event, unless the server refused the connection.
  events = new EventSource(url);
  const set = (now) => () => { live = now; showState(); };
  events.addEventListener("open", set(true));
  events.addEventListener("error", set(false));
  events.addEventListener("changed", scheduleRefresh);
}

function onVisibilityChange() {
  // Browsers limit the connections to a host, so hidden pages close theirs.
  events?.close();
  live = false;
  if (document.hidden) return;
  listen();
  scheduleRefresh();
}

if (main().hasAttribute("data-live")) {
  showState();
  listen();
  setInterval(() => { if (Date.now() - last >= (live ? WITH_EVENTS : WITHOUT)) refresh(); }, 1000);
  document.addEventListener("visibilitychange", onVisibilityChange);
}
