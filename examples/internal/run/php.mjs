// Runs the PHP example in PHP's own web server, with workers, and says where it listens.
import { spawn } from "node:child_process";

const port = process.env.PORT ?? "3000";
const php = spawn("php", ["-d", "variables_order=EGPCS", "-S", `127.0.0.1:${port}`, "php/receiver.php"], {
  env: { ...process.env, PHP_CLI_SERVER_WORKERS: "4" },
  stdio: ["ignore", "inherit", "pipe"],
});
let said = "";
php.stderr.on("data", (chunk) => {
  process.stderr.write(chunk);
  if (said === undefined) return;
  said += chunk;
  const ready = /Development Server \((http:[^)]*)\) started/.exec(said);
  if (ready) {
    said = undefined;
    console.log(`listening on ${ready[1]}`);
  }
});
php.on("exit", (code) => process.exit(code ?? 1));
