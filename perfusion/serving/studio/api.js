// Requests to the server, and what can go wrong with them.
import { t } from "/studio/texts.js";

/** An answer that is an error, as a sentence. `status` is 0 where there was no answer. */
export class ApiError extends Error {
  constructor(message, status, field = null) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

/** Tells "offline", "online" and "locked" (the key is missing). */
export const connection = new EventTarget();

let reachable = true;
let waiting = null;

/** Ask the server; the answer's JSON, with `blob` its bytes, or null where it has none. */
export async function ask(method, path, { json, form, signal, blob = false } = {}) {
  const options = { method, signal, credentials: "same-origin", headers: {} };
  if (json !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  } else if (form) {
    options.body = form;
  }
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    lose();
    throw new ApiError(t("error.unreachable"), 0);
  });
  find();
  if (response.status === 204) return null;
  if (blob && response.ok) return response.blob();
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  if (response.status === 401 && path !== "/api/login") connection.dispatchEvent(new Event("locked"));
  throw new ApiError(body?.error?.message ?? t("error.status", { status: response.status }), response.status, body?.error?.field ?? null);
}

export const get = (path, options) => ask("GET", path, options);
export const post = (path, json, options) => ask("POST", path, { json, ...options });
export const patch = (path, json) => ask("PATCH", path, { json });
export const remove = (path) => ask("DELETE", path);

/** Post files and fields as a form; a field that is a list is sent once for each of its items. */
export function upload(path, fields, options) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const item of Array.isArray(value) ? value : [value]) if (item !== undefined && item !== null) form.append(name, item);
  }
  return ask("POST", path, { form, ...options });
}

/** Follow a stream of events; `listeners` by event. Returns a function that ends it. */
export function follow(path, listeners, failed = () => {}) {
  const source = new EventSource(path);
  for (const [type, listener] of Object.entries(listeners)) {
    source.addEventListener(type, (event) => listener(event.data ? JSON.parse(event.data) : null));
  }
  source.addEventListener("error", () => failed(source.readyState === EventSource.CLOSED));
  return () => source.close();
}

function lose() {
  if (!reachable) return;
  reachable = false;
  connection.dispatchEvent(new Event("offline"));
  waiting = setInterval(() => { fetch("/readyz").then((response) => { if (response.ok) find(); }, () => {}); }, 1500);
}

function find() {
  if (reachable) return;
  reachable = true;
  clearInterval(waiting);
  connection.dispatchEvent(new Event("online"));
}
