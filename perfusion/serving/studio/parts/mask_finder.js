// Asks the server where the thing is in the photos, as soon as it is known what kind of thing to look for.
import { upload } from "/studio/api.js";
import { button, h } from "/studio/dom.js";
import { t } from "/studio/texts.js";

const PAUSE_MS = 900;

export class MaskFinder {
  /** `crops()` gives the photos, `word()` what to look for, or "". */
  constructor(crops, word) {
    this.crops = crops;
    this.word = word;
    this.control = null;
    this.running = null;
    this.timer = null;
    this.words = h("p", { class: "help", role: "status" });
    this.retry = button(t("teach.mask.again"), { sign: "again", hidden: true, on: () => this.look() });
    this.element = h("div", { class: "row mask-note" }, this.words, this.retry);
  }

  /** Look soon; at once would be too often while a photo is dragged. */
  later() {
    clearTimeout(this.timer);
    this.say(this.crops().length && !this.word() ? t("teach.mask.lacking") : this.crops().some(({ mask }) => mask) ? t("teach.mask.note") : "");
    const word = this.word();
    for (const crop of this.crops()) if (crop.mask && !crop.corrected && crop.soughtFor !== word) crop.takeMask(null);
    if (this.lacking.length && word) this.timer = setTimeout(() => this.look(), PAUSE_MS);
    else this.stop();
  }

  get lacking() { return this.crops().filter(({ mask }) => !mask); }

  say(words, failed = false) {
    this.words.textContent = words;
    this.retry.hidden = !failed;
  }

  stop() {
    this.control?.abort();
    this.control = null;
  }

  /** Look for the thing in the photos of which nobody knows yet; a search under way for other ones is ended. */
  look() {
    clearTimeout(this.timer);
    this.stop();
    this.running = this.search();
    return this.running;
  }

  async search() {
    const crops = this.lacking;
    const word = this.word();
    if (!crops.length || !word) return;
    const control = new AbortController();
    this.control = control;
    this.say(t("teach.mask.looking", { word }));
    for (const crop of crops) crop.element.classList.add("looking");
    try {
      const places = crops.map((crop) => crop.part);
      const pictures = await Promise.all(crops.map((crop, place) => crop.file(`${place + 1}.png`)));
      const findings = await upload("/api/masks", { pictures, superclass: word }, { signal: control.signal });
      if (control.signal.aborted) return;
      await Promise.all(crops.map(async (crop, place) => {
        if (crop.mask || crop.part !== places[place]) return;
        await crop.takeFinding(findings[place]);
        crop.soughtFor = word;
      }));
      this.say(t("teach.mask.note"));
    } catch (error) {
      if (error.name !== "AbortError") this.say(t("teach.mask.failed", { reason: error.message }), true);
    } finally {
      for (const crop of crops) crop.element.classList.remove("looking");
      if (this.control === control) this.control = null;
    }
  }

  /** The masks as files, where any was corrected: then all are told, those of the others as they were found. */
  async files() {
    if (!this.crops().some(({ corrected }) => corrected)) {
      clearTimeout(this.timer);
      this.stop();
      return [];
    }
    if (this.lacking.length) await this.look();
    if (this.lacking.length) throw new Error(this.words.textContent);
    return Promise.all(this.crops().map((crop, place) => crop.maskFile(`${place + 1}.png`)));
  }
}
