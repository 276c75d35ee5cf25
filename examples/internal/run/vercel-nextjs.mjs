// Calls the route's handler with Web Requests, as Next.js does. `next` itself is
// left out: installing it and building an app would add nothing but its router.
import { bundle } from "./bundle.mjs";
import { serve } from "./serve.mjs";

const code = await bundle("vercel-nextjs/app/api/discord/route.ts", {
  platform: "node",
  banner: { js: 'import { createRequire } from "node:module"; const require = createRequire("/");' },
});
const { POST } = await import(`data:text/javascript;base64,${Buffer.from(code).toString("base64")}`);

serve(({ method, url, headers, body }) => POST(new Request(new URL(url, "http://localhost"), { method, headers, body })));
