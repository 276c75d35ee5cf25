// Receives Gatehook's deliveries: GATEHOOK_SECRET=whsec_… node receiver.js
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.GATEHOOK_SECRET); // from POST /listeners
const work = new Map(); // webhook-id → promise. A table in your database outlives a restart.

async function handle(event) {
  console.log(event.type, event.data.guild_id);
}

async function receive(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    if ((size += chunk.length) > 16 << 20) throw new Error("body of more than 16 MiB");
    chunks.push(chunk);
  }
  let event; // verified over the original bytes: do not parse them before
  try { event = webhook.verify(Buffer.concat(chunks), request.headers); } catch { return 401; }
  const id = request.headers["webhook-id"]; // the same for every attempt: handle it once
  if (!work.has(id)) work.set(id, handle(event));
  if (work.size > 10_000) work.delete(work.keys().next().value);
  try { await work.get(id); return 204; } catch { work.delete(id); return 500; } // Gatehook tries again
}

const server = createServer((request, response) =>
  receive(request).then((status) => response.writeHead(status).end(), () => response.destroy()));
server.listen(process.env.PORT ?? 3000, "127.0.0.1", () => console.log("listening on port", server.address().port));
