// The drawings of this browser: ordered, followed while they are drawn, cancelled. One stream of events is open at a
// time, since a browser opens no more than six connections to a server; of the other jobs the list is asked again.
import { connection, follow, get, post, remove } from "/studio/api.js";
import { changed } from "/studio/store.js";

const ASK_MS = 900;

export const isOpen = (job) => job.state === "waiting" || job.state === "drawing";

/** Tells "list" when something about the jobs has changed, and "ended" (detail: the job) when one has. */
export class Jobs extends EventTarget {
  constructor() {
    super();
    this.list = [];
    this.watched = null;
    this.leave = null;
    this.timer = null;
    this.hidden = new Set();
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.stop(); else this.refresh(); });
    connection.addEventListener("online", () => this.refresh());
    connection.addEventListener("offline", () => this.stop());
  }

  get open() { return this.list.filter(isOpen); }

  job(id) { return this.list.find((job) => job.id === id); }

  async submit(fields) {
    const { id } = await post("/api/jobs", fields);
    await this.refresh();
    return id;
  }

  async cancel(id) {
    await remove(`/api/jobs/${id}`).catch((error) => { if (error.status !== 409 && error.status !== 404) throw error; });
    await this.refresh();
  }

  /** Take a job out of the list here; its pictures stay in the history. */
  hide(id) {
    this.hidden.add(id);
    this.list = this.list.filter((job) => job.id !== id);
    this.tell();
  }

  /** Follow one job's steps and previews; the others' states come with the list. */
  watch(id) {
    if (this.watched === id && this.leave) return;
    this.stop();
    this.watched = id;
    const job = this.job(id);
    if (!job || !isOpen(job)) {
      this.later();
      return;
    }
    this.leave = follow(`/api/jobs/${id}/events`, {
      state: (state) => this.merge(state),
      preview: (preview) => this.preview(id, preview),
      done: (state) => { if (state?.id) this.merge(state); this.unfollow(); this.refresh(); },
    }, (closed) => { if (closed) this.unfollow(); this.refresh(); });
    this.later();
  }

  async refresh() {
    clearTimeout(this.timer);
    const jobs = await get("/api/jobs").catch(() => null);
    if (!jobs) return;
    const known = new Map(this.list.map((job) => [job.id, job]));
    this.list = jobs.filter((job) => !this.hidden.has(job.id)).map((job) => ({ previews: known.get(job.id)?.previews ?? {}, ...job }));
    for (const job of this.list) {
      const before = known.get(job.id);
      if (before && isOpen(before) && !isOpen(job)) this.end(job);
    }
    this.tell();
    if (this.watched && !this.leave && this.job(this.watched) && isOpen(this.job(this.watched))) this.watch(this.watched);
    this.later();
  }

  merge(state) {
    const place = this.list.findIndex((job) => job.id === state.id);
    if (place < 0) return;
    const before = this.list[place];
    this.list[place] = { ...before, ...state, previews: before.previews };
    if (isOpen(before) && !isOpen(state)) this.end(this.list[place]);
    this.tell();
  }

  preview(id, { number = 0, picture, step, total }) {
    const job = this.job(id);
    if (!job) return;
    job.previews[number] = picture;
    if (step !== undefined) Object.assign(job, { step, total });
    this.tell();
  }

  end(job) {
    this.dispatchEvent(new CustomEvent("ended", { detail: job }));
    if (job.state === "done") changed("pictures");
  }

  later() {
    clearTimeout(this.timer);
    if (this.open.length && !document.hidden) this.timer = setTimeout(() => this.refresh(), ASK_MS);
  }

  unfollow() {
    this.leave?.();
    this.leave = null;
  }

  stop() {
    clearTimeout(this.timer);
    this.unfollow();
  }

  tell() { this.dispatchEvent(new Event("list")); }
}

export const jobs = new Jobs();
