// One side of a grid of settings: a setting, and the values that it takes.
import { field, h } from "/studio/dom.js";
import { t } from "/studio/texts.js";

const RANGES = { bias: [0.5, 0.9], start: [0, 0.4], strength: [0.4, 1], temperature: [0.05, 0.3] };
const MOST_CELLS = 9;

/** Settings in words: "Bias 0.50, Start 0.20". */
export const named = (settings) => Object.entries(settings).map(([name, value]) => `${t(`setting.${name}`)} ${value.toFixed(2)}`).join(", ");

export class Axis {
  constructor(words, name, cells) {
    this.setting = h("select", {}, ["", ...Object.keys(RANGES)].map((value) => h("option", { value, text: value ? t(`setting.${value}`) : t("explore.nothing") })));
    this.from = h("input", { type: "number", min: 0, max: 1, step: "0.05" });
    this.to = h("input", { type: "number", min: 0, max: 1, step: "0.05" });
    this.cells = h("input", { type: "number", min: 1, max: MOST_CELLS, value: cells });
    this.setting.value = name;
    this.setting.addEventListener("change", () => this.fit());
    this.fit();
    this.element = h("fieldset", {}, h("legend", { class: "legend", text: words }),
      h("div", { class: "range-row" }, field(t("explore.setting"), this.setting), field(t("explore.from"), this.from), field(t("explore.to"), this.to), field(t("explore.cells"), this.cells)));
  }

  get name() { return this.setting.value; }

  fit() {
    const [from, to] = RANGES[this.name] ?? [0, 0];
    [this.from.value, this.to.value] = [from, to];
    for (const input of [this.from, this.to, this.cells]) input.disabled = !this.name;
  }

  /** The settings of each line, such as [{bias: 0.5}, {bias: 0.7}]; without a setting one that changes nothing. */
  get values() {
    if (!this.name) return [{}];
    const count = Math.min(MOST_CELLS, Math.max(1, Math.round(Number(this.cells.value))));
    const [from, to] = [Number(this.from.value), Number(this.to.value)];
    return Array.from({ length: count }, (_, place) => ({ [this.name]: Number((from + (to - from) * (count === 1 ? 0 : place / (count - 1))).toFixed(4)) }));
  }
}
