// Fetches the main part of the page again after an event of /ui/events, at most once a second. Without events, and
// for relative times, which have no events, it fetches every few seconds.
"use strict";
const LEAST = 1000, WITH_EVENTS = 30000, WITHOUT = 5000;
const sign = document.getElementById("live");
let events = null, live = false, last = Date.now(), waiting = null;

const main = () => document.getElementById("main");

function refresh() {
  waiting = null;
  // The page is hidden, or the user is choosing or typing.
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
  // An EventSource reconnects by itself, with the id of the last event, unless it was refused.
  events = new EventSource(url);
  const set = (now) => () => { live = now; showState(); };
  events.addEventListener("open", set(true));
  events.addEventListener("error", set(false));
  events.addEventListener("changed", scheduleRefresh);
}

function onVisibilityChange() {
  // Browsers keep few connections to a host, so hidden pages hold none.
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
