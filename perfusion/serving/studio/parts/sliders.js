// Sliders, and the four settings of a concept with what each of them does.
import { fresh, h } from "/studio/dom.js";
import { t } from "/studio/texts.js";

/** A slider with its name, value, ends and meaning. `shown` turns the value into words. */
export function slider(words, { min, max, step, value, ends, help, shown = (number) => number.toFixed(2), on }) {
  const input = h("input", { type: "range", id: fresh("slider"), min, max, step });
  const output = h("output", { for: input.id });
  const show = () => {
    output.textContent = shown(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.value = value;
  show();
  input.addEventListener("input", () => { show(); on?.(Number(input.value)); });
  const meaning = ends && h("div", { class: "ends", id: fresh("ends") }, h("span", { text: ends[0] }), h("span", { text: ends[1] }));
  const note = help && h("p", { class: "help", id: fresh("help"), text: help });
  input.setAttribute("aria-describedby", [meaning?.id, note?.id].filter(Boolean).join(" "));
  const element = h("div", { class: "slider" }, h("label", { for: input.id, text: words }), output, input, meaning, note);
  return { element, input, set(number) { input.value = number; show(); } };
}

const RANGES = {
  bias: { min: 0.3, max: 1, step: 0.01 },
  strength: { min: 0, max: 1, step: 0.05 },
  start: { min: 0, max: 0.95, step: 0.05 },
  temperature: { min: 0.02, max: 0.5, step: 0.01 },
};

export const SETTINGS = Object.keys(RANGES);

/** The sliders of one concept. `values` are its settings, `defaults` its usual ones; `on` gets what differs, at once and later. */
export function conceptSliders(values, defaults, on) {
  const changes = {};
  const sliders = {};
  for (const name of SETTINGS) {
    const standard = defaults[name] ?? (name === "strength" ? 1 : 0);
    const range = { ...RANGES[name], min: Math.min(RANGES[name].min, standard), max: Math.max(RANGES[name].max, standard) };
    const report = (number) => {
      if (Math.abs(number - standard) < 1e-9) delete changes[name];
      else changes[name] = number;
      sliders[name].element.classList.toggle("changed", name in changes);
      on({ ...changes });
    };
    sliders[name] = slider(t(`setting.${name}`), {
      ...range, value: values[name] ?? standard, on: report,
      ends: [t(`setting.${name}.low`), t(`setting.${name}.high`)],
      shown: name === "start" ? (number) => t("percent", { number: Math.round(number * 100) }) : undefined,
    });
    if (values[name] !== undefined && Math.abs(values[name] - standard) > 1e-9) {
      changes[name] = values[name];
      sliders[name].element.classList.add("changed");
    }
  }
  const reset = () => SETTINGS.forEach((name) => {
    const standard = defaults[name] ?? (name === "strength" ? 1 : 0);
    delete changes[name];
    sliders[name].set(standard);
    sliders[name].element.classList.remove("changed");
    on({});
  });
  on({ ...changes });
  return { elements: SETTINGS.map((name) => sliders[name].element), reset };
}
