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
	"sync"
	"sync/atomic"
	"time"
)

// bareCommand is the argument that makes this program the bare loop. The loop has its
// own process, so that its processor time is not mixed with the receiver's.
const bareCommand = "bare"

// post is a copy of a delivery, for the bare loop to send.
type post struct {
	URL     string      `json:"url"`
	Header  http.Header `json:"header"`
	Body    []byte      `json:"body"`
	Workers int         `json:"workers"`
}

// posted is the result of one round of the bare loop.
type posted struct {
	Posts int64         `json:"posts"`
	Took  time.Duration `json:"took"`
}

// bareLoop reads a post and then durations. For each duration it sends the post
// repeatedly for that long and writes the result. It is the loop that one would write
// by hand: net/http's client with enough idle connections. It signs and stores nothing.
func bareLoop(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	in, out := json.NewDecoder(bufio.NewReader(stdin)), json.NewEncoder(stdout)
	var p post
	if err := in.Decode(&p); err != nil {
		return fmt.Errorf("read the request to POST: %w", err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: p.Workers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for {
		var d time.Duration
		err := in.Decode(&d)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the duration of a round: %w", err)
		}
		result, err := p.repeat(ctx, client, d)
		if err != nil {
			return err
		}
		if err := out.Encode(result); err != nil {
			return fmt.Errorf("write the result of a round: %w", err)
		}
	}
}

// repeat sends the post with all workers for a duration.
func (p *post) repeat(ctx context.Context, client *http.Client, d time.Duration) (posted, error) {
	var posts atomic.Int64
	errs := make([]error, p.Workers)
	began := time.Now()
	var workers sync.WaitGroup
	for i := range p.Workers {
		workers.Go(func() {
			for time.Since(began) < d && errs[i] == nil {
				if errs[i] = p.send(ctx, client); errs[i] == nil {
					posts.Add(1)
				}
			}
		})
	}
	workers.Wait()
	return posted{posts.Load(), time.Since(began)}, errors.Join(errs...)
}

func (p *post) send(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, bytes.NewReader(p.Body))
	if err != nil {
		return fmt.Errorf("create a bare POST: %w", err)
	}
	req.Header = p.Header
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("bare POST: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("bare POST: %s: %w", resp.Status, err)
	}
	return nil
}

// bare is the child process that runs the bare loop.
type bare struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startBare(ctx context.Context, p post, stderr io.Writer) (*bare, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start the bare loop: %w", err)
	}
	b := &bare{cmd: exec.CommandContext(ctx, self, bareCommand)}
	b.cmd.Stderr = stderr
	out, err := b.cmd.StdoutPipe()
	if err == nil {
		b.out = json.NewDecoder(out)
		b.in, err = b.cmd.StdinPipe()
	}
	if err == nil {
		err = b.cmd.Start()
	}
	if err == nil {
		err = json.NewEncoder(b.in).Encode(p)
	}
	if err != nil {
		return nil, fmt.Errorf("start the bare loop: %w", err)
	}
	return b, nil
}

func (b *bare) pid() int { return b.cmd.Process.Pid }

// round makes the loop POST for a duration.
func (b *bare) round(d time.Duration) (result posted, err error) {
	if err = json.NewEncoder(b.in).Encode(d); err == nil {
		err = b.out.Decode(&result)
	}
	if err != nil {
		return result, fmt.Errorf("run the bare loop: %w", err)
	}
	return result, nil
}

func (b *bare) close() error {
	err := b.in.Close()
	return errors.Join(err, b.cmd.Wait())
}
