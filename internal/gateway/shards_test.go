package gateway_test

import (
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/gateway"
)

func TestParseShards(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in      string
		want    gateway.Shards
		problem string
	}{
		{"auto", gateway.Shards{}, ""},
		{" AUTO ", gateway.Shards{}, ""},
		{"1", gateway.Shards{First: 0, Last: 0, Count: 1}, ""},
		{"16", gateway.Shards{First: 0, Last: 15, Count: 16}, ""},
		{"0-7/16", gateway.Shards{First: 0, Last: 7, Count: 16}, ""},
		{" 8 - 15 / 16 ", gateway.Shards{First: 8, Last: 15, Count: 16}, ""},
		{"3/16", gateway.Shards{First: 3, Last: 3, Count: 16}, ""},
		{"", gateway.Shards{}, "not a number"},
		{"0", gateway.Shards{}, "from 1"},
		{"-1", gateway.Shards{}, "from 1"},
		{"99999999", gateway.Shards{}, "from 1"},
		{"16x", gateway.Shards{}, "not a number"},
		{"0-16/16", gateway.Shards{}, "the last of 16 shards is 15, not 16"},
		{"7-0/16", gateway.Shards{}, "empty"},
		{"-1-3/16", gateway.Shards{}, "not a range"},
		{"a-b/16", gateway.Shards{}, "not a range"},
		{"/16", gateway.Shards{}, "not a range"},
		{"0-7/", gateway.Shards{}, "not a number"},
	}
	for _, tt := range tests {
		got, err := gateway.ParseShards(tt.in)
		if tt.problem == "" && err != nil || tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)) {
			t.Errorf("ParseShards(%q): error %v, want %q", tt.in, err, tt.problem)
		}
		if got != tt.want {
			t.Errorf("ParseShards(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}
