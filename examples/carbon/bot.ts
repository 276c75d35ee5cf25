// A Carbon bot without a gateway connection, which answers !ping. Gatehook delivers
// the events to the bot's /events route.
import { Client, type ListenerEventData, MessageCreateListener } from "@buape/carbon";
import { createHandler } from "@buape/carbon/adapters/fetch";

class Ping extends MessageCreateListener {
  async handle({ rawMessage: message }: ListenerEventData["MESSAGE_CREATE"], client: Client): Promise<void> {
    if (message.author.bot || message.content !== "!ping") return;
    await client.rest.post(`/channels/${message.channel_id}/messages`, {
      // If a message gets here twice, Discord creates only one answer per nonce.
      body: { content: "Pong!", nonce: message.id, enforce_nonce: true },
    });
  }
}

/** Carbon checks only the signature. This class also checks the age, and whether the delivery is already done. */
class Bot extends Client {
  #done = new Set<string>(); // A table in your database outlives a restart.

  override async handleEventsRequest(request: Request): Promise<Response> {
    const age = Math.abs(Date.now() / 1000 - Number(request.headers.get("x-signature-timestamp")));
    if (!(age < 300 && (await this.validateDiscordRequest(request)))) return new Response(null, { status: 401 });
    const id = request.headers.get("webhook-id") ?? ""; // the same for every attempt; a PING has none
    if (this.#done.has(id)) return new Response(null, { status: 204 });
    const response = await super.handleEventsRequest(request); // 429 when its queue is full: Gatehook tries again
    if (response.ok && id) this.#done.add(id);
    if (this.#done.size > 10_000) this.#done.delete(this.#done.values().next().value!);
    return response;
  }
}

const bot = new Bot(
  {
    baseUrl: "http://localhost", // its path would be the prefix of the routes
    clientId: process.env.DISCORD_CLIENT_ID!,
    publicKey: process.env.GATEHOOK_PUBLIC_KEY!.split(","), // from GET /signing-keys
    token: process.env.DISCORD_TOKEN!,
    requestOptions: { baseUrl: process.env.DISCORD_API_URL ?? "https://discord.com/api/v10" },
    disableDeployRoute: true,
    disableInteractionsRoute: true,
  },
  { listeners: [new Ping()] },
);
const handle = createHandler(bot);

export default { fetch: (request: Request): Promise<Response> => handle(request, {}) };
