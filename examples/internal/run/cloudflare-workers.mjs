// Runs the Worker on workerd, with its Durable Objects.
import { Miniflare } from "miniflare";
import { bundle, secrets } from "./bundle.mjs";

const worker = new Miniflare({
  port: 0,
  modules: true,
  script: await bundle("cloudflare-workers/worker.ts", { external: ["cloudflare:workers", "node:*"], conditions: ["workerd"] }),
  compatibilityDate: "2026-01-15",
  compatibilityFlags: ["nodejs_compat"],
  bindings: secrets(),
  durableObjects: { DELIVERIES: { className: "Delivery", useSQLite: true } },
});
console.log("listening on", (await worker.ready).href);
process.once("SIGTERM", () => worker.dispose());
