package discord_test

import (
	"strings"
	"testing"

	"github.com/gatehook/gatehook/internal/discord"
)

func TestCourse(t *testing.T) {
	t.Parallel()
	want := map[discord.Course][]discord.CloseCode{
		discord.CourseResume:   {0, 1000, 1001, 1005, 1006, 1011, 3000, 4000, 4002, 4008, 4900, 4998, 4999},
		discord.CourseIdentify: {4001, 4003, 4005, 4006, 4007, 4009},
		discord.CourseStop:     {4004, 4010, 4011, 4012, 4013, 4014},
	}
	for course, codes := range want {
		for _, code := range codes {
			if got := code.Course(); got != course {
				t.Errorf("%d: %v, want %v", code, got, course)
			}
			remedy := code.Remedy(1<<15 | 1<<9)
			if (remedy != "") != (course == discord.CourseStop) {
				t.Errorf("%d: remedy %q", code, remedy)
			}
		}
	}
}

func TestRemedyNamesIntents(t *testing.T) {
	t.Parallel()
	got := discord.CodeDisallowedIntents.Remedy(1<<1 | 1<<9 | 1<<15)
	for _, want := range []string{"GUILD_MEMBERS", "MESSAGE_CONTENT", "Bot, Privileged Gateway Intents"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not name %q", got, want)
		}
	}
	if strings.Contains(got, "PRESENCES") || strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
}
