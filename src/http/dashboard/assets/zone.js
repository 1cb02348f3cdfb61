// Adds times in the time zone of the browser. Without this script, times are in UTC, and slots in the zone of their schedule.
"use strict";
{
const day = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short" });
const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });

function here(time) {
  const at = new Date(time.dateTime);
  const name = zone.formatToParts(at).find((part) => part.type === "timeZoneName").value;
  return [day.format(at), name];
}

function say(time) {
  const [said, name] = here(time), text = `${said} ${name}`;
  if (!time.title.startsWith(text)) time.title = `${text}, ${time.title}`;
  const yours = time.nextElementSibling;
  if (!yours?.matches(".yours") || time.textContent.startsWith(said)) return;
  if (yours.textContent !== text) yours.textContent = text;
}

const sayAll = () => document.querySelectorAll("time").forEach(say);
new MutationObserver(sayAll).observe(document.body, { subtree: true, childList: true, characterData: true });
sayAll();
}
