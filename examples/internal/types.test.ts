// Checks what the types generated from the OpenAPI document guarantee to a receiver.
// tsc fails where an expected error does not occur.
import type { webhooks } from "../aws-lambda/gatehook.js";

type Name = Exclude<keyof webhooks, "event">;
type Event = { [N in Name]: webhooks[N]["post"]["requestBody"]["content"]["application/json"] }[Name];

export function check(event: Event): void {
  switch (event.type) {
    case "GUILD_BAN_ADD":
      event.data.user.username satisfies string;
      // @ts-expect-error a field that the event does not have
      event.data.content;
      break;
    case "MESSAGE_CREATE":
      event.data.author.bot satisfies boolean;
      event.data.guild_id satisfies string | null;
      // @ts-expect-error it is null outside of guilds
      event.data.guild_id satisfies string;
      break;
    case "CHANNEL_UPDATE":
      // @ts-expect-error not every kind of channel has a topic
      event.data.topic;
      if ("topic" in event.data) event.data.topic satisfies string | null;
      break;
    // @ts-expect-error no event has this name
    case "MESSAGE_CREATED":
      break;
  }
}
