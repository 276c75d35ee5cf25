// Receives events in the format of Discord's own webhook events, and answers !ping.
// It can receive Discord's own events too (Developer Portal → Webhooks): give both
// public keys.
import { createServer, type IncomingMessage } from "node:http";
import { verifyKey } from "discord-interactions";
import type { webhooks } from "./gatehook.js";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = {
  [N in Name]: Pick<webhooks[N]["post"]["requestBody"]["content"]["application/json"], "type" | "timestamp" | "data">;
}[Name];

interface WebhookEvent {
  version: 1;
  application_id: string;
  type: 0 | 1; // 0 is a PING
  event?: Event;
}

const publicKeys = process.env.GATEHOOK_PUBLIC_KEY!.split(","); // from GET /signing-keys
const api = process.env.DISCORD_API_URL ?? "https://discord.com/api/v10";
const done = new Set<string>(); // A table in your database outlives a restart.

/** Verifies the signature over the original bytes, and the age, which the library does not check. */
async function genuine(body: Buffer, headers: IncomingMessage["headers"]): Promise<boolean> {
  const signature = headers["x-signature-ed25519"];
  const timestamp = headers["x-signature-timestamp"];
  if (typeof signature !== "string" || typeof timestamp !== "string") return false;
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) < 300)) return false;
  const results = await Promise.all(publicKeys.map((key) => verifyKey(body, signature, timestamp, key)));
  return results.includes(true);
}

async function receive(request: IncomingMessage): Promise<number> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const body = Buffer.concat(chunks);
  if (!(await genuine(body, request.headers))) return 401;
  const { type, event } = JSON.parse(body.toString()) as WebhookEvent;
  if (type === 0 || !event) return 204; // the PING, when the listener is registered
  const id = request.headers["webhook-id"] as string; // the same for every attempt
  if (done.has(id)) return 204;
  await handle(event);
  done.add(id);
  if (done.size > 10_000) done.delete(done.values().next().value!);
  return 204;
}

async function handle(event: Event): Promise<void> {
  if (event.type !== "MESSAGE_CREATE") return;
  const message = event.data;
  if (message.author.bot || message.content !== "!ping") return;
  const response = await fetch(`${api}/channels/${message.channel_id}/messages`, {
    method: "POST",
    headers: { authorization: `Bot ${process.env.DISCORD_TOKEN}`, "content-type": "application/json" },
    // If two attempts get here at once, Discord creates only one message per nonce.
    body: JSON.stringify({ content: "Pong!", nonce: message.id, enforce_nonce: true }),
  });
  if (!response.ok) throw new Error(`Discord answered ${response.status}`);
}

const server = createServer((request, response) => {
  receive(request).then(
    (status) => response.writeHead(status).end(),
    (error) => {
      console.error(error);
      response.writeHead(500).end(); // Gatehook tries again
    },
  );
});
server.listen(Number(process.env.PORT ?? 3000), () => {
  console.log("listening on", `http://127.0.0.1:${(server.address() as { port: number }).port}`);
});
