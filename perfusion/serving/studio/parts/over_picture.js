// A picture to draw over, and a brush for the part of it that is drawn anew.
import { button, dropZone, h } from "/studio/dom.js";
import { slider } from "/studio/parts/sliders.js";
import { t } from "/studio/texts.js";

const MOST_SIDE = 2048;

/** A file or an address as a picture on a canvas, upright, and no larger than is sent. */
export async function canvasOf(source) {
  const blob = source instanceof Blob ? source : await (await fetch(source)).blob();
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" }).catch(() => { throw new Error(t("picture.unreadable", { name: source.name ?? "" })); });
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

const base64 = (canvas) => canvas.toDataURL("image/png").split(",", 2)[1];

/** The part of the form; `changed` is called when the picture comes or goes. */
export class OverPicture {
  constructor(changed) {
    this.changed = changed;
    this.picture = null;
    this.painted = false;
    this.size = 0.12;
    this.strength = 0.6;
    this.input = h("input", { type: "file", accept: "image/*", class: "unseen", "aria-label": t("over.choose"), on: { change: () => this.take(this.input.files[0]) } });
    this.element = h("div", { class: "over" });
    dropZone(this.element, ([file]) => this.take(file));
    this.show();
  }

  async take(source) {
    if (!source) return;
    try {
      this.picture = await canvasOf(source);
      this.mask = h("canvas", { width: this.picture.width, height: this.picture.height, class: "mask", tabindex: "0", role: "img", "aria-label": t("over.mask") });
      this.painted = false;
      this.brush();
      this.show();
    } catch (error) {
      this.show(error.message);
    }
    this.changed();
  }

  clear() {
    this.picture = null;
    this.input.value = "";
    this.show();
    this.changed();
  }

  show(wrong) {
    if (!this.picture) {
      this.element.replaceChildren(
        h("div", { class: "row" }, button(t("over.choose"), { sign: "plus", on: () => this.input.click() }), this.input), h("p", { class: "help", text: t("over.help") }),
        wrong ? h("p", { class: "failure", role: "alert", text: wrong }) : "",
      );
      return;
    }
    const strength = slider(t("over.strength"), { min: 0.1, max: 1, step: 0.05, value: this.strength, ends: [t("over.strength.low"), t("over.strength.high")], on: (number) => { this.strength = number; } });
    const size = slider(t("over.brush"), { min: 0.03, max: 0.3, step: 0.01, value: this.size, shown: (number) => t("percent", { number: Math.round(number * 100) }), on: (number) => { this.size = number; } });
    this.element.replaceChildren(
      h("div", { class: "over-canvas" }, this.picture, this.mask), h("p", { class: "help", text: t("over.paint") }), strength.element, size.element,
      h("div", { class: "row" }, button(t("over.unpaint"), { sign: "again", on: () => this.unpaint() }), button(t("over.remove"), { sign: "close", on: () => this.clear() })),
    );
  }

  brush() {
    const context = this.mask.getContext("2d");
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = "#ff5a1f";
    let last = null;
    const point = (event) => {
      const area = this.mask.getBoundingClientRect();
      return [(event.clientX - area.left) * this.mask.width / area.width, (event.clientY - area.top) * this.mask.height / area.height];
    };
    const stroke = (event) => {
      if (!last) return;
      const next = point(event);
      context.globalCompositeOperation = event.shiftKey ? "destination-out" : "source-over";
      context.lineWidth = this.size * Math.min(this.mask.width, this.mask.height);
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(...next);
      context.stroke();
      last = next;
      this.painted = true;
    };
    this.mask.addEventListener("pointerdown", (event) => { event.preventDefault(); this.mask.setPointerCapture(event.pointerId); last = point(event); stroke(event); });
    this.mask.addEventListener("pointermove", stroke);
    for (const type of ["pointerup", "pointercancel"]) this.mask.addEventListener(type, () => { last = null; });
  }

  unpaint() {
    this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height);
    this.painted = false;
  }

  /** What goes into an order: the picture, how much of it is drawn anew, and the painted part as white on black. */
  fields() {
    if (!this.picture) return {};
    const fields = { image: base64(this.picture), image_strength: this.strength };
    if (!this.painted) return fields;
    const mask = h("canvas", { width: this.mask.width, height: this.mask.height });
    const context = mask.getContext("2d");
    context.drawImage(this.mask, 0, 0);
    const pixels = context.getImageData(0, 0, mask.width, mask.height);
    for (let place = 0; place < pixels.data.length; place += 4) {
      const white = pixels.data[place + 3] > 127 ? 255 : 0;
      pixels.data.set([white, white, white, 255], place);
    }
    context.putImageData(pixels, 0, 0);
    return { ...fields, mask: base64(mask) };
  }
}
