import { bundle } from "./bundle.mjs";

const code = await bundle("discord-format/receiver.ts", { platform: "node" });
await import(`data:text/javascript;base64,${Buffer.from(code).toString("base64")}`);
