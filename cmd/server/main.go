// Command server keeps a Discord bot's gateway shards connected and delivers
// every event to the callback URLs that are registered for it.
//
//	server          serves
//	server demo     the whole product on this machine, with a simulated Discord
//	server migrate  applies the migrations and exits
//	server version  prints the version
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
)

func main() {
	os.Exit(mainCode())
}

// ballast is the size in bytes of an allocation that is never touched. It takes no
// RAM, but the garbage collector counts it as heap, so a small heap may grow by this
// much more before it is collected. Otherwise a server with a small heap would spend
// a tenth of its time on collections. A higher GOGC would also let large heaps grow in
// proportion; a memory limit would not help small ones.
const ballast = 12 << 20

func mainCode() int {
	// When a callback sends bytes after its response, net/http quotes them in the
	// standard log. They may be an echoed payload with its tokens. Gatehook uses its
	// own logger, so nothing else is lost here.
	log.SetOutput(io.Discard)
	weight := make([]byte, ballast)
	defer runtime.KeepAlive(&weight)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal drains. Then the handler is gone, so a second one kills.
	context.AfterFunc(ctx, stop)
	switch err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		return 2
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

const usage = `usage: server [command]

  (none)    keep the shards connected and deliver; configured by the environment
  demo      the whole product on this machine, with a simulated Discord
  migrate   apply the database migrations and exit
  version   print the version
  help      print this text
`

var errUsage = errors.New("usage")

// run is the whole program, for main and for tests.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch {
	case command == "demo":
		return demo(ctx, args, getenv, stdout, stderr)
	case command == "" && len(args) == 0:
		return serve(ctx, getenv, stdout, stderr)
	case command == "migrate" && len(args) == 0:
		return migrate(ctx, getenv, stderr)
	case command == "version" || command == "--version":
		fmt.Fprintln(stdout, version())
		return nil
	case slices.Contains([]string{"help", "--help", "-help", "-h"}, command):
		fmt.Fprint(stdout, usage)
		return nil
	case command == "migrate":
		return misused(stderr, "migrate takes no arguments, but got %q", args)
	default:
		return misused(stderr, "there is no command %q", command)
	}
}

// misused prints what is wrong with the command line, and the usage.
func misused(stderr io.Writer, format string, args ...any) error {
	fmt.Fprintf(stderr, format+"\n"+usage, args...)
	return errUsage
}

// version returns the version of the build, or "dev".
func version() string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

// linked is set by the linker: -X main.linked=v1.2.3.
var linked string
