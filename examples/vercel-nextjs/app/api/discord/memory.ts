// Remembers for a week which deliveries are done. If KV_REST_API_URL is set, it keeps
// them in Redis over HTTP (Upstash, from Vercel's marketplace), for all instances of
// the function; otherwise in this instance only.
export interface Memory {
  has(id: string): Promise<boolean>;
  add(id: string): Promise<void>;
}

function inRedis(url: string, token: string): Memory {
  async function run(...command: string[]): Promise<unknown> {
    const response = await fetch(url, {
      method: "POST",
      headers: { authorization: `Bearer ${token}` },
      body: JSON.stringify(command),
    });
    if (!response.ok) throw new Error(`Redis answered ${response.status}`);
    return ((await response.json()) as { result: unknown }).result;
  }
  return {
    has: async (id) => (await run("EXISTS", id)) === 1,
    add: async (id) => void (await run("SET", id, "done", "EX", String(7 * 86_400))),
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

const { KV_REST_API_URL, KV_REST_API_TOKEN } = process.env;
export const memory = KV_REST_API_URL ? inRedis(KV_REST_API_URL, KV_REST_API_TOKEN ?? "") : inProcess();
