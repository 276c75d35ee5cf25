package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestEveryEvent sends every documented event through the real server. The raw
// delivery must have the same bytes, and the parsed one must match the schema in
// the served contract.
func TestEveryEvent(t *testing.T) {
	t.Parallel()
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t))
	p.start()
	awaitReady(t, discord)

	type delivery struct {
		name string
		body []byte
	}
	got := make(chan delivery, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- delivery{r.Header.Get("gatehook-event"), body}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	want := map[string][]byte{}
	for _, e := range event.Types() {
		sample, ok := event.Sample(e.Name)
		if !ok || e.Name == "READY" {
			continue // READY would begin another session
		}
		for _, name := range []string{e.Name, event.RawPrefix + e.Name} {
			register := fmt.Sprintf(`{"event":%q,"url":"%s/%s"}`, name, srv.URL, name)
			if status, body := p.call(http.MethodPost, "/listeners", register); status != http.StatusCreated {
				t.Fatalf("register: %d %s", status, body)
			}
			want[name] = sample
		}
		if _, err := discord.Dispatch(0, e.Name, sample); err != nil {
			t.Fatal(err)
		}
	}
	limit := time.After(2 * time.Minute)
	validate := validator(t)
	for len(want) > 0 {
		select {
		case d := <-got:
			sample, expected := want[d.name]
			delete(want, d.name)
			var body struct{ Data json.RawMessage }
			if err := json.Unmarshal(d.body, &body); err != nil || !expected {
				t.Errorf("%s: %v, expected: %v", d.name, err, expected)
			}
			if name, raw := bytes.CutPrefix([]byte(d.name), []byte(event.RawPrefix)); !raw {
				validate(string(name), d.body)
			} else if !bytes.Equal(body.Data, sample) {
				t.Errorf("%s: sent %s, got %s", d.name, sample, body.Data)
			}
		case <-limit:
			t.Fatalf("%d deliveries did not arrive: %v", len(want), want)
		}
	}
}

// validator returns a function that checks bodies against the webhooks of the
// served contract.
func validator(t *testing.T) func(name string, body []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Contract()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	return func(name string, body []byte) {
		t.Helper()
		schema, err := c.Compile("openapi.json#/webhooks/" + name + "/post/requestBody/content/application~1json/schema")
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %v\n%s", name, err, body)
		}
	}
}
