// Generates types from the OpenAPI document, as a user would from /openapi.json, and
// type-checks all examples.
import { execFile } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import openapiTS, { astToString } from "openapi-typescript";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const types = astToString(await openapiTS(new URL("../../api/openapi.yaml", import.meta.url)));
const check = (name) => ["node_modules/.bin/tsc", "--project", name];
const examples = {
  "aws-lambda": check("aws-lambda"),
  "cloudflare-workers": check("cloudflare-workers"),
  carbon: check("carbon"),
  "chat-sdk": check("chat-sdk"),
  deno: ["internal/deno", "check", "--unstable-kv", "--config", "deno/deno.json", "deno/main.ts"],
  "discord-format": check("discord-format"),
  "google-cloud-functions": check("google-cloud-functions"),
  "vercel-nextjs": check("vercel-nextjs"),
};
// The libraries of these bots have types for events.
const typed = new Set(["carbon", "chat-sdk"]);
const checked = Object.entries(examples).map(async ([name, [command, ...args]]) => {
  if (!typed.has(name)) writeFileSync(`${name}/gatehook.d.ts`, types);
  await promisify(execFile)(command, args).catch((error) => {
    throw new Error(`${name}:\n${error.stdout}${error.stderr}`);
  });
  console.log(`${name}: the types are correct`);
});
await Promise.all(checked);
const [command, ...args] = check("internal");
await promisify(execFile)(command, args).catch((error) => {
  throw new Error(`internal:\n${error.stdout}${error.stderr}`);
});
