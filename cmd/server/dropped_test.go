package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestDroppedPayloadsAreDelivered: payloads that nobody can read reach a listener
// as GATEHOOK_PAYLOAD_DROPPED, by the contract, and all others arrive on the same
// connection. No name of an event adds a header.
func TestDroppedPayloadsAreDelivered(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)
	type delivery struct {
		header http.Header
		body   []byte
	}
	got := make(chan delivery, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- delivery{r.Header, body}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	for _, name := range []string{"GATEHOOK_PAYLOAD_DROPPED", "RAW_*"} {
		if status, body := p.call(http.MethodPost, "/listeners", fmt.Sprintf(`{"event":%q,"url":"%s/%s"}`, name, srv.URL, name[:3])); status != http.StatusCreated {
			t.Fatalf("register: %d %s", status, body)
		}
	}
	broken, err := discord.Dispatch(0, "MESSAGE_CREATE", []byte("{\"content\":\"a\x01b\"}"))
	if err != nil {
		t.Fatal(err)
	}
	frame, err := discordtest.ParseFrame([]byte(`{"t":"ODD\\r\\nX-Injected: yes","s":1,"op":0,"d":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	odd, err := discord.DispatchFrame(0, frame)
	if err != nil {
		t.Fatal(err)
	}
	const last = "{\"id\":\"1\",\"content\":\"a\xffb\"}"
	if _, err := discord.Dispatch(0, "MESSAGE_UPDATE", []byte(last)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		fmt.Sprintf(`{"shard_id":0,"session_id":%q,"seq":%d,"event":"MESSAGE_CREATE","reason":"not_json"}`, broken.Session, broken.Seq): "",
		fmt.Sprintf(`{"shard_id":0,"session_id":%q,"seq":%d,"event":null,"reason":"event_name"}`, odd.Session, odd.Seq):                 "",
	}
	validate, missing, limit := validator(t), len(want)*2+1, time.After(time.Minute)
	for missing > 0 {
		select {
		case d := <-got:
			if d.header.Get("X-Injected") != "" {
				t.Errorf("a header was injected: %v", d.header)
			}
			var body struct{ Data json.RawMessage }
			name := d.header.Get("Gatehook-Event")
			switch {
			case name == "RAW_MESSAGE_UPDATE":
				if !strings.Contains(string(d.body), `"data":`+last) {
					t.Errorf("%q was delivered as %q", last, d.body)
				}
				missing--
			case strings.HasSuffix(name, "GATEHOOK_PAYLOAD_DROPPED"):
				if err := json.Unmarshal(d.body, &body); err != nil {
					t.Error(err)
				}
				if _, expected := want[string(body.Data)]; !expected {
					t.Errorf("%s, want one of %v", body.Data, want)
				}
				if name == "GATEHOOK_PAYLOAD_DROPPED" {
					validate(name, d.body)
				}
				missing--
			case name != "RAW_SHARD_CONNECT" && name != "RAW_CONNECT" && name != "RAW_READY":
				t.Errorf("%s: %s", name, d.body)
			}
		case <-limit:
			t.Fatalf("%d deliveries did not arrive", missing)
		}
	}
	if n := discord.Count(discordtest.Connected, discordtest.AnyShard); n != shards {
		t.Errorf("%d connections, want %d", n, shards)
	}
}
