// Receives Gatehook's deliveries in AWS Lambda, at a function URL, and answers !ping.
import type { LambdaFunctionURLEvent, LambdaFunctionURLResult } from "aws-lambda";
import { Webhook } from "standardwebhooks";
import type { webhooks } from "./gatehook.js";
import { memory } from "./memory.js";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

const webhook = new Webhook(process.env.GATEHOOK_SECRET!); // from POST /listeners

export async function handler(request: LambdaFunctionURLEvent): Promise<LambdaFunctionURLResult> {
  const body = Buffer.from(request.body ?? "", request.isBase64Encoded ? "base64" : "utf8");
  let event: Event; // verified over the original bytes, and not older than 5 minutes
  try {
    event = webhook.verify(body, request.headers as Record<string, string>) as Event;
  } catch {
    return { statusCode: 401 };
  }
  const id = request.headers["webhook-id"]!; // the same for every attempt
  try {
    if (!(await memory.has(id))) {
      await handle(event);
      await memory.add(id);
    }
  } catch (error) {
    console.error(id, error);
    return { statusCode: 500 }; // Gatehook tries again
  }
  return { statusCode: 204 };
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
