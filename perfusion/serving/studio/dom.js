// Small helpers around the document: elements, announcements, notices, dialogs.
import { t } from "/studio/texts.js";

/** An element. `options`: attributes, `class`, `text`, `on` (listeners by event), and properties with a dot (`.value`). */
export function h(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") element.textContent = value;
    else if (key === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (key.startsWith(".")) element[key.slice(1)] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  draw: "M4 20l1.2-4.4L16.4 4.4a2 2 0 0 1 2.8 0l.4.4a2 2 0 0 1 0 2.8L8.4 18.800zM14 7l3 3",
  teach: "M3 8.5 12 4l9 4.5-9 4.500zM7 11v4.500c0 1.2 2.2 2.5 5 2.500s5-1.3 5-2.500V11M21 8.500V14",
  explore: "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  concepts: "M12 3l2.6 5.6 6.1.8-4.5 4.2 1.2 6L12 16.7 6.6 19.600l1.2-6L3.3 9.400l6.1-.8z",
  history: "M4 12a8 8 0 1 0 2.5-5.800M4 4v4h4M12 8v4.500l3 1.8",
  device: "M5 5h14v14H5zM9 9h6v6H9zM9 2v3M15 2v3M9 19v3M15 19v3M2 9h3M2 15h3M19 9h3M19 15h3",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  again: "M4 12a8 8 0 1 1 2.5 5.800M4 20v-4h4",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M15 9h.01M9 15h.01M12 12h.01",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 5v4M10 15v4",
  heart: "M12 20S4 15 4 9.300A4.3 4.3 0 0 1 12 7a4.3 4.3 0 0 1 8 2.300C20 15 12 20 12 20z",
  brush: "M14.5 4.5 19.5 9.5 11 18 6 13zM6 13c-2 1-1 4-3 6 3 .5 6 0 8-1",
  eraser: "M8 19l-4-4L14 5l6 6-8 8zM9 10l6 6M8 19h12",
  place: "M4 4h7v9H4zM13 11h7v9h-7z",
  more: "M12 5l1.5 4.500L18 11l-4.5 1.500L12 17l-1.5-4.500L6 11l4.5-1.500zM19 16l.6 1.8 1.8.6-1.8.6L19 21",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l4.5 4.5",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  key: "M14 10a5 5 0 1 0-3 4.600L13 17h3v3h4v-4z",
  edit: "M4 20l1-4L16 5l3 3L8 19z",
};

/** A drawn sign; it says nothing by itself. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with a sign and words; `quiet` shows the sign alone and says the words. */
export function button(words, { sign, kind = "", quiet = false, on, ...options } = {}) {
  const label = quiet ? { "aria-label": words, title: words } : {};
  return h(
    "button",
    { type: "button", class: `button ${kind} ${quiet ? "only-sign" : ""}`.trim(), ...label, ...options, on: on ? { click: on } : {} },
    sign && icon(sign), !quiet && h("span", { text: words }),
  );
}

let count = 0;

/** A name for an element that others point to. */
export function fresh(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}

/** A control with its label above and, where there is one, its meaning below. */
export function field(words, control, help) {
  control.id ||= fresh("field");
  const note = help && h("p", { class: "help", id: fresh("help"), text: help });
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: control.id, text: words }), control, note);
}

/** Say something to screen readers. */
export function announce(words) {
  const region = document.getElementById("announcer");
  if (!region) return;
  region.textContent = "";
  setTimeout(() => { region.textContent = words; }, 30);
}

/** A notice at the edge that goes by itself; `action` is {words, on}. */
export function notify(words, { action, bad = false, seconds = 8 } = {}) {
  const place = document.getElementById("notices");
  const notice = h("div", { class: `notice ${bad ? "bad" : ""}` }, h("p", { text: words }));
  const leave = () => notice.remove();
  if (action) notice.append(button(action.words, { kind: "text", on: () => { leave(); action.on(); } }));
  notice.append(button(t("close"), { sign: "close", quiet: true, kind: "text", on: leave }));
  place.append(notice);
  while (place.children.length > 3) place.firstChild.remove();
  announce(words);
  setTimeout(leave, seconds * 1000);
  return leave;
}

/** A dialog with a heading; closed by Escape. Returns its body, a function that closes it, and when it was closed. */
export function dialog(heading, { wide = false } = {}) {
  const title = h("h2", { id: fresh("title"), text: heading });
  const body = h("div", { class: "dialog-body" });
  const element = h(
    "dialog", { class: wide ? "wide" : "", "aria-labelledby": title.id },
    h("header", {}, title, button(t("close"), { sign: "close", quiet: true, kind: "text", on: () => element.close() })), body,
  );
  document.body.append(element);
  const closed = new Promise((resolve) => element.addEventListener("close", () => { element.remove(); resolve(); }));
  element.addEventListener("click", (event) => { if (event.target === element) element.close(); });
  element.showModal();
  return { body, close: () => element.close(), closed };
}

/** Let an element take dropped files; `files` gets them. */
export function dropZone(element, files) {
  let depth = 0;
  const over = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  element.addEventListener("dragenter", (event) => { if (over(event)) { depth += 1; element.classList.add("dropping"); } });
  element.addEventListener("dragleave", (event) => { if (over(event) && (depth -= 1) <= 0) element.classList.remove("dropping"); });
  element.addEventListener("dragover", (event) => { if (over(event)) event.preventDefault(); });
  element.addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    depth = 0;
    element.classList.remove("dropping");
    files([...event.dataTransfer.files]);
  });
}

/** What a list shows while it is empty: what it is for and what to do. */
export function emptyState(sign, heading, words, ...actions) {
  return h("div", { class: "empty" }, icon(sign), h("h2", { text: heading }), h("p", { text: words }), actions.length ? h("div", { class: "row" }, actions) : null);
}

/** The sentence of a failure, shown where it happened. */
export function failure(words) {
  return h("p", { class: "failure", role: "alert", text: words });
}
