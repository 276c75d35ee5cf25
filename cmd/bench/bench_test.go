package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == bareCommand { // this process is the test's bare loop
		os.Exit(mainCode())
	}
	goleak.VerifyTestMain(m)
}

// TestRun runs every measurement briefly with the real server. It does not judge
// the figures, only that everything was delivered, verified and reported.
func TestRun(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{
		"--fanout", "2", "--body", "1024", "--shards", "2", "--rates", "200",
		"--stored", "1000", "--listeners", "100", "--rounds", "1", "--time", "200ms", "--json",
	}, &out, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Throughput) != 1 || len(r.Latency) != 1 || len(r.Latency[0].Rounds) != 1 {
		t.Fatalf("not everything was measured: %s", out.Bytes())
	}
	got := r.Throughput[0]
	if got.Deliveries == 0 || got.Deliveries%2 != 0 || got.Verified == 0 || got.Twice != 0 || got.BarePerSecond.Median == 0 {
		t.Errorf("deliveries %d (twice %d), verified %d, bare %v/s", got.Deliveries, got.Twice, got.Verified, got.BarePerSecond.Median)
	}
	if got.Pages == nil || got.Pages.Min == 0 || got.DatabaseSize == 0 {
		t.Errorf("no page of deliveries was read: %+v", got.Pages)
	}
	if got.BodySent < 1000 || got.BodySent > 1040 {
		t.Errorf("a body had %d bytes, want about 1024", got.BodySent)
	}
	if err := r.writeText(&out); err != nil {
		t.Error(err)
	}
}

// TestQuiet measures two shards without events. It does not judge the figures.
func TestQuiet(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--quiet", "2", "--time", "200ms", "--json"}, &out, t.Output()); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if q := r.Quiet; q == nil || q.Start <= 0 || q.MoreIntents <= 0 || q.Reshard <= 0 {
		t.Errorf("not everything was measured: %s", out.Bytes())
	}
	if err := r.writeText(&out); err != nil {
		t.Error(err)
	}
}

// TestProblemsAreNoticed checks that a run notices a lost delivery, a repeated one and a
// wrong signature.
func TestProblemsAreNoticed(t *testing.T) {
	in, err := newInbox("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
	if err != nil {
		t.Fatal(err)
	}
	head := []byte("POST /0 HTTP/1.1\r\nHost: x\r\nWebhook-Id: dlv_1\r\nWebhook-Timestamp: 1\r\nWebhook-Signature: v1,AAAA\r\n\r\n")
	if _, err := in.take(head, nil, 0, 0); err == nil {
		t.Error("a wrong signature was accepted")
	}
	if fresh, err := in.take(head, nil, 0, 0); fresh || err != nil || in.twice != 1 {
		t.Errorf("a repeated delivery: fresh %v, twice %d, %v", fresh, in.twice, err)
	}
	if _, err := in.take(head, nil, 130, 0); err != nil {
		t.Error(err)
	}
	if missing := in.missing(131); missing != 129 {
		t.Errorf("%d of 131 events are missing, want 129", missing)
	}
}

func TestSetups(t *testing.T) {
	o := options{
		fanouts: numbers{1, 10}, bodies: numbers{1024}, shards: numbers{1, 16}, stored: numbers{0, 5}, listeners: numbers{0},
	}
	want := []setup{{1, 1024, 1, 0, 0}, {10, 1024, 1, 0, 0}, {1, 1024, 16, 0, 0}, {1, 1024, 1, 5, 0}}
	if got := o.setups(); !slices.Equal(got, want) {
		t.Errorf("one change at a time: %v, want %v", got, want)
	}
	o.full = true
	if got := o.setups(); len(got) != 8 {
		t.Errorf("all combinations: %v", got)
	}
}

func TestStamp(t *testing.T) {
	at := time.Unix(1, 2)
	event, got, err := readStamp(append(append([]byte(`{"data":{"status":"`), stamp(nil, 77, at)...), `text"}}`...))
	if event != 77 || !got.Equal(at) || err != nil {
		t.Errorf("event %d at %v, %v", event, got, err)
	}
	if _, _, err := readStamp([]byte(`{"data":{"status":"hello"}}`)); err == nil {
		t.Error("a body without a stamp was accepted")
	}
}

func TestSpread(t *testing.T) {
	got := spreadOf([]float64{4, 1, 3, 2}, func(v float64) float64 { return v })
	if want := (spread{Median: 2.5, Min: 1, Max: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
