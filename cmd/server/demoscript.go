package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/gatehook/gatehook/internal/discord/discordtest"
)

// script holds the frames that the simulated Discord sends, over and over.
type script struct {
	frames []discordtest.Frame
	at     int
}

func (s *script) next() discordtest.Frame {
	f := s.frames[s.at%len(s.frames)]
	s.at++
	return f
}

// newScript reads the frames recorded in dir; if dir is empty, it makes some up.
func newScript(dir string) (*script, error) {
	if dir == "" {
		return madeUp()
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("--frames %s: the directory contains no *.json", dir)
	}
	s := &script{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--frames: %w", err)
		}
		f, err := discordtest.ParseFrame(b)
		if err != nil {
			return nil, fmt.Errorf("--frames: %s: %w", name, err)
		}
		s.frames = append(s.frames, f)
	}
	return s, nil
}

// madeUp returns minimal frames of events that bots commonly want.
func madeUp() (*script, error) {
	s := &script{}
	for _, f := range []string{
		`{"t":"MESSAGE_CREATE","s":1,"op":0,"d":{"id":"1300000000000000001","channel_id":"1300000000000000010","guild_id":"1300000000000000100","author":{"id":"1300000000000001000","username":"ada","discriminator":"0","avatar":null,"global_name":"Ada"},"content":"hello \u2764 <b>world</b>","timestamp":"2026-01-01T00:00:00.000000+00:00","edited_timestamp":null,"tts":false,"mention_everyone":false,"mentions":[],"mention_roles":[],"attachments":[],"embeds":[],"pinned":false,"type":0}}`,
		`{"t":"TYPING_START","s":1,"op":0,"d":{"user_id":"1300000000000001000","timestamp":1767225600,"guild_id":"1300000000000000100","channel_id":"1300000000000000010"}}`,
		`{"t":"MESSAGE_REACTION_ADD","s":1,"op":0,"d":{"user_id":"1300000000000001000","type":0,"message_id":"1300000000000000001","emoji":{"name":"🔥","id":null},"channel_id":"1300000000000000010","guild_id":"1300000000000000100","burst":false}}`,
		`{"t":"GUILD_MEMBER_ADD","s":1,"op":0,"d":{"guild_id":"1300000000000000100","user":{"id":"1300000000000001001","username":"bob","discriminator":"0","avatar":null},"roles":[],"joined_at":"2026-01-01T00:00:00.000000+00:00","deaf":false,"mute":false,"flags":0}}`,
		`{"t":"GUILD_BAN_ADD","s":1,"op":0,"d":{"guild_id":"1300000000000000100","user":{"id":"1300000000000001002","username":"mallory","discriminator":"0","avatar":null}}}`,
		`{"t":"MESSAGE_DELETE","s":1,"op":0,"d":{"id":"1300000000000000001","channel_id":"1300000000000000010","guild_id":"1300000000000000100"}}`,
	} {
		frame, err := discordtest.ParseFrame([]byte(f))
		if err != nil {
			return nil, fmt.Errorf("parse the demo's own frames: %w", err)
		}
		s.frames = append(s.frames, frame)
	}
	return s, nil
}
