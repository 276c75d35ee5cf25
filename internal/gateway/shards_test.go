package gateway

import (
	"strings"
	"testing"
)

func TestParseShards(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in      string
		want    Shards
		problem string
	}{
		{"auto", Shards{}, ""},
		{" AUTO ", Shards{}, ""},
		{"1", Shards{0, 0, 1}, ""},
		{"16", Shards{0, 15, 16}, ""},
		{"0-7/16", Shards{0, 7, 16}, ""},
		{" 8 - 15 / 16 ", Shards{8, 15, 16}, ""},
		{"3/16", Shards{3, 3, 16}, ""},
		{"", Shards{}, "not a number"},
		{"0", Shards{}, "from 1"},
		{"-1", Shards{}, "from 1"},
		{"99999999", Shards{}, "from 1"},
		{"16x", Shards{}, "not a number"},
		{"0-16/16", Shards{}, "the last of 16 shards is 15, not 16"},
		{"7-0/16", Shards{}, "empty"},
		{"-1-3/16", Shards{}, "not a range"},
		{"a-b/16", Shards{}, "not a range"},
		{"/16", Shards{}, "not a range"},
		{"0-7/", Shards{}, "not a number"},
	}
	for _, tt := range tests {
		got, err := ParseShards(tt.in)
		if tt.problem == "" && err != nil || tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)) {
			t.Errorf("ParseShards(%q): error %v, want %q", tt.in, err, tt.problem)
		}
		if got != tt.want {
			t.Errorf("ParseShards(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}
