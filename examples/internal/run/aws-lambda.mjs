// Invokes the function with lambda-local, with the events that a function URL makes
// from HTTP requests (payload format 2.0). Every invocation is a cold start, so only
// the table remembers deliveries. Dynalite takes the place of DynamoDB.
import { CreateTableCommand, DynamoDBClient } from "@aws-sdk/client-dynamodb";
import dynalite from "dynalite";
import lambdaLocal from "lambda-local";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bundle } from "./bundle.mjs";
import { serve } from "./serve.mjs";

const dynamodb = dynalite({ createTableMs: 0 }).listen(0, "127.0.0.1");
await once(dynamodb, "listening");
Object.assign(process.env, {
  TABLE: "deliveries",
  AWS_ENDPOINT_URL_DYNAMODB: `http://127.0.0.1:${dynamodb.address().port}`,
  AWS_REGION: "eu-central-1",
  AWS_ACCESS_KEY_ID: "test",
  AWS_SECRET_ACCESS_KEY: "test",
});
await new DynamoDBClient().send(
  new CreateTableCommand({
    TableName: process.env.TABLE,
    AttributeDefinitions: [{ AttributeName: "id", AttributeType: "S" }],
    KeySchema: [{ AttributeName: "id", KeyType: "HASH" }],
    BillingMode: "PAY_PER_REQUEST",
  }),
);

const dir = mkdtempSync(join(tmpdir(), "gatehook-lambda-"));
process.once("exit", () => rmSync(dir, { recursive: true }));
const file = join(dir, "index.cjs");
writeFileSync(file, await bundle("aws-lambda/function.ts", { platform: "node", format: "cjs" }));
lambdaLocal.getLogger().level = "warn";

serve(async ({ method, url, headers, body }) => {
  const { pathname, search } = new URL(url, "http://localhost");
  const text = /^application\/json/.test(headers["content-type"] ?? "");
  const result = await lambdaLocal.execute({
    lambdaPath: file,
    timeoutMs: 15_000,
    event: {
      version: "2.0",
      routeKey: "$default",
      rawPath: pathname,
      rawQueryString: search.slice(1),
      headers,
      requestContext: { http: { method, path: pathname, protocol: "HTTP/1.1" }, timeEpoch: Date.now() },
      body: body.toString(text ? "utf8" : "base64"),
      isBase64Encoded: !text,
    },
  });
  return { status: result.statusCode };
});
