package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/gatehook/gatehook/internal/delivery"
	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/gateway"
	"github.com/gatehook/gatehook/internal/secret"
)

// config holds the settings from the environment, which only this package reads.
type config struct {
	token       secret.Value
	discordURL  string
	databaseURL secret.Value // contains a password
	// directURL is databaseURL without a pooler between; empty for the same.
	directURL   secret.Value
	dataDir     string
	addr        string
	pprofAddr   string // "" for none
	apiKey      secret.Value
	encryption  secret.Keys
	intents     intents
	shards      gateway.Shards
	compression discord.Compression
	// unnamedCompression is the one that was set, and was set before an upgrade.
	unnamedCompression discord.Compression
	allowTargets       []netip.Prefix
	// proxy returns the proxy for requests to a URL, or nil. The function itself is
	// nil if no proxy is set.
	proxy           func(*url.URL) (*url.URL, error)
	schedule        delivery.Schedule
	attemptTimeout  time.Duration
	retention       time.Duration
	shutdownTimeout time.Duration
	logFormat       string
	logLevel        string
	tracing         tracingConfig
}

// intents are the intents with which shards identify: fixed ones, or those that the
// registered listeners need (auto).
type intents struct {
	auto  bool
	fixed event.Intents
}

// readConfig reads and checks the environment. The error joins one line for
// every invalid variable.
func readConfig(getenv func(string) string, needToken bool) (config, error) {
	r := reader{getenv: getenv}
	c := config{
		token:           r.token("DISCORD_TOKEN", needToken),
		discordURL:      r.httpURL("DISCORD_API_URL", "https://discord.com/api/v10"),
		databaseURL:     r.databaseURL("DATABASE_URL"),
		directURL:       r.databaseURL("DATABASE_DIRECT_URL"),
		dataDir:         r.text("GATEHOOK_DATA_DIR", ".gatehook"),
		addr:            r.addr("GATEHOOK_ADDR", "127.0.0.1:8080"),
		pprofAddr:       r.loopback("GATEHOOK_PPROF_ADDR"),
		apiKey:          r.apiKey("GATEHOOK_API_KEY"),
		encryption:      r.keys("GATEHOOK_ENCRYPTION_KEY"),
		allowTargets:    r.prefixes("GATEHOOK_ALLOW_TARGETS"),
		proxy:           r.proxy(),
		attemptTimeout:  r.duration("GATEHOOK_ATTEMPT_TIMEOUT", 15*time.Second, time.Millisecond, 10*time.Minute),
		retention:       r.duration("GATEHOOK_RETENTION", 168*time.Hour, time.Second, 10*365*24*time.Hour),
		shutdownTimeout: r.duration("GATEHOOK_SHUTDOWN_TIMEOUT", 30*time.Second, 100*time.Millisecond, time.Hour),
		logFormat:       r.oneOf("GATEHOOK_LOG_FORMAT", "", "text", "json"),
		logLevel:        r.oneOf("GATEHOOK_LOG_LEVEL", "info", "debug", "info", "warn", "error"),
	}
	c.compression = discord.Compression(r.oneOf("GATEHOOK_COMPRESSION", string(discord.ZlibStream),
		string(discord.ZstdStream), string(discord.ZlibStream), string(discord.NoCompression)))
	if strings.TrimSpace(getenv("GATEHOOK_COMPRESSION")) != "" {
		c.unnamedCompression = c.compression
	}
	c.intents = parsed(&r, "GATEHOOK_INTENTS", "auto",
		"auto, a number such as 513, or names such as GUILDS,GUILD_MESSAGES", parseIntents)
	c.shards = parsed(&r, "GATEHOOK_SHARDS", "auto",
		"auto, a total such as 16, or a range of a total such as 0-7/16", gateway.ParseShards)
	c.schedule = parsed(&r, "GATEHOOK_RETRY_SCHEDULE", "5s,5m,30m,2h,5h,10h,14h,20h,24h",
		"waits joined with commas such as 5s,5m,1h", delivery.ParseSchedule)
	c.tracing = r.tracing()
	if !c.directURL.Empty() && c.databaseURL.Empty() {
		r.problems = append(r.problems, errors.New("DATABASE_DIRECT_URL is set without DATABASE_URL: it names the same database without a pooler between"))
	}
	return c, errors.Join(r.problems...)
}

func parseIntents(s string) (intents, error) {
	if strings.EqualFold(s, "auto") {
		return intents{auto: true}, nil
	}
	fixed, err := event.ParseIntents(s)
	return intents{fixed: fixed}, err
}

// reader reads variables and collects the problems with their values.
type reader struct {
	getenv   func(string) string
	problems []error
}

// parsed reads a variable with a function that parses its value.
func parsed[T any](r *reader, name, byDefault, accepted string, parse func(string) (T, error)) T {
	s := r.text(name, byDefault)
	v, err := parse(s)
	if err != nil {
		r.problem(name, s, accepted, err)
	}
	return v
}

func (r *reader) problem(name, value, accepted string, err error) {
	line := fmt.Sprintf("%s=%q is not valid: expected %s", name, value, accepted)
	if err != nil {
		line += fmt.Sprintf(" (%v)", err)
	}
	r.problems = append(r.problems, errors.New(line))
}

func (r *reader) text(name, byDefault string) string {
	if s := strings.TrimSpace(r.getenv(name)); s != "" {
		return s
	}
	return byDefault
}

// token reads a bot token. It never shows the value, which may be a real token with a
// typo.
func (r *reader) token(name string, need bool) secret.Value {
	s := strings.TrimSpace(strings.TrimPrefix(r.text(name, "")+" ", "Bot ")) // text has trimmed a lone "Bot " to "Bot"
	switch {
	case s == "" && need:
		r.problems = append(r.problems, fmt.Errorf(
			"%s is not set: give the bot token from the developer portal (Bot, Reset Token), or try `demo`, which needs none", name))
	case strings.ContainsAny(s, " \t\r\n\""):
		r.problem(name, "[redacted]", `a bot token, with or without the prefix "Bot "`, errors.New("this one contains spaces or quotes"))
	}
	return secret.New(s)
}

func (r *reader) databaseURL(name string) secret.Value {
	s := r.text(name, "")
	if s == "" {
		return secret.Value{}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql":
		r.problem(name, "[redacted]", "a URL such as postgres://user:password@host:5432/database", errEncode)
	case strings.Count(s, "@") > 1 || strings.Contains(s, "@") && u.User == nil:
		// Parsers take parts of such a password for a host, a port or the name of the
		// database, which errors and logs show, and don't agree which.
		r.problem(name, "[redacted]", "a URL such as postgres://user:password@host:5432/database", errEncode)
	}
	return secret.New(s)
}

var errEncode = errors.New("in the user and the password, percent-encode @ : / ? # [ ] and %, as %40 %3A %2F %3F %23 %5B %5D and %25")

// minAPIKey is the length of the shortest API key that a person may give.
const minAPIKey = 16

// apiKey reads the key of the API; "" if one is to be generated. It never shows the value.
func (r *reader) apiKey(name string) secret.Value {
	s := r.text(name, "")
	if s != "" && len(s) < minAPIKey {
		r.problem(name, "[redacted]", fmt.Sprintf("at least %d characters, such as those of `openssl rand -hex 16`", minAPIKey), fmt.Errorf("it has %d", len(s)))
	}
	return secret.New(s)
}

func (r *reader) httpURL(name, byDefault string) string {
	s := strings.TrimSuffix(r.text(name, byDefault), "/")
	if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		r.problem(name, s, "a URL such as "+byDefault, nil)
	}
	return s
}

func (r *reader) addr(name, byDefault string) string {
	s := r.text(name, byDefault)
	if _, err := hostOf(s); err != nil {
		r.problem(name, s, "host:port such as "+byDefault+" or :8080", nil)
	}
	return s
}

// hostOf returns the host of an address, whose port must be a number.
func hostOf(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	return host, err
}

// loopback reads an address that can't be reached from other machines; "" if it
// is not set.
func (r *reader) loopback(name string) string {
	s := r.text(name, "")
	if s == "" {
		return ""
	}
	host, err := hostOf(s)
	if ip, _ := netip.ParseAddr(host); err != nil || host != "localhost" && !ip.IsLoopback() {
		r.problem(name, s, "a loopback address such as 127.0.0.1:6060, [::1]:6060 or localhost:6060", nil)
	}
	return s
}

func (r *reader) prefixes(name string) []netip.Prefix {
	var out []netip.Prefix
	for part := range strings.SplitSeq(r.text(name, ""), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			r.problem(name, part, "address ranges joined with commas such as 127.0.0.0/8,::1/128", nil)
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

// keys reads encryption keys. It never shows the value.
func (r *reader) keys(name string) secret.Keys {
	k, err := secret.ParseKeys(r.getenv(name))
	if err != nil {
		r.problem(name, "[redacted]", "32 bytes in base64 or hex (openssl rand -base64 32), or several of these joined with commas", err)
	}
	return k
}

// proxy reads the conventional variables, in upper or lower case. It never shows
// the proxy's URL, which may contain a password.
func (r *reader) proxy() func(*url.URL) (*url.URL, error) {
	const name = "HTTPS_PROXY"
	s := r.text(name, r.text("https_proxy", ""))
	if s == "" {
		return nil
	}
	if !strings.Contains(s, "://") { // by convention, a host and port suffice
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		r.problem(name, "[redacted]", "the URL of an http, https or socks5 proxy such as http://proxy.example:3128", nil)
		return nil
	}
	c := httpproxy.Config{HTTPSProxy: u.String(), NoProxy: r.text("NO_PROXY", r.text("no_proxy", ""))}
	return c.ProxyFunc()
}

func (r *reader) duration(name string, byDefault, minimum, maximum time.Duration) time.Duration {
	s := r.text(name, "")
	if s == "" {
		return byDefault
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minimum || d > maximum {
		r.problem(name, s, fmt.Sprintf("a duration from %v to %v such as %v", minimum, maximum, byDefault), nil)
		return byDefault
	}
	return d
}

func (r *reader) oneOf(name, byDefault string, values ...string) string {
	s := strings.ToLower(r.text(name, byDefault))
	if slices.Contains(append(values, byDefault), s) {
		return s
	}
	r.problem(name, s, strings.Join(values, " or "), nil)
	return byDefault
}
