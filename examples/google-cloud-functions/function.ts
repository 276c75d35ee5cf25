// Receives Gatehook's deliveries in a Google Cloud Function and answers !ping.
import { http, type Request } from "@google-cloud/functions-framework";
import { Webhook } from "standardwebhooks";
import type { webhooks } from "./gatehook.js";
import { memory } from "./memory.js";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

const webhook = new Webhook(process.env.GATEHOOK_SECRET!); // from POST /listeners

http("discord", async (request: Request, response) => {
  let event: Event; // verified over the original bytes, and not older than 5 minutes
  try {
    event = webhook.verify(request.rawBody!, request.headers as Record<string, string>) as Event;
  } catch {
    response.sendStatus(401);
    return;
  }
  const id = request.get("webhook-id")!; // the same for every attempt
  try {
    if (!(await memory.has(id))) {
      await handle(event);
      await memory.add(id);
    }
    response.sendStatus(204);
  } catch (error) {
    console.error(id, error);
    response.sendStatus(500); // Gatehook tries again
  }
});

async function handle(event: Event): Promise<void> {
  if (event.type !== "MESSAGE_CREATE") return;
  const message = event.data;
  if (message.author.bot || message.content !== "!ping") return;
  const api = process.env.DISCORD_API_URL ?? "https://discord.com/api/v10";
  const response = await fetch(`${api}/channels/${message.channel_id}/messages`, {
    method: "POST",
    headers: { authorization: `Bot ${process.env.DISCORD_TOKEN}`, "content-type": "application/json" },
    // If two attempts get here at once, Discord creates only one message per nonce.
    body: JSON.stringify({ content: "Pong!", nonce: message.id, enforce_nonce: true }),
  });
  if (!response.ok) throw new Error(`Discord answered ${response.status}`);
}
