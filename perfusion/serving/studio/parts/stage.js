// What is being drawn and what was drawn last: one job large, the others as a row of small ones with their places.
import { button, h, icon, notify } from "/studio/dom.js";
import { isOpen, jobs } from "/studio/parts/jobs.js";
import { showPicture } from "/studio/parts/viewer.js";
import { duration, t } from "/studio/texts.js";

const MOST = 24;

/** How a job is, in words. */
export function stateWords(job) {
  if (job.state === "waiting") return job.position ? t("job.behind", { count: job.position }) : t("job.next");
  if (job.state === "drawing") {
    const share = t("job.step", { step: job.step ?? 0, total: job.total ?? 0 });
    return job.seconds_left ? `${share} · ${t("job.left", { time: duration(job.seconds_left) })}` : share;
  }
  return t(`job.${job.state}`);
}

/** The stage; `act` does what a picture's buttons say. */
export class Stage {
  constructor(act) {
    this.act = act;
    this.chosen = null;
    this.large = h("div", { class: "stage-large" });
    this.row = h("ul", { class: "filmstrip", "aria-label": t("queue") });
    this.status = h("p", { class: "unseen", role: "status" });
    this.element = h("div", { class: "stage" }, this.large, this.row, this.status);
    jobs.addEventListener("list", () => this.show());
    jobs.addEventListener("ended", ({ detail }) => this.tell(detail));
  }

  choose(id) {
    this.chosen = id;
    jobs.watch(id);
    this.show();
  }

  tell(job) {
    this.status.textContent = job.state === "done" ? t("job.done.long", { count: job.pictures.length }) : stateWords(job);
    if (job.id !== this.chosen) return;
    const next = jobs.open.at(-1);
    if (next) this.choose(next.id);
  }

  show() {
    const list = jobs.list.slice(0, MOST);
    const job = list.find(({ id }) => id === this.chosen) ?? list[0];
    if (job && job.id !== this.chosen) {
      this.chosen = job.id;
      jobs.watch(job.id);
    }
    if (job) this.showLarge(job);
    else this.showNothing();
    this.showRow(list);
  }

  showNothing() {
    if (this.large.dataset.id === "none") return;
    this.large.dataset.id = "none";
    this.large.dataset.state = "";
    this.large.replaceChildren(h("div", { class: "stage-empty" }, icon("draw"), h("h2", { text: t("stage.empty") }), h("p", { class: "muted", text: t("stage.empty.words") })));
  }

  showLarge(job) {
    const key = `${job.id} ${job.state} ${job.pictures.length}`;
    if (this.large.dataset.id !== key) {
      this.large.dataset.id = key;
      this.large.dataset.state = job.state;
      this.large.dataset.job = job.id;
      this.build(job);
    }
    this.update(job);
  }

  /** The parts of the large job; the moving ones are kept for `update`. */
  build(job) {
    const { width = 1, height = 1, count = 1 } = job.settings ?? {};
    const total = Math.max(job.pictures.length, isOpen(job) ? count : 0);
    const tiles = Array.from({ length: total }, (_, number) => this.tile(job, number, width, height));
    this.frames = tiles.map((tile) => tile.querySelector("img"));
    const grid = h("div", { class: "tiles" }, tiles);
    grid.style.setProperty("--across", total > 4 ? 3 : total > 1 ? 2 : 1);
    grid.style.setProperty("--shape", width / height);
    this.words = h("p", { class: "state" });
    this.bar = h("div", {});
    const foot = isOpen(job)
      ? h("div", { class: "stage-foot" }, h("div", { class: "row spread" }, this.words, button(t("job.cancel"), { sign: "close", on: () => this.cancel(job.id) })),
        h("div", { class: "progress", role: "progressbar", "aria-label": t("job.progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar))
      : h("div", { class: "stage-foot" }, this.actions(job));
    const wrong = job.state === "failed" ? h("p", { class: "failure", role: "alert", text: job.error ?? t("job.failed") }) : job.state === "cancelled" ? h("p", { class: "muted stage-note", text: t("job.cancelled.long") }) : null;
    this.large.replaceChildren(...[total ? grid : null, wrong, foot].filter(Boolean));
  }

  tile(job, number, width, height) {
    const picture = job.pictures[number];
    const image = h("img", { alt: picture ? t("picture.alt", { prompt: job.settings?.prompt ?? "" }) : t("preview.alt"), src: picture ?? "data:,", width, height });
    if (!picture) return h("div", { class: "tile drawing" }, image);
    const settings = { ...job.settings, seed: job.settings?.seed === undefined ? undefined : job.settings.seed + number, count: 1 };
    return h("button", { type: "button", class: "tile", "aria-label": t("picture.open", { number: number + 1 }), on: { click: () => showPicture({ url: picture, settings }, this.act) } }, image);
  }

  update(job) {
    if (!isOpen(job)) return;
    this.frames.forEach((image, number) => {
      const preview = job.pictures[number] ?? job.previews[number];
      if (preview && image.src !== preview) image.src = preview;
      image.parentElement.classList.toggle("has-preview", Boolean(preview));
    });
    this.words.textContent = stateWords(job);
    const share = job.total ? job.step / job.total : 0;
    this.bar.style.transform = `scaleX(${share})`;
    this.bar.parentElement.setAttribute("aria-valuenow", Math.round(share * 100));
  }

  actions(job) {
    const { settings } = job;
    if (!settings) return h("p", { class: "muted", text: stateWords(job) });
    const first = { url: job.pictures[0], settings };
    return h("div", { class: "row" },
      button(t("act.other"), { sign: "dice", kind: "primary", on: () => this.act.other(settings) }),
      button(t("act.again"), { sign: "again", title: t("act.again.help"), on: () => this.act.again(settings) }),
      job.pictures.length ? button(t("act.like"), { sign: "more", on: () => this.act.like(first) }) : null,
      job.pictures.length ? button(t("act.over"), { sign: "brush", on: () => this.act.over(first) }) : null,
      button(t("act.use"), { sign: "settings", on: () => this.act.use(settings) }),
      job.pictures.length === 1 ? h("a", { class: "button", href: job.pictures[0], download: "" }, icon("download"), h("span", { text: t("download") })) : null);
  }

  showRow(list) {
    const key = list.map((job) => `${job.id}${job.state}${job.position}${job.pictures[0]}${isOpen(job) ? Object.values(job.previews)[0]?.length : ""}${job.id === this.chosen}`).join();
    if (key === this.rowKey) return;
    this.rowKey = key;
    const focused = this.row.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.row.replaceChildren(...list.map((job) => {
      const source = job.pictures[0] ?? job.previews[0];
      const words = `${stateWords(job)}: ${job.settings?.prompt ?? ""}`;
      const badge = job.state === "waiting" ? String((job.position ?? 0) + 1) : job.state === "drawing" ? "…" : job.state === "done" ? (job.pictures.length > 1 ? `×${job.pictures.length}` : "") : "!";
      return h("li", { class: job.state },
        h("button", { type: "button", class: "frame-button", "data-key": job.id, "aria-label": words, title: words, "aria-pressed": String(job.id === this.chosen), on: { click: () => this.choose(job.id) } },
          source ? h("img", { src: source, alt: "" }) : icon("draw"), badge ? h("span", { class: "badge", "aria-hidden": "true", text: badge }) : null),
        isOpen(job) ? h("button", { type: "button", class: "frame-cancel", "data-key": `x${job.id}`, "aria-label": t("job.cancel.this", { prompt: job.settings?.prompt ?? "" }), on: { click: () => this.cancel(job.id) } }, icon("close")) : null);
    }));
    if (focused) this.row.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  cancel(id) { jobs.cancel(id).catch((error) => notify(error.message, { bad: true })); }
}
