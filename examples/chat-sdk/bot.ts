// A Chat SDK bot without a gateway connection, which answers !ping. Gatehook delivers
// the events for which the SDK's Discord adapter otherwise needs a cron job and a
// long-running function.
import { createDiscordAdapter } from "@chat-adapter/discord";
import { createMemoryState } from "@chat-adapter/state-memory";
import { Chat } from "chat";
import { Webhook } from "standardwebhooks";

const discord = createDiscordAdapter({
  botToken: process.env.DISCORD_TOKEN!, // also the x-discord-gateway-token that the listener sends
  applicationId: process.env.DISCORD_CLIENT_ID!,
  publicKey: process.env.DISCORD_PUBLIC_KEY!, // for interactions, which Discord sends itself
});
const bot = new Chat({
  userName: "ping-bot",
  adapters: { discord },
  // For several instances, use shared state (Redis, PostgreSQL).
  state: createMemoryState(),
});

bot.onNewMessage(/^!ping$/, async (thread, message) => {
  if (!message.author.isBot) await thread.post("Pong!");
});

const done = new Set<string>(); // A table in your database outlives a restart.
const webhook = new Webhook(process.env.GATEHOOK_SECRET!); // from POST /listeners

export default {
  /** The adapter only compares a token. The signature proves who sent the delivery, and when. */
  async fetch(request: Request): Promise<Response> {
    try {
      webhook.verify(await request.clone().text(), Object.fromEntries(request.headers));
    } catch {
      return new Response(null, { status: 401 });
    }
    const id = request.headers.get("webhook-id")!; // the same for every attempt
    if (done.has(id)) return new Response(null, { status: 204 });
    const response = await bot.webhooks.discord(request);
    if (response.ok) done.add(id);
    if (done.size > 10_000) done.delete(done.values().next().value!);
    return response;
  },
};
