// The settings that a picture carries, in the words of the form; and what a dropped file says of itself.
import { upload } from "/studio/api.js";
import { SETTINGS } from "/studio/parts/sliders.js";
import { t } from "/studio/texts.js";

const SAMPLERS = { "ddim": "ddim", "plms": "plms", "euler": "euler", "euler a": "euler_ancestral", "dpm++ 2m": "dpmpp_2m", "heun": "heun", "lcm": "lcm" };

/** What the form takes, from our exact settings or from the order of a job. */
export function formSettings(settings) {
  const concepts = settings.concept_settings ?? settings.concepts ?? {};
  const chosen = Object.fromEntries(Object.entries(concepts).map(([word, values]) => [word, Object.fromEntries(SETTINGS.filter((name) => values?.[name] !== undefined && values[name] !== null).map((name) => [name, values[name]]))]));
  const regions = Array.isArray(settings.regions) ? settings.regions.filter((region) => region.box) : [];
  return { ...settings, concept_settings: chosen, regions };
}

/** The settings in A1111's text, as the form takes them. */
export function fromParameters(text) {
  const lines = text.split("\n");
  const last = lines.findLastIndex((line) => /^Steps: \d/.test(line));
  const values = Object.fromEntries([...(lines[last] ?? "").matchAll(/\s*([\w ]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g)].map(([, name, value]) => [name.trim().toLowerCase(), value.replace(/^"|"$/g, "")]));
  const words = lines.slice(0, last < 0 ? lines.length : last);
  const negative = words.findIndex((line) => line.startsWith("Negative prompt: "));
  const prompt = words.slice(0, negative < 0 ? words.length : negative).join("\n");
  const [width, height] = (values.size ?? "").split("x").map(Number);
  const number = (name) => (values[name] === undefined || Number.isNaN(Number(values[name])) ? undefined : Number(values[name]));
  const sampler = SAMPLERS[(values.sampler ?? "").replace(/ karras$/i, "").toLowerCase()];
  const karras = /karras/i.test(`${values.sampler ?? ""} ${values["schedule type"] ?? ""}`);
  return {
    prompt: prompt.replace(/<lora:([^:>]+)(?::[^>]*)?>/g, "<$1>"), negative_prompt: negative < 0 ? "" : [words[negative].slice(17), ...words.slice(negative + 1)].join("\n"),
    width: width || undefined, height: height || undefined, seed: number("seed"), num_inference_steps: number("steps"), guidance_scale: number("cfg scale"),
    scheduler: sampler && karras && ["euler", "dpmpp_2m", "heun"].includes(sampler) ? `${sampler}_karras` : sampler, concept_settings: {}, regions: [],
  };
}

/** The settings of a picture that was dropped; refused with a sentence where it carries none. */
export async function settingsOfFile(file) {
  const answer = await upload("/api/inspect", { file });
  if (answer.settings?.prompt !== undefined) return formSettings(answer.settings);
  if (typeof answer.parameters === "string" && answer.parameters) return fromParameters(answer.parameters);
  throw new Error(t("drop.nothing", { name: file.name }));
}
