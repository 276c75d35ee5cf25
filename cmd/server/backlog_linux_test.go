package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

const (
	// backlogEvents says for how many events TestDeadCallbackCostsNoMemory
	// keeps a callback dead; shortBacklog if it is not set.
	backlogEvents = "GATEHOOK_BACKLOG"
	shortBacklog  = 10_000
	// mostMemory is what the server may use meanwhile, in MiB.
	mostMemory = 256
)

// TestDeadCallbackCostsNoMemory: while everything that Discord sends waits for a
// callback that is dead, another one gets all of it, and the server stays small.
func TestDeadCallbackCostsNoMemory(t *testing.T) {
	t.Parallel()
	events := shortBacklog
	if s := os.Getenv(backlogEvents); s != "" {
		var err error
		if events, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	discord := startDiscord(t)
	p := newProcess(t, discord, "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_LOG_LEVEL=info",
		"GATEHOOK_RETRY_SCHEDULE=5s,5m,30m,2h,5h,10h,14h,20h,24h")
	p.start()
	awaitReady(t, discord)
	var came atomic.Int64
	good := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came.Add(1) }))
	defer good.Close()
	dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer dead.Close()
	for _, url := range []string{good.URL, dead.URL} {
		decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, url), http.StatusCreated)
	}
	const ahead = 5000 // what is not stored yet is limited, or Discord would have to keep it
	for sent := range events {
		data := fmt.Appendf(nil, `{"id":"%d","channel_id":"2","author":{"id":"3","username":"a"},"content":%q}`, sent+1, strings.Repeat("text ", 180))
		if _, err := discord.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
			t.Fatal(err)
		}
		if sent%1000 == 999 {
			eventually(t, time.Minute, "stored", func() (bool, string) {
				stored := p.metric("gatehook_journal_events_stored_total")
				return stored >= float64(sent-ahead), fmt.Sprint(stored)
			})
		}
	}
	drained, began := int64(events)-came.Load(), time.Now()
	eventually(t, 10*time.Minute, "all with the other callback", func() (bool, string) {
		n := came.Load()
		return n >= int64(events), fmt.Sprint(n, " came")
	})
	took := time.Since(began)
	eventually(t, time.Minute, "all that waits in the database, and little in memory", func() (bool, string) {
		waits, held := p.metric("gatehook_delivery_spilled_total"), p.metric("gatehook_delivery_queued")
		return waits > float64(events)*0.9 && held <= 100, fmt.Sprint(waits, " wait in the database, ", held, " in memory")
	})
	used := p.peakMemory()
	t.Logf("%d events wait; at most %d MiB were in use; the other callback got its last %d in %s, %.0f a second",
		events, used, drained, took.Round(time.Millisecond), float64(drained)/took.Seconds())
	if used > mostMemory {
		t.Errorf("%d MiB were in use, want at most %d", used, mostMemory)
	}
}

// peakMemory is the most that the process had in memory so far, in MiB.
func (p *process) peakMemory() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		p.t.Fatalf("no peak in %s", status)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		p.t.Fatal(err)
	}
	return kib >> 10
}
