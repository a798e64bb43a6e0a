// What of a photo is learned, large, with a brush that corrects it.
import { button, dialog, h } from "/studio/dom.js";
import { Brush, brushTools } from "/studio/parts/brush.js";
import { t } from "/studio/texts.js";

/** Let somebody paint over a mask. `photo`: a canvas; `mask`, `finding`: canvases with alpha, as it is now and as it
 * was found. Gives the new mask, or null where it stays as it is. */
export async function correctMask(photo, mask, finding, number) {
  const { body, close, closed } = dialog(t("teach.mask.title", { number }), { wide: true });
  const brush = new Brush(photo.width, photo.height, { label: t("teach.mask.label"), veil: true });
  let result = null;
  brush.put(mask);
  brush.past = [];
  body.classList.add("viewer");
  body.append(
    h("div", { class: "over-canvas large" }, photo, brush.element),
    h("div", { class: "stack" }, h("p", { class: "muted", text: t("teach.mask.help") }), ...brushTools(brush),
      h("div", { class: "row" }, finding ? button(t("teach.mask.found"), { sign: "search", on: () => { brush.remember(); brush.put(finding); } }) : null, button(t("teach.mask.all"), { sign: "plus", on: () => brush.fill(true) })),
      h("div", { class: "row" }, button(t("teach.mask.take"), { kind: "primary large", on: () => { result = brush.copy(); close(); } }))),
  );
  brush.canvas.focus();
  await closed;
  return result;
}
