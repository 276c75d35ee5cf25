// Receives Gatehook's deliveries on Cloudflare Workers and answers !ping.
import { DurableObject } from "cloudflare:workers";
import { Webhook } from "standardwebhooks";
import type { webhooks } from "./gatehook.js";

type Name = Exclude<keyof webhooks, "event">; // MESSAGE_CREATE, GUILD_BAN_ADD, …
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

export interface Env {
  GATEHOOK_SECRET: string; // from POST /listeners
  DISCORD_TOKEN: string; // to answer with
  DISCORD_API_URL?: string;
  DELIVERIES: DurableObjectNamespace<Delivery>;
}

export default {
  async fetch(request, env) {
    const body = await request.text();
    let event: Event; // verified over the original body, and not older than 5 minutes
    try {
      event = new Webhook(env.GATEHOOK_SECRET).verify(body, Object.fromEntries(request.headers)) as Event;
    } catch {
      return new Response(null, { status: 401 });
    }
    const id = request.headers.get("webhook-id")!; // the same for every attempt
    try {
      await env.DELIVERIES.get(env.DELIVERIES.idFromName(id)).handleOnce(event);
    } catch (error) {
      console.error(id, error);
      return new Response(null, { status: 500 }); // Gatehook tries again
    }
    return new Response(null, { status: 204 });
  },
} satisfies ExportedHandler<Env>;

/** There is one object per webhook-id, at one place in the world. It remembers the delivery for a week. */
export class Delivery extends DurableObject<Env> {
  async handleOnce(event: Event): Promise<void> {
    await this.ctx.blockConcurrencyWhile(async () => {
      if (await this.ctx.storage.get("done")) return;
      await handle(event, this.env);
      await this.ctx.storage.put("done", true);
      await this.ctx.storage.setAlarm(Date.now() + 7 * 86_400_000);
    });
  }

  override async alarm(): Promise<void> {
    await this.ctx.storage.deleteAll();
  }
}

async function handle(event: Event, env: Env): Promise<void> {
  if (event.type !== "MESSAGE_CREATE") return;
  const message = event.data;
  if (message.author.bot || message.content !== "!ping") return;
  const response = await fetch(`${env.DISCORD_API_URL ?? "https://discord.com/api/v10"}/channels/${message.channel_id}/messages`, {
    method: "POST",
    headers: { authorization: `Bot ${env.DISCORD_TOKEN}`, "content-type": "application/json" },
    // If two attempts get here, Discord creates only one message per nonce.
    body: JSON.stringify({ content: "Pong!", nonce: message.id, enforce_nonce: true }),
  });
  if (!response.ok) throw new Error(`Discord answered ${response.status}`);
}
