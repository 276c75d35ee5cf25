package main

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// documented returns the type and labels of every metric in docs/metrics.md.
func documented(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(gatehook_\\w+)` \\| (\\w+) \\| ([^|]*) ?\\| ")
	found := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		labels := strings.FieldsFunc(m[3], func(r rune) bool { return strings.ContainsRune("`, ", r) })
		slices.Sort(labels)
		found[m[1]] = m[2] + " " + strings.Join(labels, ",")
	}
	return found
}

// shown returns the type and labels of every metric in the answer of GET /metrics.
func shown(text string) map[string]string {
	found, labels := map[string]string{}, map[string]map[string]bool{}
	kind := regexp.MustCompile(`(?m)^# TYPE (gatehook_\w+) (\w+)$`)
	sample := regexp.MustCompile(`(?m)^(gatehook_\w+)\{(.*)\} `)
	label := regexp.MustCompile(`(\w+)="`)
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m[1], "")
		if labels[name] == nil {
			labels[name] = map[string]bool{}
		}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			labels[name][l[1]] = true
		}
	}
	for _, m := range kind.FindAllStringSubmatch(text, -1) {
		delete(labels[m[1]], "le")
		found[m[1]] = m[2] + " " + strings.Join(slices.Sorted(maps.Keys(labels[m[1]])), ",")
	}
	return found
}

// TestMetricsAreDocumented checks that docs/metrics.md lists exactly the metrics
// that GET /metrics shows, with their types and labels.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	discord, p, l := withTraffic(t)
	// Some metrics are shown only after the first use.
	if status, body := p.call(http.MethodPut, "/presence", `{"status":"idle"}`); status >= 300 {
		t.Fatalf("PUT /presence: %d %s", status, body)
	}
	if err := discord.Do(0, discordtest.Send([]byte(`{"op":99,"d":{}}`)), discordtest.Reconnect()); err != nil {
		t.Fatal(err)
	}
	l.await(time.Minute)
	want := documented(t)
	eventually(t, time.Minute, "equal to the documented metrics", func() (bool, string) {
		_, text := p.get("/metrics")
		diff := cmp.Diff(want, shown(text))
		return diff == "", diff
	})
}
