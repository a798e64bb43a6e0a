// The frame of the page: the rooms, the way between them, the key, the theme, and what happens when the server goes away.
import { connection, post } from "/studio/api.js";
import { announce, button, dialog, field, h, icon, notify } from "/studio/dom.js";
import { kept, loadConcepts, loadDevice, news } from "/studio/store.js";
import { t } from "/studio/texts.js";

const ROOMS = ["draw", "teach", "explore", "concepts", "history", "device"];
const THEMES = ["auto", "light", "dark"];

const main = h("main", { id: "main", tabindex: "-1" });
const links = Object.fromEntries(ROOMS.map((name) => [name, h("a", { href: `#${name}` }, icon(name), h("span", { text: t(`room.${name}`) }))]));
const banner = h("div", { class: "banner", role: "status", hidden: true, text: t("offline") });
const places = {};
let current = null;

function frame() {
  const theme = button(t("theme"), { sign: "theme", quiet: true, kind: "text", on: turnTheme });
  const rail = h(
    "nav", { class: "rail", "aria-label": t("rooms") },
    h("a", { class: "brand", href: "#draw", "aria-label": t("title") }, h("img", { src: "/studio/icon.svg", alt: "" })),
    h("ul", {}, ROOMS.map((name) => h("li", {}, links[name]))),
    h("div", { class: "rail-foot" }, theme),
  );
  document.getElementById("app").replaceChildren(
    h("a", { class: "skip", href: "#main", text: t("skip"), on: { click: (event) => { event.preventDefault(); main.focus(); } } }),
    banner, h("div", { class: "frame" }, rail, main),
    h("div", { id: "announcer", class: "unseen", role: "status", "aria-live": "polite" }),
    h("section", { id: "notices", "aria-label": t("notices") }),
  );
}

function turnTheme() {
  const next = THEMES[(THEMES.indexOf(kept.read("theme", "auto")) + 1) % THEMES.length];
  kept.write("theme", next);
  showTheme();
  announce(t(`theme.${next}`));
}

function showTheme() {
  const theme = kept.read("theme", "auto");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Show the room that the address names. A room is made once and keeps its state. */
async function enter() {
  const [name, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
  const room = ROOMS.includes(name) ? name : "draw";
  places[room] ??= import(`/studio/rooms/${room}.js`).then((module) => {
    const element = h("section", { class: `room room-${room}`, "aria-label": t(`room.${room}`) });
    return { element, ...module.open(element, { go }) };
  });
  current = room;
  for (const [other, link] of Object.entries(links)) {
    if (other === room) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = await places[room].catch(() => null);
  if (current !== room) return;
  if (!place) {
    delete places[room];
    main.replaceChildren(h("div", { class: "room" }, h("p", { class: "failure", role: "alert", text: t("error.unreachable") }), button(t("retry"), { sign: "again", on: enter })));
    return;
  }
  document.title = `${t(`room.${room}`)} · ${t("title")}`;
  const changed = main.firstElementChild !== place.element;
  if (changed) main.replaceChildren(place.element);
  place.enter?.(rest.join("/"));
  if (changed) {
    scrollTo(0, 0);
    announce(t(`room.${room}`));
  }
}

/** Go to a room; `what` is handed to it, such as settings to draw with. */
async function go(room, what) {
  location.hash = room;
  if (what !== undefined) {
    await enter();
    (await places[room]).take?.(what);
  }
}

let asking = false;

/** Ask for the key, once, and go on when the server takes it. */
async function askForKey() {
  if (asking) return;
  asking = true;
  const { body, close, closed } = dialog(t("login.title"));
  const input = h("input", { type: "password", autocomplete: "current-password", required: true });
  const wrong = h("div", {});
  const form = h("form", {}, h("div", { class: "dialog-body" }, h("p", { class: "muted", text: t("login.words") }), field(t("login.key"), input), wrong, h("button", { class: "button primary large", text: t("login.enter") })));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("/api/login", { key: input.value });
      asking = false;
      close();
      begin();
    } catch (error) {
      wrong.replaceChildren(h("p", { class: "failure", role: "alert", text: error.message }));
      input.select();
    }
  });
  body.replaceWith(form);
  input.focus();
  await closed;
  asking = false;
}

async function begin() {
  const failed = (error) => { if (error.status !== 401) notify(error.message, { bad: true }); };
  await Promise.all([loadConcepts().catch(failed), loadDevice().catch(failed)]);
  news.dispatchEvent(new Event("begin"));
}

document.addEventListener("keydown", (event) => {
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const room = ROOMS[Number(event.key) - 1];
  if (room) {
    event.preventDefault();
    location.hash = room;
  }
});
// A file that is dropped beside every place for it would replace the page.
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => { if (!event.defaultPrevented) event.preventDefault(); });
connection.addEventListener("offline", () => { banner.hidden = false; announce(t("offline")); });
connection.addEventListener("online", () => { banner.hidden = true; announce(t("online")); begin(); });
connection.addEventListener("locked", askForKey);
addEventListener("hashchange", enter);

showTheme();
frame();
enter();
begin();
