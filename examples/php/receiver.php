<?php

// Receives Gatehook's deliveries and answers !ping.

require __DIR__ . '/vendor/autoload.php';

use StandardWebhooks\Webhook;

/** Remembers which deliveries are done, in files of a directory that all workers share. */
final class Memory
{
    public function __construct(private string $directory)
    {
        is_dir($directory) || mkdir($directory, 0700, true);
    }

    /** Calls $work, unless it has been done for this id. A second attempt waits for the first. */
    public function once(string $id, callable $work): void
    {
        $file = fopen($this->directory . '/' . hash('sha256', $id), 'c+');
        flock($file, LOCK_EX); // given up when the file is closed
        if (fgetc($file) === false) {
            $work();
            fwrite($file, '1');
        }
        fclose($file);
    }

    /** Forgets what is older than a week: Gatehook does not try for that long. */
    public function tidy(): void
    {
        foreach (glob($this->directory . '/*') as $file) {
            if (filemtime($file) < time() - 7 * 24 * 3600) {
                unlink($file);
            }
        }
    }
}

function handle(array $event): void
{
    $message = $event['data'];
    if ($event['type'] !== 'MESSAGE_CREATE' || $message['author']['bot'] || $message['content'] !== '!ping') {
        return;
    }
    $api = getenv('DISCORD_API_URL') ?: 'https://discord.com/api/v10';
    // If two servers get here at once, Discord creates only one message per nonce.
    $answer = ['content' => 'Pong!', 'nonce' => $message['id'], 'enforce_nonce' => true];
    $request = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => ['Authorization: Bot ' . getenv('DISCORD_TOKEN'), 'Content-Type: application/json'],
        'content' => json_encode($answer),
        'timeout' => 10,
    ]]);
    // Any status but 2xx or 3xx makes this false.
    if (@file_get_contents("$api/channels/{$message['channel_id']}/messages", false, $request) === false) {
        throw new RuntimeException('Discord refused the message: ' . (error_get_last()['message'] ?? ''));
    }
}

// Verified over the original bytes, and not older than 5 minutes. The library wants the
// names of headers in lower case; some servers in front of PHP change them.
$headers = array_change_key_case(getallheaders());
try {
    $event = (new Webhook(getenv('GATEHOOK_SECRET')))->verify(file_get_contents('php://input'), $headers);
} catch (Throwable) {
    http_response_code(401);
    return;
}
$memory = new Memory(getenv('MEMORY') ?: sys_get_temp_dir() . '/gatehook-receiver');
try {
    $memory->once($headers['webhook-id'], fn () => handle($event)); // the same id for every attempt
} catch (Throwable $e) {
    error_log($headers['webhook-id'] . ': ' . $e->getMessage());
    http_response_code(500); // Gatehook tries again
    return;
}
http_response_code(204);
random_int(1, 1000) === 1 && $memory->tidy();
