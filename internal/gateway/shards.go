package gateway

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gatehook/gatehook/internal/discord"
	"github.com/gatehook/gatehook/internal/event"
)

// Shards is the range of shards that a process keeps connected. The zero value
// means all of them, as many as Discord recommends.
type Shards event.ShardRange

// ParseShards reads "auto", a total ("16"), or a range of a total ("0-7/16").
func ParseShards(s string) (Shards, error) {
	s = strings.TrimSpace(s)
	if strings.EqualFold(s, "auto") {
		return Shards{}, nil
	}
	span, total, ranged := strings.Cut(s, "/")
	if !ranged {
		span, total = "", s
	}
	count, err := strconv.Atoi(strings.TrimSpace(total))
	if err != nil {
		return Shards{}, fmt.Errorf("%q is not a number of shards", total)
	}
	if count < 1 || count > discord.MaxShards {
		return Shards{}, fmt.Errorf("%d shards: the total must be from 1 to %d", count, discord.MaxShards)
	}
	shards := Shards{Last: count - 1, Count: count}
	if !ranged {
		return shards, nil
	}
	first, last, ok := strings.Cut(span, "-")
	if !ok {
		last = first
	}
	var err1, err2 error
	shards.First, err1 = strconv.Atoi(strings.TrimSpace(first))
	shards.Last, err2 = strconv.Atoi(strings.TrimSpace(last))
	switch {
	case errors.Join(err1, err2) != nil:
		return Shards{}, fmt.Errorf("%q is not a range of shard ids", span)
	case shards.First < 0 || shards.First > shards.Last:
		return Shards{}, fmt.Errorf("the range %s is empty", span)
	case shards.Last >= count:
		return Shards{}, fmt.Errorf("the last of %d shards is %d, not %d", count, count-1, shards.Last)
	}
	return shards, nil
}
