// What several rooms share: the concepts, the device, and news of other tabs.
import { get } from "/studio/api.js";

const HUES = [25, 250, 145, 305, 75, 200, 350, 110];

/** Tells "concepts", "device" and "pictures" when they have changed, here or in another tab. */
export const news = new EventTarget();

export const store = { concepts: [], device: null };

const channel = "BroadcastChannel" in window ? new BroadcastChannel("perfusion-studio") : null;
channel?.addEventListener("message", ({ data }) => {
  if (data === "concepts") loadConcepts();
  else news.dispatchEvent(new Event(data));
});

export async function loadConcepts() {
  store.concepts = await get("/api/concepts");
  news.dispatchEvent(new Event("concepts"));
  return store.concepts;
}

export async function loadDevice() {
  store.device = await get("/api/device");
  news.dispatchEvent(new Event("device"));
  return store.device;
}

/** Say in every tab that something has changed: "concepts" or "pictures". */
export async function changed(what) {
  channel?.postMessage(what);
  if (what === "concepts") await loadConcepts();
  else news.dispatchEvent(new Event(what));
}

export const conceptOf = (word) => store.concepts.find((concept) => concept.word === word);

/** The colour of a concept, the same in every room: its hue in degrees. */
export function hueOf(word) {
  const place = store.concepts.findIndex((concept) => concept.word === word);
  if (place >= 0) return HUES[place % HUES.length];
  return [...word].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 0);
}

/** Colour an element as a concept's. */
export function paint(element, word) {
  element.style.setProperty("--hue", hueOf(word));
  return element;
}

/** A value that outlives the page, where the browser lets it. */
export const kept = {
  read(name, fallback) {
    try {
      return JSON.parse(localStorage.getItem(`perfusion.${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  write(name, value) {
    try {
      localStorage.setItem(`perfusion.${name}`, JSON.stringify(value));
    } catch { /* a private window; the page works without */ }
  },
};
