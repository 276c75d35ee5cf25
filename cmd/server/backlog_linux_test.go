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
	// backlogEvents names the variable with the number of events that
	// TestDeadCallbackCostsNoMemory sends; shortBacklog is the default.
	backlogEvents = "GATEHOOK_BACKLOG"
	shortBacklog  = 10_000
	// maxMemory is how much memory the server may use meanwhile, in MiB.
	maxMemory = 256
)

// TestDeadCallbackCostsNoMemory checks that a dead callback, for which every
// event waits, neither delays another callback nor fills the server's memory.
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
	var arrived atomic.Int64
	good := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
	defer good.Close()
	dead := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer dead.Close()
	for _, url := range []string{good.URL, dead.URL} {
		decode[struct{ ID string }](t, p, "POST", "/listeners", fmt.Sprintf(`{"event":"MESSAGE_CREATE","url":%q}`, url), http.StatusCreated)
	}
	const maxUnstored = 5000 // the simulated Discord keeps unstored events for replay, but not without limit
	for sent := range events {
		data := fmt.Appendf(nil, `{"id":"%d","channel_id":"2","author":{"id":"3","username":"a"},"content":%q}`, sent+1, strings.Repeat("text ", 180))
		if _, err := discord.Dispatch(0, "MESSAGE_CREATE", data); err != nil {
			t.Fatal(err)
		}
		if sent%1000 == 999 {
			eventually(t, time.Minute, "stored", func() (bool, string) {
				stored := p.metric("gatehook_journal_events_stored_total")
				return stored >= float64(sent-maxUnstored), fmt.Sprint(stored)
			})
		}
	}
	drained, began := int64(events)-arrived.Load(), time.Now()
	eventually(t, 10*time.Minute, "all delivered to the other callback", func() (bool, string) {
		n := arrived.Load()
		return n >= int64(events), fmt.Sprint(n, " arrived")
	})
	took := time.Since(began)
	eventually(t, time.Minute, "most waiting deliveries in the database, and few in memory", func() (bool, string) {
		waits, inMemory := p.metric("gatehook_delivery_spilled_total"), p.metric("gatehook_delivery_queued")
		return waits > float64(events)*0.9 && inMemory <= 100, fmt.Sprint(waits, " wait in the database, ", inMemory, " in memory")
	})
	used := p.peakMemory()
	t.Logf("%d events wait; the server used at most %d MiB; the other callback got its last %d in %s, %.0f per second",
		events, used, drained, took.Round(time.Millisecond), float64(drained)/took.Seconds())
	if used > maxMemory {
		t.Errorf("the server used %d MiB, want at most %d", used, maxMemory)
	}
}

// peakMemory returns the most memory that the process has used so far, in MiB.
func (p *process) peakMemory() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		p.t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		p.t.Fatal(err)
	}
	return kib >> 10
}
