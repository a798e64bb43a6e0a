// A part of a picture, painted: with the pointer, with a finger, or with the arrow keys. Strokes can be taken back.
import { button, h } from "/studio/dom.js";
import { slider } from "/studio/parts/sliders.js";
import { t } from "/studio/texts.js";

const INK = "#ff5a1f";
const VEIL = "#0b0a09b8";
const MOST_UNDO = 30;
const STEP = 0.04;

/** A layer to lay over a picture: the paint is coloured, or with `veil` all that is not painted is dark. */
export class Brush {
  /** `changed` is called after every stroke. */
  constructor(width, height, { label, veil = false, changed = () => {} }) {
    this.veil = veil;
    this.changed = changed;
    this.size = 0.12;
    this.erases = false;
    this.painted = false;
    this.past = [];
    this.mask = h("canvas", { width, height });
    this.canvas = h("canvas", { width, height, class: "brush", tabindex: "0", role: "application", "aria-label": label });
    this.cursor = h("span", { class: "brush-cursor", "aria-hidden": "true", hidden: true });
    this.element = h("div", { class: "brush-layer" }, this.canvas, this.cursor);
    this.at = [width / 2, height / 2];
    this.listen();
    this.show();
  }

  listen() {
    let last = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.remember();
      last = this.point(event);
      this.stroke(last, last, event.shiftKey);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.point(event);
      this.showCursor();
      if (!last) return;
      const next = this.at;
      this.stroke(last, next, event.shiftKey);
      last = next;
    });
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => { if (last) this.changed(); last = null; });
    canvas.addEventListener("pointerleave", () => { this.cursor.hidden = document.activeElement !== canvas; });
    canvas.addEventListener("focus", () => this.showCursor());
    canvas.addEventListener("blur", () => { this.cursor.hidden = true; });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** Arrows move the brush, Space paints where it is, Backspace takes away. */
  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      this.undo();
      return;
    }
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const spots = { " ": false, Backspace: true, Delete: true };
    if (event.key in ways) {
      const step = STEP * Math.min(this.mask.width, this.mask.height);
      const [x, y] = this.at;
      const [across, down] = ways[event.key];
      this.at = [Math.min(this.mask.width, Math.max(0, x + across * step)), Math.min(this.mask.height, Math.max(0, y + down * step))];
    } else if (event.key in spots) {
      this.remember();
      this.stroke(this.at, this.at, spots[event.key]);
      this.changed();
    } else return;
    event.preventDefault();
    this.showCursor();
  }

  point(event) {
    const area = this.canvas.getBoundingClientRect();
    this.at = [(event.clientX - area.left) * this.mask.width / area.width, (event.clientY - area.top) * this.mask.height / area.height];
    return this.at;
  }

  get width() { return this.size * Math.min(this.mask.width, this.mask.height); }

  stroke(from, to, takesAway = false) {
    const context = this.mask.getContext("2d");
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = "#fff";
    context.globalCompositeOperation = takesAway !== this.erases ? "destination-out" : "source-over";
    context.lineWidth = this.width;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(to[0] + (from[0] === to[0] && from[1] === to[1] ? 0.01 : 0), to[1]); // a line without length leaves no dot
    context.stroke();
    context.globalCompositeOperation = "source-over";
    this.painted = true;
    this.show();
  }

  remember() {
    this.past.push([this.copy(), this.painted]);
    if (this.past.length > MOST_UNDO) this.past.shift();
  }

  undo() {
    const [before, painted] = this.past.pop() ?? [];
    if (!before) return;
    this.put(before);
    this.painted = painted;
    this.changed();
  }

  /** Nothing painted, or all of it. */
  fill(all) {
    this.remember();
    const context = this.mask.getContext("2d");
    context.fillStyle = "#fff";
    if (all) context.fillRect(0, 0, this.mask.width, this.mask.height);
    else context.clearRect(0, 0, this.mask.width, this.mask.height);
    this.painted = all;
    this.show();
    this.changed();
  }

  /** What is painted becomes what is not. */
  invert() {
    this.remember();
    const before = this.copy();
    const context = this.mask.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, this.mask.width, this.mask.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(before, 0, 0);
    context.globalCompositeOperation = "source-over";
    this.painted = true;
    this.show();
    this.changed();
  }

  copy() {
    const copy = h("canvas", { width: this.mask.width, height: this.mask.height });
    copy.getContext("2d").drawImage(this.mask, 0, 0);
    return copy;
  }

  /** Take a mask over whose alpha says what is painted. */
  put(source) {
    const context = this.mask.getContext("2d");
    context.clearRect(0, 0, this.mask.width, this.mask.height);
    context.drawImage(source, 0, 0, this.mask.width, this.mask.height);
    this.painted = true;
    this.show();
  }

  show() {
    const { width, height } = this.mask;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (this.veil) {
      context.fillStyle = VEIL;
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "destination-out";
      context.drawImage(this.mask, 0, 0);
    } else {
      context.drawImage(this.mask, 0, 0);
      context.globalCompositeOperation = "source-in";
      context.fillStyle = INK;
      context.fillRect(0, 0, width, height);
    }
    context.globalCompositeOperation = "source-over";
  }

  showCursor() {
    this.cursor.hidden = false;
    const area = this.canvas.getBoundingClientRect();
    const scale = area.width / this.mask.width;
    const side = this.width * scale;
    Object.assign(this.cursor.style, { width: `${side}px`, height: `${side}px`, left: `${this.at[0] * scale - side / 2}px`, top: `${this.at[1] * scale - side / 2}px` });
  }

  /** What is painted as white on black. */
  white() {
    const canvas = h("canvas", { width: this.mask.width, height: this.mask.height });
    const context = canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.mask, 0, 0);
    return canvas;
  }
}

/** The buttons of a brush: paint or take away, how wide, one stroke back, nothing, the other way round. */
export function brushTools(brush) {
  const kinds = [false, true].map((erases) => button(t(erases ? "brush.erase" : "brush.paint"), { sign: erases ? "eraser" : "brush", kind: "toggle", "aria-pressed": String(brush.erases === erases), on: () => {
    brush.erases = erases;
    kinds.forEach((kind, place) => kind.setAttribute("aria-pressed", String(Boolean(place) === erases)));
  } }));
  const size = slider(t("brush.size"), { min: 0.02, max: 0.4, step: 0.01, value: brush.size, shown: (number) => t("percent", { number: Math.round(number * 100) }), on: (number) => { brush.size = number; } });
  return [
    h("div", { class: "row", role: "group", "aria-label": t("brush.kind") }, kinds), size.element,
    h("div", { class: "row" }, button(t("brush.undo"), { sign: "again", on: () => brush.undo() }), button(t("brush.none"), { sign: "close", on: () => brush.fill(false) }), button(t("brush.invert"), { sign: "theme", on: () => brush.invert() })),
  ];
}

/** A mask in grey as a canvas whose alpha is its light. */
export async function alphaOf(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = h("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let place = 0; place < pixels.data.length; place += 4) pixels.data.set([255, 255, 255, pixels.data[place]], place);
  context.putImageData(pixels, 0, 0);
  return canvas;
}
