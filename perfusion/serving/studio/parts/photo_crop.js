// A photo and the square of it that is learned: moved with pointer or arrows, sized with the wheel or plus and minus.
import { button, h } from "/studio/dom.js";
import { t } from "/studio/texts.js";

const SHOWN = 320;
const MOST = 1024;
const ZOOM = 1.12;
const CLOSEST = 6;

export class PhotoCrop {
  /** `photo`: a canvas, upright. `leave` is called when it is to go. */
  constructor(photo, number, leave) {
    this.photo = photo;
    this.side = Math.min(photo.width, photo.height);
    this.left = (photo.width - this.side) / 2;
    this.top = (photo.height - this.side) / 2;
    this.canvas = h("canvas", { width: SHOWN, height: SHOWN, tabindex: "0", role: "img", "aria-label": t("teach.photo.crop", { number }) });
    this.element = h("li", { class: "photo" }, this.canvas, button(t("teach.photo.remove", { number }), { sign: "close", quiet: true, kind: "leave", on: () => leave(this) }));
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(event.deltaY > 0 ? ZOOM : 1 / ZOOM); }, { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  drag(event) {
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    const scale = this.side / this.canvas.getBoundingClientRect().width;
    const [left, top] = [this.left, this.top];
    const move = (moved) => this.place(left - (moved.clientX - event.clientX) * scale, top - (moved.clientY - event.clientY) * scale);
    const end = () => {
      this.canvas.removeEventListener("pointermove", move);
      this.canvas.removeEventListener("pointerup", end);
      this.canvas.removeEventListener("pointercancel", end);
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
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

  place(left, top) {
    this.left = Math.min(Math.max(left, 0), this.photo.width - this.side);
    this.top = Math.min(Math.max(top, 0), this.photo.height - this.side);
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.photo, this.left, this.top, this.side, this.side, 0, 0, SHOWN, SHOWN);
  }

  /** The square as a file, no larger than is learned from. */
  async file(name) {
    const side = Math.round(Math.min(MOST, this.side));
    const canvas = h("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(this.photo, this.left, this.top, this.side, this.side, 0, 0, side, side);
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
    return new File([blob], name, { type: "image/png" });
  }
}
