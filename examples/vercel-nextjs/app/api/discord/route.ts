// Receives Gatehook's deliveries in a Next.js app and answers !ping.
import { Webhook } from "standardwebhooks";
import type { webhooks } from "../../../gatehook";
import { memory } from "./memory";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

export async function POST(request: Request): Promise<Response> {
  const body = Buffer.from(await request.arrayBuffer());
  let event: Event; // verified over the original bytes, and not older than 5 minutes
  try {
    const webhook = new Webhook(process.env.GATEHOOK_SECRET!); // from POST /listeners
    event = webhook.verify(body, Object.fromEntries(request.headers)) as Event;
  } catch {
    return new Response(null, { status: 401 });
  }
  const id = request.headers.get("webhook-id")!; // the same for every attempt
  try {
    if (!(await memory.has(id))) {
      await handle(event);
      await memory.add(id);
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
  const api = process.env.DISCORD_API_URL ?? "https://discord.com/api/v10";
  const response = await fetch(`${api}/channels/${message.channel_id}/messages`, {
    method: "POST",
    headers: { authorization: `Bot ${process.env.DISCORD_TOKEN}`, "content-type": "application/json" },
    // If two attempts get here at once, Discord creates only one message per nonce.
    body: JSON.stringify({ content: "Pong!", nonce: message.id, enforce_nonce: true }),
  });
  if (!response.ok) throw new Error(`Discord answered ${response.status}`);
}
