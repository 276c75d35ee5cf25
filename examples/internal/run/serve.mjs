// The HTTP server that a platform runs in front of a function.
import { createServer } from "node:http";

/** Answers requests with answer({method, url, headers, body}) → {status}. */
export function serve(answer) {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    try {
      const { status } = await answer({ method: request.method, url: request.url, headers: request.headers, body: Buffer.concat(chunks) });
      response.writeHead(status).end();
    } catch (error) {
      console.error(error);
      response.writeHead(502).end();
    }
  });
  server.listen(0, "127.0.0.1", () => console.log("listening on", `http://127.0.0.1:${server.address().port}`));
  process.once("SIGTERM", () => process.exit());
}
