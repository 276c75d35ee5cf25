// Command receiver receives Gatehook's deliveries and answers !ping.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// delivery is the body of a delivery in the format standard.
type delivery struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// message holds the fields of a MESSAGE_CREATE that this receiver needs.
type message struct {
	ID        string `json:"id"`
	ChannelID string `json:"channel_id"`
	Content   string `json:"content"`
	Author    struct {
		Bot bool `json:"bot"`
	} `json:"author"`
}

// receiver handles deliveries.
type receiver struct {
	webhook    *standardwebhooks.Webhook
	memory     memory
	api, token string // Discord's
}

// ServeHTTP implements http.Handler.
func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
	if err != nil {
		return // the request was cut off: Gatehook tries again
	}
	// Verified over the original bytes, and not older than 5 minutes.
	if err := rc.webhook.Verify(body, r.Header); err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	id := r.Header.Get("webhook-id") // the same for every attempt
	if err := rc.handleOnce(r, id, body); err != nil {
		log.Print(id, ": ", err)
		w.WriteHeader(http.StatusInternalServerError) // Gatehook tries again
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (rc *receiver) handleOnce(r *http.Request, id string, body []byte) error {
	done, err := rc.memory.Has(r.Context(), id)
	if err != nil || done {
		return err
	}
	var d delivery
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	if err := rc.handle(r, d); err != nil {
		return err
	}
	return rc.memory.Add(r.Context(), id)
}

func (rc *receiver) handle(r *http.Request, d delivery) error {
	if d.Type != "MESSAGE_CREATE" {
		return nil
	}
	var m message
	if err := json.Unmarshal(d.Data, &m); err != nil {
		return err
	}
	if m.Author.Bot || m.Content != "!ping" {
		return nil
	}
	// If two attempts get here at once, Discord creates only one message per nonce.
	answer, err := json.Marshal(map[string]any{"content": "Pong!", "nonce": m.ID, "enforce_nonce": true})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, rc.api+"/channels/"+m.ChannelID+"/messages", bytes.NewReader(answer))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bot "+rc.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("discord answered %s", resp.Status)
	}
	return nil
}

func main() {
	webhook, err := standardwebhooks.NewWebhook(os.Getenv("GATEHOOK_SECRET")) // from POST /listeners
	if err != nil {
		log.Fatal("GATEHOOK_SECRET: ", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "3000"))
	if err != nil {
		log.Fatal(err)
	}
	log.Print("listening on http://", l.Addr())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: &receiver{
		webhook: webhook,
		memory:  newProcessMemory(10_000),
		api:     cmp.Or(os.Getenv("DISCORD_API_URL"), "https://discord.com/api/v10"),
		token:   os.Getenv("DISCORD_TOKEN"),
	}}
	log.Fatal(server.Serve(l))
}
