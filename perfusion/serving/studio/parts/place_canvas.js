// Boxes for concepts over the canvas: drawn with the pointer, moved and sized with pointer or keys.
import { announce, button, h } from "/studio/dom.js";
import { hueOf, paint } from "/studio/store.js";
import { t } from "/studio/texts.js";

const LEAST = 0.08;
const STEP = 0.02;

const clamp = (number, low, high) => Math.min(Math.max(number, low), high);

/** `boxes`: {word: [left, top, right, bottom]} in shares of the canvas; `changed` is called with them. */
export class PlaceCanvas {
  constructor(changed) {
    this.boxes = {};
    this.words = [];
    this.changed = changed;
    this.canvas = h("div", { class: "place-canvas", role: "group", "aria-label": t("place.canvas") });
    this.bar = h("div", { class: "chips" });
    this.element = h("div", { class: "place" }, h("p", { class: "muted", text: t("place.help") }), this.bar, this.canvas);
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
  }

  /** Which concepts may be placed, and the shape of the canvas. */
  show(words, width = 1, height = 1) {
    this.words = words;
    this.canvas.style.aspectRatio = `${width} / ${height}`;
    this.canvas.style.setProperty("--shape", width / height);
    this.draw();
  }

  /** The boxes of the concepts that the prompt names; those of others wait until it names them again. */
  get placed() { return Object.entries(this.boxes).filter(([word]) => this.words.includes(word)); }

  /** Put a box for a concept where there is room: beside those that are there. */
  add(word) {
    const count = this.placed.length;
    const share = 1 / Math.max(2, this.words.length);
    const left = Math.min(count * share, 1 - share);
    this.set(word, [left, 0.1, left + share, 0.9].map((side) => Math.round(side * 1000) / 1000));
    this.canvas.querySelector(`[data-word="${CSS.escape(word)}"]`)?.focus();
  }

  set(word, box) {
    this.boxes[word] = box;
    this.draw();
    this.changed(this.boxes);
  }

  remove(word) {
    delete this.boxes[word];
    this.draw();
    this.changed(this.boxes);
    announce(t("place.removed", { word }));
  }

  draw() {
    const focused = document.activeElement?.dataset?.word;
    this.bar.replaceChildren(...this.words.map((word) => paint(button(word in this.boxes ? t("place.remove", { word }) : t("place.add", { word }), {
      kind: "chip-button", sign: word in this.boxes ? "close" : "plus", on: () => (word in this.boxes ? this.remove(word) : this.add(word)),
    }), word)));
    this.canvas.replaceChildren(...this.placed.map(([word, box]) => this.boxElement(word, box)));
    if (!this.words.length) this.canvas.append(h("p", { class: "muted place-empty", text: t("place.none") }));
    else if (!this.placed.length) this.canvas.append(h("p", { class: "muted place-empty", text: t("place.empty") }));
    if (focused) this.canvas.querySelector(`[data-word="${CSS.escape(focused)}"]`)?.focus();
  }

  boxElement(word, box) {
    const element = h("div", {
      class: "box", tabindex: "0", role: "group", "data-word": word, "aria-label": t("place.box", { word, ...percents(box) }),
      "aria-roledescription": t("place.role"), on: { keydown: (event) => this.key(event, word) },
    }, h("span", { text: word }), h("i", { class: "grip", "aria-hidden": "true" }));
    element.style.setProperty("--hue", hueOf(word));
    this.lay(element, box);
    return element;
  }

  lay(element, [left, top, right, bottom]) {
    Object.assign(element.style, { left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` });
  }

  /** A drag: on a box's grip sizes it, on a box moves it, beside all boxes draws one for the next concept. */
  begin(event) {
    if (event.button !== 0) return;
    const area = this.canvas.getBoundingClientRect();
    const at = (moved) => [clamp((moved.clientX - area.left) / area.width, 0, 1), clamp((moved.clientY - area.top) / area.height, 0, 1)];
    const [x, y] = at(event);
    let element = event.target.closest(".box");
    let word = element?.dataset.word;
    const drawing = !element;
    if (drawing) {
      word = this.words.find((each) => !(each in this.boxes));
      if (!word) return;
      element = this.boxElement(word, [x, y, x, y]);
      this.canvas.append(element);
    }
    event.preventDefault();
    element.focus();
    const first = this.boxes[word] ?? [x, y, x, y];
    const sizing = drawing || event.target.classList.contains("grip");
    let box = first;
    const move = (moved) => {
      const [toX, toY] = at(moved);
      if (drawing) box = [Math.min(x, toX), Math.min(y, toY), Math.max(x, toX), Math.max(y, toY)];
      else if (sizing) box = [first[0], first[1], clamp(first[2] + toX - x, first[0] + LEAST, 1), clamp(first[3] + toY - y, first[1] + LEAST, 1)];
      else box = shifted(first, toX - x, toY - y);
      this.lay(element, box);
    };
    const end = () => {
      this.canvas.removeEventListener("pointermove", move);
      this.canvas.removeEventListener("pointerup", end);
      this.canvas.removeEventListener("pointercancel", end);
      if (box[2] - box[0] < LEAST || box[3] - box[1] < LEAST) this.draw();
      else this.set(word, box.map((side) => Math.round(side * 1000) / 1000));
    };
    this.canvas.setPointerCapture?.(event.pointerId);
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
  }

  key(event, word) {
    const box = this.boxes[word];
    const ways = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove(word);
    } else if (event.key in ways) {
      event.preventDefault();
      const [x, y] = ways[event.key];
      const next = event.shiftKey ? [box[0], box[1], clamp(box[2] + x, box[0] + LEAST, 1), clamp(box[3] + y, box[1] + LEAST, 1)] : shifted(box, x, y);
      this.set(word, next.map((side) => Math.round(side * 1000) / 1000));
    }
  }
}

function shifted([left, top, right, bottom], x, y) {
  const dx = clamp(x, -left, 1 - right);
  const dy = clamp(y, -top, 1 - bottom);
  return [left + dx, top + dy, right + dx, bottom + dy];
}

function percents([left, top, right, bottom]) {
  return { left: Math.round(left * 100), top: Math.round(top * 100), right: Math.round(right * 100), bottom: Math.round(bottom * 100) };
}
