import { build } from "esbuild";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Bundles an example as its platform's tools do, and returns the code. */
export async function bundle(entry, options) {
  const result = await build({ absWorkingDir: root, entryPoints: [entry], bundle: true, format: "esm", write: false, ...options });
  return result.outputFiles[0].text;
}

/** Returns the example's environment, which the platform would set. */
export function secrets() {
  return Object.fromEntries(
    ["GATEHOOK_SECRET", "GATEHOOK_PUBLIC_KEY", "DISCORD_TOKEN", "DISCORD_API_URL"].flatMap((name) =>
      process.env[name] === undefined ? [] : [[name, process.env[name]]],
    ),
  );
}
