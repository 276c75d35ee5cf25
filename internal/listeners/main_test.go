package listeners

import (
	"testing"

	"github.com/gatehook/gatehook/internal/postgres/postgrestest"
)

func TestMain(m *testing.M) { postgrestest.Main(m) }
