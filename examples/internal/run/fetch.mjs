// Calls the default export's fetch with Web Requests, as Workers, Deno and Bun do.
import { bundle } from "./bundle.mjs";
import { serve } from "./serve.mjs";

const code = await bundle(`${process.argv[2]}/bot.ts`, {
  platform: "node",
  banner: { js: 'import { createRequire } from "node:module"; const require = createRequire("/");' },
});
const bot = (await import(`data:text/javascript;base64,${Buffer.from(code).toString("base64")}`)).default;

serve(({ method, url, headers, body }) => bot.fetch(new Request(new URL(url, "http://localhost"), { method, headers, body })));
