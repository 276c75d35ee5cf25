// Runs the function on the Functions Framework's own server.
import { getTestServer } from "@google-cloud/functions-framework/testing";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { bundle } from "./bundle.mjs";

const dist = new URL("../../google-cloud-functions/dist/", import.meta.url);
mkdirSync(dist, { recursive: true });
const file = new URL(`function-${process.pid}.mjs`, dist);
writeFileSync(file, await bundle("google-cloud-functions/function.ts", { platform: "node", packages: "external" }));
await import(file);
rmSync(file);

const server = getTestServer("discord").listen(0, "127.0.0.1", () => {
  console.log("listening on", `http://127.0.0.1:${server.address().port}`);
});
