package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
	"github.com/gatehook/gatehook/internal/secret"
)

const (
	serverPackage = "github.com/gatehook/gatehook/cmd/server"
	benchKey      = "gk_key-of-the-benchmark"
	startTimeout  = 90 * time.Second
	stopTimeout   = 60 * time.Second
)

// buildServer builds the server of the module that this program belongs to.
func buildServer(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "gatehook")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, serverPackage).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the server: %w: %s", err, out)
	}
	return path, nil
}

// server is the real server as a child process.
type server struct {
	cmd  *exec.Cmd
	url  string
	done chan struct{} // closed when it has ended, after err is set
	err  error

	mu   sync.Mutex // guards last
	last []string   // its last lines of output, for error messages
}

// startServer starts the server, with default settings where possible, and
// returns when its API answers. settings are variables of the environment.
func startServer(ctx context.Context, path, dataDir string, db secret.Value, discord *discordtest.Server, settings ...string) (*server, error) {
	s := &server{cmd: exec.CommandContext(ctx, path), done: make(chan struct{})}
	s.cmd.Dir = os.TempDir()
	s.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir(),
		"DATABASE_URL=" + db.Reveal(), "DISCORD_TOKEN=" + discord.Token(), "DISCORD_API_URL=" + discord.APIURL(),
		"GATEHOOK_DATA_DIR=" + dataDir, "GATEHOOK_ADDR=127.0.0.1:0", "GATEHOOK_API_KEY=" + benchKey,
		"GATEHOOK_ALLOW_TARGETS=127.0.0.0/8", "GATEHOOK_LOG_FORMAT=json",
	}, settings...)
	stderr, err := s.cmd.StderrPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(s.done)
		s.read(stderr, ready)
		s.err = s.cmd.Wait()
	}()
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case s.url = <-ready:
		return s, nil
	case <-s.done:
		return nil, fmt.Errorf("the server ended during its start: %w\n%s", s.err, s.output())
	case <-timeout.C:
		return nil, errors.Join(fmt.Errorf("the server did not start within %v\n%s", startTimeout, s.output()), s.stop())
	}
}

func (s *server) read(stderr io.Reader, ready chan<- string) {
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		s.last = append(s.last[max(0, len(s.last)-29):], lines.Text())
		s.mu.Unlock()
		var line struct{ Msg, URL string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "the API answers" {
			ready <- line.URL
		}
	}
}

func (s *server) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.last, "\n")
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// stop makes the server drain and waits until it has ended.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the server: %w", err)
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.done:
	case <-timeout.C:
		return errors.Join(fmt.Errorf("the server did not end within %v\n%s", stopTimeout, s.output()), s.cmd.Process.Kill())
	}
	if s.err != nil {
		return fmt.Errorf("the server ended with an error: %w\n%s", s.err, s.output())
	}
	return nil
}

// register creates a listener and returns its secret.
func (s *server) register(ctx context.Context, eventName, url string) (string, error) {
	body, err := json.Marshal(map[string]string{"event": eventName, "url": url})
	if err != nil {
		return "", fmt.Errorf("register a listener: %w", err)
	}
	answer, err := s.call(ctx, http.MethodPost, "/listeners", body, http.StatusCreated)
	if err != nil {
		return "", err
	}
	var created struct {
		Secret string `json:"secret"`
	}
	if err := json.Unmarshal(answer, &created); err != nil {
		return "", fmt.Errorf("register a listener: %w", err)
	}
	return created.Secret, nil
}

// call calls the API and returns the body of the answer, whose status must be
// want.
func (s *server) call(ctx context.Context, method, path string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Authorization", "Bearer "+benchKey)
	req.Header.Set("Content-Type", "application/json")
	// One connection per call, so that none outlives the server.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	return answer, nil
}
