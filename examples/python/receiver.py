"""Receives Gatehook's deliveries and answers !ping."""

import json
import os
import sqlite3
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

LARGEST = 16 << 20  # bytes of a body


class Memory:
    """Remembers which deliveries are done."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS done (id TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP)")

    def has(self, delivery: str) -> bool:
        with self.lock:
            return self.db.execute("SELECT 1 FROM done WHERE id = ?", (delivery,)).fetchone() is not None

    def add(self, delivery: str) -> None:
        with self.lock:
            self.db.execute("INSERT OR IGNORE INTO done (id) VALUES (?)", (delivery,))
            # Gatehook does not try for a week.
            self.db.execute("DELETE FROM done WHERE at < datetime('now', '-7 days')")


def handle(event: dict) -> None:
    message = event["data"]
    if event["type"] != "MESSAGE_CREATE" or message["author"]["bot"] or message["content"] != "!ping":
        return
    api = os.environ.get("DISCORD_API_URL", "https://discord.com/api/v10")
    # If two attempts get here at once, Discord creates only one message per nonce.
    answer = {"content": "Pong!", "nonce": message["id"], "enforce_nonce": True}
    request = urllib.request.Request(
        f"{api}/channels/{message['channel_id']}/messages",
        data=json.dumps(answer).encode(),
        headers={
            "Authorization": f"Bot {os.environ['DISCORD_TOKEN']}",
            "Content-Type": "application/json",
            # Discord refuses Python's own name for itself.
            "User-Agent": "DiscordBot (https://github.com/gatehook/gatehook, 1.0)",
        },
    )
    urllib.request.urlopen(request, timeout=10).close()  # raises for any status but 2xx


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    timeout = 60  # seconds that one may be idle

    def do_POST(self) -> None:
        self.send_response(self.receive())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def receive(self) -> int:
        size = int(self.headers.get("Content-Length", 0))
        if size > LARGEST:
            self.close_connection = True
            return 413
        body = self.rfile.read(size)
        try:
            # Verified over the original bytes, and not older than 5 minutes.
            event = webhook.verify(body, dict(self.headers))
        except (WebhookVerificationError, ValueError):
            return 401
        delivery = self.headers["webhook-id"]  # the same for every attempt
        try:
            if not memory.has(delivery):
                handle(event)
                memory.add(delivery)
        except Exception as error:
            print(f"{delivery}: {error}", file=sys.stderr)
            return 500  # Gatehook tries again
        return 204

    def log_request(self, *_: object) -> None:
        """Says nothing: Gatehook keeps a record of every attempt."""


if __name__ == "__main__":
    webhook = Webhook(os.environ["GATEHOOK_SECRET"])  # from POST /listeners
    memory = Memory(os.environ.get("MEMORY", "deliveries.db"))
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "3000"))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
