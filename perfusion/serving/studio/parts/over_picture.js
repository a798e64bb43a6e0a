// A picture to draw over, and a brush for the part of it that is drawn anew.
import { upload } from "/studio/api.js";
import { button, dropZone, h } from "/studio/dom.js";
import { Brush, brushTools } from "/studio/parts/brush.js";
import { slider } from "/studio/parts/sliders.js";
import { t } from "/studio/texts.js";

const MOST_SIDE = 2048;

/** A file or an address as a picture on a canvas, upright, and no larger than is sent. What this browser cannot read,
 * such as a phone's HEIC, the server is asked to. */
export async function canvasOf(source) {
  const blob = source instanceof Blob ? source : await (await fetch(source)).blob();
  const bitmap = await decoded(blob).catch(() => decodedByServer(blob, source.name ?? ""));
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

const decoded = (blob) => createImageBitmap(blob, { imageOrientation: "from-image" });

async function decodedByServer(blob, name) {
  try {
    return await decoded(await upload("/api/photo", { file: blob }, { blob: true }));
  } catch (error) {
    throw new Error(t("picture.unreadable", { name, reason: error.message }), { cause: error });
  }
}

const base64 = (canvas) => canvas.toDataURL("image/png").split(",", 2)[1];

/** The part of the form; `changed` is called when the picture comes or goes. */
export class OverPicture {
  constructor(changed) {
    this.changed = changed;
    this.picture = null;
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
      this.brush = new Brush(this.picture.width, this.picture.height, { label: t("over.mask") });
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
    this.element.replaceChildren(
      h("div", { class: "over-canvas" }, this.picture, this.brush.element), h("p", { class: "help", text: t("over.paint") }), ...brushTools(this.brush), strength.element,
      h("div", { class: "row" }, button(t("over.remove"), { sign: "close", on: () => this.clear() })),
    );
  }

  /** What goes into an order: the picture, how much of it is drawn anew, and the painted part as white on black. */
  fields() {
    if (!this.picture) return {};
    const fields = { image: base64(this.picture), image_strength: this.strength };
    return this.brush.painted ? { ...fields, mask: base64(this.brush.white()) } : fields;
  }
}
