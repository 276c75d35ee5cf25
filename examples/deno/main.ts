// Receives Gatehook's deliveries with Deno and answers !ping.
import { Buffer } from "node:buffer";
import { Webhook } from "standardwebhooks";
import type { webhooks } from "./gatehook.d.ts";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

const webhook = new Webhook(Deno.env.get("GATEHOOK_SECRET")!); // from POST /listeners
const api = Deno.env.get("DISCORD_API_URL") ?? "https://discord.com/api/v10";
const memory = await Deno.openKv(Deno.env.get("KV_PATH")); // shared by all instances on Deno Deploy

async function receive(request: Request): Promise<Response> {
  const body = Buffer.from(await request.arrayBuffer());
  let event: Event; // verified over the original bytes, and not older than 5 minutes
  try {
    event = webhook.verify(body, Object.fromEntries(request.headers)) as Event;
  } catch {
    return new Response(null, { status: 401 });
  }
  const id = ["done", request.headers.get("webhook-id")!]; // the same for every attempt
  try {
    if ((await memory.get(id)).versionstamp === null) {
      await handle(event);
      await memory.set(id, true, { expireIn: 7 * 86_400_000 });
    }
  } catch (error) {
    console.error(id, error);
    return new Response(null, { status: 500 }); // Gatehook tries again
  }
  return new Response(null, { status: 204 });
}

async function handle(event: Event): Promise<void> {
  if (event.type !== "MESSAGE_CREATE") return;
  const message = event.data;
  if (message.author.bot || message.content !== "!ping") return;
  const response = await fetch(`${api}/channels/${message.channel_id}/messages`, {
    method: "POST",
    headers: { authorization: `Bot ${Deno.env.get("DISCORD_TOKEN")}`, "content-type": "application/json" },
    // If two attempts get here at once, Discord creates only one message per nonce.
    body: JSON.stringify({ content: "Pong!", nonce: message.id, enforce_nonce: true }),
  });
  if (!response.ok) throw new Error(`Discord answered ${response.status}`);
}

Deno.serve({ port: Number(Deno.env.get("PORT") ?? 8000) }, receive);
