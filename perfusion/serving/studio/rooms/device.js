// Device: what draws here and why, what is to be put right, and whether a size fits before it is drawn.
import { get } from "/studio/api.js";
import { button, failure, field, h } from "/studio/dom.js";
import { loadDevice, news, store } from "/studio/store.js";
import { bytes, t } from "/studio/texts.js";

const TAGS = { stop: "bad", warning: "warn" };

export function open(room) {
  const facts = h("div", { class: "card" });
  const findings = h("div", { class: "card" });
  const width = number(8, 8192);
  const height = number(8, 8192);
  const batch = number(1, 64);
  const answer = h("div", { class: "stack", role: "status" });
  const plan = h("div", { class: "card" }, h("h2", { text: t("device.plan") }), h("p", { class: "muted", text: t("device.plan.words") }),
    h("div", { class: "fields" }, field(t("form.width"), width), field(t("form.height"), height), field(t("device.plan.batch"), batch)), answer);
  const wrong = h("div", {});
  let questions = 0;
  room.append(h("div", { class: "room-head" }, h("h1", { text: t("room.device") }), button(t("device.again"), { sign: "again", on: again })), wrong, h("div", { class: "device" }, facts, plan, findings));
  for (const input of [width, height, batch]) input.addEventListener("change", ask);
  news.addEventListener("device", show);
  if (store.device) show();

  function show() {
    const { device, provider, provider_reason: reason, bundle, version, findings: list } = store.device;
    const rows = [["device.why", reason], ["device.model", `${bundle.name === bundle.base ? bundle.base : `${bundle.base} (${bundle.name})`}, ${bundle.precision}`], ["fact.size", t("device.usual", { width: bundle.width, height: bundle.height, steps: bundle.num_inference_steps })], ["device.version", version]];
    facts.replaceChildren(h("h2", { text: t("device.runs") }), h("p", { class: "big-fact", text: provider }), h("p", { text: device }),
      h("dl", { class: "facts" }, rows.map(([name, value]) => h("div", {}, h("dt", { text: t(name) }), h("dd", { text: value })))));
    findings.replaceChildren(h("h2", { text: t("device.findings") }), list.length ? h("ul", {}, list.map(finding)) : h("p", { class: "muted", text: t("device.findings.none") }));
    if (!width.value) [width.value, height.value, batch.value] = [bundle.width, bundle.height, 1];
    ask();
  }

  function finding({ name, severity, text, remedy }) {
    return h("li", { class: "finding" }, h("div", { class: "row" }, h("span", { class: `tag ${TAGS[severity] ?? ""}`, text: t(`device.level.${severity}`) }), h("h3", { text: name })), h("p", { text }),
      remedy ? h("p", { class: "remedy", text: t("device.remedy", { remedy }) }) : null);
  }

  /** Ask for the plan; of several answers the newest question's is shown. */
  async function ask() {
    const question = ++questions;
    try {
      const { needed, free, fits, sentence } = await get(`/api/plan?width=${width.value}&height=${height.value}&batch=${batch.value}`);
      if (question !== questions) return;
      const bar = h("div", {});
      bar.style.transform = `scaleX(${Math.min(1, needed / free)})`;
      answer.replaceChildren(h("p", { class: "row" }, h("span", { class: `tag ${fits ? "good" : "bad"}`, text: t(fits ? "device.plan.fits" : "device.plan.not") }), t("device.plan.bar", { needed: bytes(needed), free: bytes(free) })),
        h("div", { class: `plan-bar ${fits ? "" : "over"}`, "aria-hidden": "true" }, bar), h("p", { class: "muted", text: sentence }));
    } catch (error) {
      if (question === questions) answer.replaceChildren(failure(error.message));
    }
  }

  async function again() {
    wrong.replaceChildren();
    await loadDevice().catch((error) => wrong.replaceChildren(failure(error.message)));
  }

  return {};
}

const number = (min, max) => h("input", { type: "number", min, max, inputmode: "numeric" });
