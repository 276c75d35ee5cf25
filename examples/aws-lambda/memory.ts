// Remembers for a week which deliveries are done. If TABLE is set, it keeps them in
// DynamoDB, for all instances of the function; otherwise in this instance only.
import { DynamoDBClient, GetItemCommand, PutItemCommand } from "@aws-sdk/client-dynamodb";

export interface Memory {
  has(id: string): Promise<boolean>;
  add(id: string): Promise<void>;
}

function inTable(TableName: string): Memory {
  const db = new DynamoDBClient();
  const week = 7 * 86_400;
  return {
    async has(id) {
      const found = await db.send(new GetItemCommand({ TableName, Key: { id: { S: id } }, ConsistentRead: true }));
      return found.Item !== undefined;
    },
    async add(id) {
      const expires = String(Math.floor(Date.now() / 1000) + week); // the table's time-to-live attribute
      await db.send(new PutItemCommand({ TableName, Item: { id: { S: id }, expires: { N: expires } } }));
    },
  };
}

function inProcess(): Memory {
  const done = new Set<string>();
  return {
    has: async (id) => done.has(id),
    async add(id) {
      done.add(id);
      if (done.size > 10_000) done.delete(done.values().next().value!);
    },
  };
}

export const memory = process.env.TABLE ? inTable(process.env.TABLE) : inProcess();
