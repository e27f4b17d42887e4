// Draws what /api/events sends. Text only ever goes in as text: names and errors come from outside.
"use strict";

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function count(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);

/** What is wrong, worst first: {bad, what, error, hint}. */
function troubles(status) {
  const found = [];
  const add = (bad, what, { error, hint }) => found.push({ bad, what, error, hint });
  if (status.postgres_error) add(true, "Postgres", status.postgres_error);
  if (status.blocked) add(true, "Nothing is sent to KV", status.blocked);
  if (status.polling) add(false, "Changes are polled, not notified", status.polling);
  for (const sync of status.syncs) {
    if (sync.triggers_error) add(true, `${sync.name}: changes are not recorded`, sync.triggers_error);
    if (sync.hold) add(true, `${sync.name} is on hold`, sync.hold);
    if (sync.deletes_held) add(false, `${sync.name}: deletes are on hold`, sync.deletes_held);
    if (sync.dead_letters.length > 0) {
      const keys = sum(sync.dead_letters, (letter) => letter.keys);
      const reasons = sync.dead_letters.map((letter) => `${letter.reason} (${whole.format(letter.keys)})`);
      add(false, `${sync.name}: ${count(keys, "key")} cannot be written`, {
        error: reasons.join(", "),
        hint: "`pg2kv dead-letters list` says why; a better row takes its key out again",
      });
    }
  }
  return found.sort((a, b) => b.bad - a.bad);
}

function verdict(status, found) {
  const age = status.oldest_unwritten_change_age_seconds;
  if (status.phase === "standby") {
    return ["good", "Standing by", "Another process leads; this one takes over if it goes."];
  }
  if (status.phase !== "leading") {
    const title = status.phase === "starting" ? "Looking for Postgres" : "Stopping";
    return [found.length > 0 ? "bad" : "warn", title, "Nothing is lost: what is not in KV waits in Postgres."];
  }
  const wrong = found.filter((trouble) => trouble.bad).length;
  if (wrong > 0) {
    const waiting = age === null ? "Nothing waits." : `The oldest change has waited ${duration(age)}.`;
    return ["bad", `${count(wrong, "thing is", "things are")} in the way`, `Nothing is lost. ${waiting}`];
  }
  const filling = status.syncs.filter((sync) => sync.backfill).length;
  const rest = found.length > 0 ? "Some keys need a look; see below." : "";
  if (filling > 0) return ["warn", `Backfilling ${count(filling, "sync")}`, `Live changes flow meanwhile. ${rest}`];
  if (age !== null && age > 30) return ["warn", "Catching up", `The oldest change has waited ${duration(age)}. ${rest}`];
  const title = age === null ? "KV says what Postgres says" : "Changes are flowing";
  return [found.length > 0 ? "warn" : "good", title, rest];
}

function number(name, text) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, text));
}

function numbers(status) {
  const age = status.oldest_unwritten_change_age_seconds;
  const left = status.budget_left_requests;
  return [
    number("Oldest unwritten change", age === null ? "none" : duration(age)),
    number("Written, last minute", `${whole.format(status.written_per_second)} /s`),
    number("Keys waiting", whole.format(status.queue_keys)),
    number("In flight", whole.format(status.in_flight_keys)),
    number("In doubt", whole.format(status.doubt_keys)),
    number("Requests left", left === null ? "no limit" : whole.format(left)),
  ];
}

function state(sync, status) {
  if (sync.triggers_error) return ["bad", "not recorded"];
  if (sync.hold) return ["bad", "on hold"];
  if (status.blocked) return ["bad", "blocked"];
  if (sync.deletes_held) return ["warn", "deletes held"];
  if (sync.backfill) return ["warn", "backfill"];
  return ["good", "flowing"];
}

function backfill(progress) {
  if (!progress) return null;
  const { done_rows: done, estimate_rows: estimate, phase, left_seconds: eta } = progress;
  const box = element("div");
  if (phase === "keys") {
    box.append(element("progress", { "aria-label": "looking for left-over keys" }), "looking for left-over keys");
    return box;
  }
  const bar = { "aria-label": "rows done", max: Math.max(estimate ?? done, done, 1), value: done };
  if (estimate === null) delete bar.value;
  const of = estimate === null ? "" : ` of about ${whole.format(estimate)}`;
  const left = eta === null ? "" : `, ${duration(eta)} left`;
  box.append(element("progress", bar), element("span", { class: "soft" }, `${whole.format(done)}${of}${left}`));
  return box;
}

function row(sync, status) {
  const [kind, word] = state(sync, status);
  const dead = sum(sync.dead_letters, (letter) => letter.keys);
  const cell = (name, text, kind = "number") => element("td", { class: kind, "data-name": name }, text);
  const filling = backfill(sync.backfill);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, sync.name),
    cell("State", element("span", { class: `state ${kind}` }, word), ""),
    cell("Waiting", whole.format(sync.waiting_keys)),
    cell("Written", whole.format(sync.written_pairs)),
    cell("Dead letters", whole.format(dead)),
    filling === null ? element("td", { "data-name": "Backfill" }) : cell("Backfill", filling, ""),
  );
}

function recent(event) {
  const at = new Date(event.at_unix_seconds * 1000);
  const time = element("time", { datetime: at.toISOString() }, at.toLocaleTimeString());
  const times = event.times > 1 ? ` (${whole.format(event.times)} times)` : "";
  const what = event.sync === null ? event.what : `${event.sync}: ${event.what}`;
  const line = element("li", {}, time, element("strong", {}, what + times), element("div", {}, event.error));
  if (event.hint !== null) line.append(element("div", { class: "hint" }, event.hint));
  return line;
}

function draw(status) {
  const epoch = status.epoch === null ? "" : `, epoch ${status.epoch}`;
  byId("who").textContent = `${status.holder} · ${status.phase}${epoch}`;
  byId("version").textContent = `pg2kv ${status.version}`;
  const found = troubles(status);
  const [kind, title, detail] = verdict(status, found);
  document.title = `${title} · pg2kv`;
  byId("verdict").className = kind;
  // Only news is written, or a screen reader would repeat it each second.
  for (const [id, text] of [["verdict-title", title], ["verdict-detail", detail]]) {
    if (byId(id).textContent !== text) byId(id).textContent = text;
  }
  byId("troubles").hidden = found.length === 0;
  byId("troubles-list").replaceChildren(
    ...found.map(({ bad, what, error, hint }) => {
      const item = element("li", bad ? { class: "bad" } : {}, element("strong", {}, what), element("div", {}, error));
      if (hint) item.append(element("div", { class: "hint" }, hint));
      return item;
    }),
  );
  byId("numbers").replaceChildren(...numbers(status));
  const standby = status.phase === "standby" || status.syncs.length === 0;
  byId("syncs").closest("table").hidden = standby;
  byId("syncs-none").hidden = !standby;
  byId("syncs-none").textContent = "The process that leads shows them.";
  byId("syncs").replaceChildren(...status.syncs.map((sync) => row(sync, status)));
  byId("recent").replaceChildren(...status.recent.map(recent));
  byId("recent-none").hidden = status.recent.length > 0;
}

const events = new EventSource("/api/events");
events.addEventListener("status", (event) => {
  byId("link").textContent = "live";
  draw(JSON.parse(event.data));
});
events.addEventListener("error", () => {
  byId("link").textContent = "connection lost, trying again …";
});
