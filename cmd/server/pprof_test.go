package main

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

// TestPprof checks that profiles are served on their own address only, and don't
// hold up a drain.
func TestPprof(t *testing.T) {
	t.Parallel()
	p := newProcess(t, startDiscord(t), "DATABASE_URL="+postgrestest.URL(t), "GATEHOOK_PPROF_ADDR=127.0.0.1:0")
	p.start()
	logged := regexp.MustCompile(`"pprof":"(http://127\.0\.0\.1:\d+/debug/pprof/)"`).FindStringSubmatch(p.output())
	if logged == nil {
		t.Fatalf("the address is not logged:\n%s", p.output())
	}
	fetch := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, logged[1]+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close() //nolint:errcheck // only read
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := fetch("goroutine?debug=1"); status != http.StatusOK || !strings.Contains(body, "goroutine profile") {
		t.Errorf("goroutine: %d %.200s", status, body)
	}
	if status, body := p.get("/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("on the API's address: %d %.200s", status, body)
	}
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		fetch("profile?seconds=50")
	}()
	eventually(t, 30*time.Second, "profiling", func() (bool, string) {
		_, stacks := fetch("goroutine?debug=1")
		return strings.Contains(stacks, "pprof.Profile"), stacks
	})
	if code := p.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if strings.Contains(p.output(), errTooLate.Error()) {
		t.Error("the drain waited for the profile")
	}
	<-cut
}
