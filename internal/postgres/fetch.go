package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/sethvargo/go-retry"

	"github.com/gatehook/gatehook/internal/filelock"
)

// fetchedMajor is the major version that is fetched for a new cluster, if none is
// installed.
const fetchedMajor = 17

// build is one build of PostgreSQL.
type build struct {
	version embeddedpostgres.PostgresVersion
	// sums are the SHA-256 of its archives by platform. What runs here does not depend on
	// what the host that serves them says.
	sums map[string]string
}

// builds are those that are fetched, by major version. An update of the library that
// brings newer ones needs their sums.
var builds = map[int]build{
	14: {embeddedpostgres.V14, map[string]string{
		"linux-amd64":        "e312ed49c5dd7de399019d96e68045660cb8ffd05c63464cc790fec8d1196ecf",
		"linux-amd64-alpine": "fda7c59332dd57cd1035c54c94fcb945d1fe5f6fc59ae77357393cabf9dfb690",
		"darwin-amd64":       "0c7119d45e4c64b97751a8a913f4be8d4395f5b319384d5577b77641f8d54e9c",
	}},
	15: {embeddedpostgres.V15, map[string]string{
		"linux-amd64":        "ea2ce47da4b49c18ba26356c6e1b7284a38670448cd82d6aa764761e9362c21c",
		"linux-amd64-alpine": "2e329116ba5120086d1da15c75cc37d8fa1cac162ad983dd9ccd17cc1d143177",
		"darwin-amd64":       "b598f5282af8b765ba7c2814c08d02bd36ce9d276a8c2c7276aa060307b09b3f",
	}},
	16: {embeddedpostgres.V16, map[string]string{
		"linux-amd64":        "53146949c7fb36014091ac8db42529ab9b923b4a06d0c0d9087694e9c296feef",
		"linux-arm64v8":      "c0dc09808068c99357cc9fbf9b4ecb6df1c0725f678cc2d6bfa68a48d6ef1062",
		"linux-amd64-alpine": "58c3ee961a6cbb7af8913cf2702f61269d7e49558e19de5d5d005ec5d20ee6df",
		"darwin-amd64":       "4bd733c160b0bdcc8fa4ba50ce1abebdbf3db3825dd2139f5504a24b7ed227f3",
		"darwin-arm64v8":     "090e91773217f8d3d222699a6da2bf5533ffab8c6b65b14df63cba3b1b63ea5a",
	}},
	17: {embeddedpostgres.V17, map[string]string{
		"linux-amd64":        "8f438e206259d3ec5be6fb8ee6180f5d46234156659ed1238f6ab4806cfccf0f",
		"linux-arm64v8":      "b931564ba20d4009d70c37ceb27109213f696cfd507c4ecb769c6d6762454a1c",
		"linux-amd64-alpine": "9bbbdc4a892b02911c3825ee6e29ffc2cc73df40acfcebf41a1ca3c5f804edb3",
		"darwin-amd64":       "9418e2e93bf4a767dcd56b417c0b823ab237f935ad2460df1ce43ed65ea017c3",
		"darwin-arm64v8":     "746918d0d88eb766e51b43d93ac0d4dbcd6730ff0ac61399a4fcfd626d6ea287",
	}},
	18: {embeddedpostgres.V18, map[string]string{
		"linux-amd64":        "e09b13df10e9df257275d498b19b8c214a3e86d7a5d8cd263b0860e308e8b0b6",
		"linux-arm64v8":      "f9695b61cff9e5c9b8e02a938158740a711c7a55304dd49ca634c8b947bf6b27",
		"linux-amd64-alpine": "5e47f96951026dc460b876fa62379f7c7666eb6293d076900e2c71703e5a1de6",
		"darwin-amd64":       "2c5f22fa675ee78264a2ea8c7543310c32590465a4f72fb4287ca65ec484f7dd",
		"darwin-arm64v8":     "61f9b7026404f15abd4ec7e5724f672795c08cecc58ece212f85da3bf4de2b91",
	}},
}

// platform names this machine as the archives do.
func platform() string {
	name := runtime.GOOS + "-" + runtime.GOARCH
	if runtime.GOARCH == "arm64" {
		name += "v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil && runtime.GOOS == "linux" {
		name += "-alpine"
	}
	return name
}

// fetchBinaries unpacks a build of PostgreSQL of a major version into a cache directory,
// and returns where. 0 stands for fetchedMajor. Nothing of an archive runs before its sum
// was checked.
func fetchBinaries(ctx context.Context, cache string, major int, log *slog.Logger) (binaries, error) {
	if major == 0 {
		major = fetchedMajor
	}
	b, name := builds[major], platform()
	sum := b.sums[name]
	if sum == "" {
		return binaries{}, fmt.Errorf("%w (none of version %d is known for %s)", errNoBinaries, major, name)
	}
	cache = filepath.Join(cache, "gatehook")
	dir := filepath.Join(cache, "postgres-"+string(b.version))
	if found, ok := inspect(ctx, filepath.Join(dir, "bin")); ok {
		return found, nil
	}
	log.LogAttrs(ctx, slog.LevelInfo, "no such PostgreSQL is installed, fetching one", slog.String("version", string(b.version)))
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // another user may have to read it
		return binaries{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	unlock, err := lockCache(ctx, cache)
	if err != nil {
		return binaries{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	defer unlock()
	if found, ok := inspect(ctx, filepath.Join(dir, "bin")); ok {
		return found, nil // another process has fetched it meanwhile
	}
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return binaries{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // a leftover in the cache
	// The library fetches an archive, unpacks it, makes a cluster and starts that. We want
	// the first two steps only, and look at the archive between them.
	start := func(binaries, runtime string) error {
		pg := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
			Version(b.version).Port(0).Logger(io.Discard).CachePath(cache).
			BinariesPath(binaries).RuntimePath(runtime).DataPath(filepath.Join(scratch, "data")))
		err := pg.Start()
		if err == nil {
			err = pg.Stop()
		}
		return err
	}
	defer http.DefaultClient.CloseIdleConnections() // the library leaves one
	// Nothing can be unpacked into a link to nowhere.
	nowhere := filepath.Join(scratch, "nowhere")
	if err := os.Symlink(filepath.Join(scratch, "none", "none"), nowhere); err != nil {
		return binaries{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	fetched := start(nowhere, filepath.Join(scratch, "run"))
	archive := filepath.Join(cache, fmt.Sprintf("embedded-postgres-binaries-%s-%s.txz", name, b.version))
	if err := checkSum(archive, sum); err != nil {
		return binaries{}, errors.Join(errNoBinaries, err, fetched)
	}
	// There can be no directory below a program, once that is unpacked.
	unpacked := filepath.Join(scratch, "unpacked")
	ended := start(unpacked, filepath.Join(unpacked, "bin", "pg_ctl", "none"))
	if err := makeReadable(unpacked); err != nil {
		return binaries{}, errors.Join(errNoBinaries, err, ended)
	}
	renamed := os.Rename(unpacked, dir)
	found, ok := inspect(ctx, filepath.Join(dir, "bin"))
	if !ok {
		return binaries{}, errors.Join(errNoBinaries, renamed, ended)
	}
	return found, nil
}

// lockCache waits until no other process fetches into the cache.
func lockCache(ctx context.Context, cache string) (unlock func(), err error) {
	var lock *filelock.File
	err = retry.Do(ctx, retry.NewConstant(200*time.Millisecond), func(context.Context) error {
		if lock, err = filelock.Open(filepath.Join(cache, "fetch.lock")); errors.Is(err, filelock.ErrInUse) {
			return retry.RetryableError(err)
		}
		return err
	})
	return func() { _ = lock.Close() }, err
}

// checkSum fails if a file does not have this SHA-256, and then removes it.
func checkSum(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return errors.Join(fmt.Errorf("%s has the SHA-256 %s instead of %s: it is not used", path, got, want), os.Remove(path))
	}
	return nil
}
