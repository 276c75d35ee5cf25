package discordtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// handleAPI serves the gateway's URL, and the REST calls under any path prefix.
func (s *Server) handleAPI(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		s.handleGateway(w, r, false)
	case r.Method != http.MethodGet:
		writeError(w, http.StatusMethodNotAllowed)
	case strings.HasSuffix(r.URL.Path, "/gateway"):
		writeJSON(w, http.StatusOK, map[string]any{"url": s.GatewayURL()})
	case strings.HasSuffix(r.URL.Path, "/gateway/bot"):
		s.answer(w, r, AtGatewayBot, s.gatewayBotLocked)
	case strings.HasSuffix(r.URL.Path, "/applications/@me"):
		s.answer(w, r, AtApplication, s.applicationLocked)
	default:
		writeError(w, http.StatusNotFound)
	}
}

// answer answers a call that needs the bot's token, unless an armed fault does.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, at Moment, body func() any) {
	s.mu.Lock()
	actions := s.fireLocked(at, AnyShard)
	token, authorized := strings.CutPrefix(r.Header.Get("Authorization"), "Bot ")
	if authorized {
		_, authorized = s.clientOfLocked(token)
	}
	s.mu.Unlock()
	switch {
	case !s.actHTTP(w, r, actions):
	case !authorized:
		writeError(w, http.StatusUnauthorized)
	default:
		s.mu.Lock()
		answer := body()
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, answer)
	}
}

// gatewayBotLocked returns the answer to Get Gateway Bot.
func (s *Server) gatewayBotLocked() any {
	l := s.sessionStartLocked()
	return map[string]any{
		"url":    s.GatewayURL(),
		"shards": s.cfg.Shards,
		"session_start_limit": map[string]any{
			"total":           l.Total,
			"remaining":       l.Remaining,
			"reset_after":     l.ResetAfter.Milliseconds(),
			"max_concurrency": l.MaxConcurrency,
		},
	}
}

// applicationLocked returns the fields of Discord's application object that a
// gateway client reads.
func (s *Server) applicationLocked() any {
	return map[string]any{
		"id":          strconv.FormatUint(s.cfg.ApplicationID, 10),
		"name":        "discordtest",
		"description": "",
		"flags":       s.cfg.Flags,
		"bot":         s.user(),
	}
}

func (s *Server) user() any {
	return map[string]any{
		"id": strconv.FormatUint(s.cfg.UserID, 10), "username": "discordtest", "discriminator": "0000",
		"global_name": nil, "avatar": nil, "bot": true,
	}
}

// readyDataLocked returns the `d` of READY (Discord: Gateway Events, Ready).
func (s *Server) readyDataLocked(ss *session) []byte {
	guilds := []any{}
	for _, id := range s.cfg.Guilds {
		if ShardOf(id, ss.count) == ss.shard {
			guilds = append(guilds, map[string]any{"id": strconv.FormatUint(id, 10), "unavailable": true})
		}
	}
	return mustJSON(map[string]any{
		"v":                  ss.query.version,
		"user":               s.user(),
		"guilds":             guilds,
		"session_id":         ss.id,
		"resume_gateway_url": s.ResumeURL(),
		"shard":              []int{ss.shard, ss.count},
		"application":        map[string]any{"id": strconv.FormatUint(s.cfg.ApplicationID, 10), "flags": s.cfg.Flags},
	})
}

// actHTTP performs the actions armed for a plain request or a handshake, and
// reports whether the request still needs an answer.
func (s *Server) actHTTP(w http.ResponseWriter, r *http.Request, actions []Action) (goOn bool) {
	for _, a := range actions {
		switch a.verb {
		case verbDelay:
			t := time.NewTimer(a.wait)
			select {
			case <-t.C:
			case <-r.Context().Done():
			case <-s.done:
			}
			t.Stop()
		case verbStatus:
			if a.wait > 0 {
				writeRateLimited(w, a.wait)
			} else {
				writeError(w, a.code)
			}
			return false
		case verbSilence:
			select {
			case <-r.Context().Done():
			case <-s.done:
			}
			return false
		default: // Drop and Reset: Arm accepts nothing else here
			if nc, _, err := http.NewResponseController(w).Hijack(); err == nil {
				broken := newWire(nc)
				if a.verb == verbReset {
					broken.reset()
				} else {
					_ = broken.Close() // nobody needs the error
				}
			}
			return false
		}
	}
	return true
}

// writeError writes Discord's JSON error body.
func writeError(w http.ResponseWriter, status int) {
	writeJSON(w, status, map[string]any{"message": fmt.Sprintf("%d: %s", status, http.StatusText(status)), "code": 0})
}

// writeRateLimited writes Discord's 429 (Discord: Rate Limits).
func writeRateLimited(w http.ResponseWriter, after time.Duration) {
	w.Header().Set("Retry-After", strconv.FormatFloat(after.Seconds(), 'f', -1, 64))
	writeJSON(w, http.StatusTooManyRequests, map[string]any{
		"message": "You are being rate limited.", "retry_after": after.Seconds(), "global": false,
	})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(mustJSON(body)) // fails only if the client is gone
}

// mustJSON encodes values that this package built from maps, numbers and
// strings, which can't fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
