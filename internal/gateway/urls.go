package gateway

import (
	"errors"
	"maps"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gatehook/gatehook/internal/discord"
)

// urls returns where to connect, in the order to try. A session begins at the
// gateway's URL, and is resumed at its own: Discord disconnects sessions that are
// resumed elsewhere more often (Discord: Preparing to Resume). It is resumed at
// the gateway's URL if its own is not usable or does not answer, with the same
// compression. before is how the previous connection ended; nil for none.
func (s *shard) urls(resumeURL string, before *ending) []string {
	gateway := s.turns.URL()
	if resumeURL == "" {
		return []string{gateway}
	}
	resumeURL = discord.WithCompression(resumeURL, s.unnamed)
	if c := discord.CompressionOf(resumeURL); c != "" {
		gateway = discord.WithCompression(gateway, c)
	}
	silent := before != nil && before.opened && !before.greeted || s.silent.has(resumeURL, time.Now())
	if silent || !usable(resumeURL, gateway) {
		return []string{gateway}
	}
	return []string{resumeURL, gateway}
}

// silentURLs are the resume URLs that did not answer a moment ago, while the
// gateway's did. All shards share them: few may dial at a time, and each dial
// that is not answered takes seconds.
type silentURLs struct {
	mu sync.Mutex           // guards at
	at map[string]time.Time // by URL without its query
}

// silentKept is how long a URL that did not answer is not tried again.
const silentKept = time.Minute

func (u *silentURLs) note(url string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.at, func(_ string, at time.Time) bool { return now.Sub(at) >= silentKept })
	u.at[withoutQuery(url)] = now
}

func (u *silentURLs) has(url string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, noted := u.at[withoutQuery(url)]
	return noted && now.Sub(at) < silentKept
}

// withoutQuery makes URLs equal that differ only in the compression.
func withoutQuery(url string) string {
	url, _, _ = strings.Cut(url, "?")
	return url
}

// usable reports whether a resume URL is valid and not less safe than the
// gateway's: the token is sent there.
func usable(resumeURL, gateway string) bool {
	g, err1 := url.Parse(gateway)
	r, err2 := url.Parse(resumeURL)
	return errors.Join(err1, err2) == nil && r.Host != "" && (g.Scheme != "wss" || r.Scheme == "wss")
}
