// A photo and the square of it that is learned: moved with pointer or arrows, sized with the wheel, two fingers or plus
// and minus. Over it lies what was found to be the thing: the rest is dark, and a brush corrects it.
import { button, h } from "/studio/dom.js";
import { alphaOf } from "/studio/parts/brush.js";
import { correctMask } from "/studio/parts/mask_dialog.js";
import { t } from "/studio/texts.js";

const SHOWN = 320;
const MOST = 1024;
const ZOOM = 1.12;
const CLOSEST = 6;
const VEIL = "#0b0a09b8";

export class PhotoCrop {
  /** `photo`: a canvas, upright. `leave` is called when it is to go, `changed` when another part of it is learned. */
  constructor(photo, number, { leave, changed }) {
    this.photo = photo;
    this.changed = changed;
    this.part = "whole";
    this.mask = null; // a canvas whose alpha says what of the square is the thing
    this.corrected = false;
    this.fingers = new Map();
    this.side = Math.min(photo.width, photo.height);
    this.left = (photo.width - this.side) / 2;
    this.top = (photo.height - this.side) / 2;
    this.canvas = h("canvas", { width: SHOWN, height: SHOWN, tabindex: "0", role: "img", "aria-label": t("teach.photo.crop", { number }) });
    this.correct = button(t("teach.mask.correct", { number }), { sign: "brush", quiet: true, kind: "over-photo correct", hidden: true, on: () => this.openBrush(number) });
    this.state = h("span", { class: "photo-state", hidden: true });
    this.element = h("li", { class: "photo" }, this.canvas, button(t("teach.photo.remove", { number }), { sign: "close", quiet: true, kind: "over-photo leave", on: () => leave(this) }), this.correct, this.state);
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(event.deltaY > 0 ? ZOOM : 1 / ZOOM); }, { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  drag(event) {
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const move = (moved) => this.pull(moved);
    const end = (ended) => {
      this.fingers.delete(ended.pointerId);
      for (const type of ["pointerup", "pointercancel"]) this.canvas.removeEventListener(type, end);
      if (!this.fingers.size) this.canvas.removeEventListener("pointermove", this.move);
    };
    if (this.fingers.size === 1) {
      this.move = move;
      this.canvas.addEventListener("pointermove", move);
    }
    for (const type of ["pointerup", "pointercancel"]) this.canvas.addEventListener(type, end);
  }

  /** One finger moves the photo, two size it. */
  pull({ pointerId, clientX, clientY }) {
    if (!this.fingers.has(pointerId)) return;
    const before = [...this.fingers.values()];
    const [x, y] = this.fingers.get(pointerId);
    this.fingers.set(pointerId, [clientX, clientY]);
    const after = [...this.fingers.values()];
    if (after.length === 2) this.zoom(apart(before) / Math.max(1, apart(after)));
    else {
      const scale = this.side / this.canvas.getBoundingClientRect().width;
      this.place(this.left - (clientX - x) * scale, this.top - (clientY - y) * scale);
    }
  }

  key(event) {
    const step = this.side / 20;
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in ways) {
      event.preventDefault();
      this.place(this.left + ways[event.key][0], this.top + ways[event.key][1]);
    } else if (event.key === "+" || event.key === "-") {
      event.preventDefault();
      this.zoom(event.key === "-" ? ZOOM : 1 / ZOOM);
    }
  }

  /** Make the square larger or smaller about its middle. */
  zoom(factor) {
    const largest = Math.min(this.photo.width, this.photo.height);
    const side = Math.min(largest, Math.max(largest / CLOSEST, this.side * factor));
    const shift = (this.side - side) / 2;
    this.side = side;
    this.place(this.left + shift, this.top + shift);
  }

  /** Learn from this part. What was found in another part holds no longer. */
  place(left, top) {
    const before = this.part;
    this.left = Math.min(Math.max(left, 0), this.photo.width - this.side);
    this.top = Math.min(Math.max(top, 0), this.photo.height - this.side);
    this.part = [this.left, this.top, this.side].join();
    if (before !== this.part) {
      this.takeMask(null);
      this.changed();
    }
  }

  /** Show what of the square is the thing: a canvas with alpha; null while nobody knows. */
  takeMask(mask, { corrected = false, cover } = {}) {
    this.mask = mask;
    this.corrected = corrected;
    this.correct.hidden = !mask;
    this.say(corrected ? t("teach.mask.corrected") : mask && cover >= 1 ? t("teach.mask.nothing") : "");
    this.draw();
  }

  say(words) {
    this.state.hidden = !words;
    this.state.textContent = words;
  }

  /** Take what the server found: an address of a mask in grey, and how much of the square it covers. */
  async takeFinding({ mask, cover }) {
    const alpha = await alphaOf(mask);
    this.finding = { alpha, cover };
    this.takeMask(alpha, { cover });
  }

  async openBrush(number) {
    const mask = await correctMask(this.square(Math.round(Math.min(MOST, this.side))), this.mask, this.finding?.alpha, number);
    if (mask) this.takeMask(mask, { corrected: true });
    this.changed();
    this.correct.focus();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.photo, this.left, this.top, this.side, this.side, 0, 0, SHOWN, SHOWN);
    if (!this.mask) return;
    const veil = h("canvas", { width: SHOWN, height: SHOWN });
    const dark = veil.getContext("2d");
    dark.fillStyle = VEIL;
    dark.fillRect(0, 0, SHOWN, SHOWN);
    dark.globalCompositeOperation = "destination-out";
    dark.drawImage(this.mask, 0, 0, SHOWN, SHOWN);
    context.drawImage(veil, 0, 0);
  }

  square(side) {
    const canvas = h("canvas", { width: side, height: side });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.photo, this.left, this.top, this.side, this.side, 0, 0, side, side);
    return canvas;
  }

  /** The square as a file, no larger than is learned from. */
  file(name) { return pngOf(this.square(Math.round(Math.min(MOST, this.side))), name); }

  /** The mask as a file, light where the thing is, of the square's size. */
  maskFile(name) {
    const side = Math.round(Math.min(MOST, this.side));
    const canvas = h("canvas", { width: side, height: side });
    const context = canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, side, side);
    context.drawImage(this.mask, 0, 0, side, side);
    return pngOf(canvas, name);
  }
}

const apart = ([[x, y], [otherX, otherY]]) => Math.hypot(x - otherX, y - otherY);

async function pngOf(canvas, name) {
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  return new File([blob], name, { type: "image/png" });
}
