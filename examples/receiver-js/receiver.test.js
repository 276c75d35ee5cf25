// Runs receiver.js as a process and sends it deliveries. They are signed here with
// node:crypto, not with the library that verifies them.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac, randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

const key = randomBytes(32);
const body = JSON.stringify({
  type: "GUILD_BAN_ADD",
  timestamp: "2026-10-03T12:00:00.123Z",
  id: "evt_1",
  shard: [0, 1],
  seq: 7,
  data: { guild_id: "41771983423143937", user: { id: "80351110224678912", username: "Nellyé" } },
});

let receiver;
let output;
let url;
const lines = []; // the receiver's output: a line per handled delivery

before(async () => {
  receiver = spawn(process.execPath, [fileURLToPath(new URL("receiver.js", import.meta.url))], {
    env: { ...process.env, GATEHOOK_SECRET: `whsec_${key.toString("base64")}`, PORT: "0" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  output = createInterface({ input: receiver.stdout });
  const [first] = await once(output, "line");
  url = `http://127.0.0.1:${first.split(" ").at(-1)}/`;
  output.on("line", (line) => lines.push(line));
});

after(async () => {
  receiver.kill();
  await once(receiver, "exit");
});

const now = () => Math.floor(Date.now() / 1000);

function sign(id, timestamp, text, secret = key) {
  return `v1,${createHmac("sha256", secret).update(`${id}.${timestamp}.${text}`).digest("base64")}`;
}

// deliver posts a delivery and returns the status of the answer.
async function deliver({ id, timestamp = now(), text = body, signature = sign(id, timestamp, text) }) {
  const response = await fetch(url, {
    method: "POST",
    body: text,
    headers: {
      "content-type": "application/json",
      "webhook-id": id,
      "webhook-timestamp": String(timestamp),
      "webhook-signature": signature,
    },
  });
  return response.status;
}

// handled returns the lines printed since its last call. Lines arrive in order, so once
// the line of one more delivery has arrived, all lines before it have too.
async function handled() {
  const mark = randomUUID();
  await deliver({ id: `dlv_${mark}`, text: JSON.stringify({ type: "MARK", data: { guild_id: mark } }) });
  while (lines.at(-1) !== `MARK ${mark}`) await once(output, "line");
  return lines.splice(0).slice(0, -1);
}

test("a signed delivery is accepted and handled once", async () => {
  assert.equal(await deliver({ id: "dlv_1" }), 204);
  assert.equal(await deliver({ id: "dlv_1" }), 204); // its second attempt
  assert.deepEqual(await Promise.all([deliver({ id: "dlv_2" }), deliver({ id: "dlv_2" })]), [204, 204]);
  assert.deepEqual(await handled(), ["GUILD_BAN_ADD 41771983423143937", "GUILD_BAN_ADD 41771983423143937"]);
});

test("either signature of a rotated secret is enough", async () => {
  const timestamp = now();
  const signature = `${sign("dlv_3", timestamp, body, randomBytes(32))} ${sign("dlv_3", timestamp, body)}`;
  assert.equal(await deliver({ id: "dlv_3", timestamp, signature }), 204);
  assert.deepEqual(await handled(), ["GUILD_BAN_ADD 41771983423143937"]);
});

const forged = {
  "with another secret": (id, timestamp) => ({ signature: sign(id, timestamp, body, randomBytes(32)) }),
  "with a byte of the body changed": (id, timestamp) => ({
    text: body.replace("41771983423143937", "41771983423143938"),
    signature: sign(id, timestamp, body),
  }),
  "under another id": (id, timestamp) => ({ signature: sign("dlv_other", timestamp, body) }),
  "with a newer timestamp than the signed one": (id, timestamp) => ({ signature: sign(id, timestamp - 1, body) }),
  "signed six minutes ago": () => ({ timestamp: now() - 360 }),
  "signed six minutes ahead": () => ({ timestamp: now() + 360 }),
  "without a signature": () => ({ signature: "" }),
};

for (const [what, forge] of Object.entries(forged)) {
  test(`a delivery ${what} is refused`, async () => {
    const id = `dlv_${randomUUID()}`;
    const timestamp = now();
    assert.equal(await deliver({ id, timestamp, ...forge(id, timestamp) }), 401);
    assert.deepEqual(await handled(), []);
    assert.equal(await deliver({ id }), 204); // nothing else was wrong, and the id does not count as done
    assert.deepEqual(await handled(), ["GUILD_BAN_ADD 41771983423143937"]);
  });
}

test("a delivery that could not be handled is answered 500, to be sent again", async () => {
  const text = JSON.stringify({ type: "GUILD_BAN_ADD", data: null });
  assert.equal(await deliver({ id: "dlv_5", text }), 500);
  assert.equal(await deliver({ id: "dlv_5" }), 204);
  assert.deepEqual(await handled(), ["GUILD_BAN_ADD 41771983423143937"]);
});

test("a body that is too large ends the connection, not the receiver", async () => {
  await assert.rejects(deliver({ id: "dlv_6", text: "x".repeat((16 << 20) + 1) }), TypeError);
  assert.equal(await deliver({ id: "dlv_7" }), 204);
});
