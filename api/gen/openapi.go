package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/gatehook/gatehook/api"
	"github.com/gatehook/gatehook/internal/event"
)

const snowflakePattern = "^[0-9]{1,20}$"

// writeOpenAPI replaces everything after the mark, and writes the document as
// JSON too.
func writeOpenAPI(models map[string]*model) error {
	doc, err := os.ReadFile(openapiDoc)
	if err != nil {
		return err
	}
	own, _, ok := bytes.Cut(doc, []byte(api.Mark))
	if !ok {
		return errors.New(openapiDoc + " lacks the line that marks the start of the generated part")
	}
	b := bytes.NewBuffer(slices.Clone(own))
	b.WriteString(api.Mark)
	for _, m := range sorted(models) {
		if bytes.Contains(own, []byte("\n    "+m.name+":\n")) {
			return fmt.Errorf("%s already defines %s: rename one of them", openapiDoc, m.name)
		}
		writeSchema(b, m, models)
	}
	b.WriteString(anyEvent)
	for _, t := range event.Types() {
		if t.Model == "" {
			continue
		}
		if err := writeWebhook(b, t); err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	if err := os.WriteFile(openapiDoc, b.Bytes(), 0o644); err != nil {
		return err
	}
	loaded, err := openapi3.NewLoader().LoadFromData(b.Bytes())
	if err != nil {
		return fmt.Errorf("read %s: %w", openapiDoc, err)
	}
	out, err := loaded.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode %s: %w", openapiDoc, err)
	}
	return os.WriteFile(openapiJSON, append(out, '\n'), 0o644)
}

func writeSchema(b *bytes.Buffer, m *model, models map[string]*model) {
	fmt.Fprintf(b, "    %s:\n", m.name)
	if m.by != "" {
		fmt.Fprintf(b, "      description: %s\n      oneOf:\n", quote(m.about))
		for _, v := range m.cases {
			fmt.Fprintf(b, "        - allOf:\n            - %s\n            - { type: object, properties: { %s: %s } }\n", ref(v.model), m.by, selector(m, v))
		}
		return
	}
	names := make([]string, len(m.fields))
	for i, f := range m.fields {
		names[i] = f.name
	}
	fmt.Fprintf(b, "      type: object\n      description: %s\n      required: [%s]\n      properties:\n", quote(m.about), strings.Join(names, ", "))
	for _, f := range m.fields {
		fmt.Fprintf(b, "        %s: %s\n", f.name, fieldSchema(f))
	}
}

// selector returns the schema of the union's selecting field for a variant.
func selector(m *model, v variant) string {
	if v.values != nil {
		return "{ enum: [" + strings.Join(v.values, ", ") + "] }"
	}
	var others []string
	for _, c := range m.cases {
		others = append(others, c.values...)
	}
	return "{ not: { enum: [" + strings.Join(others, ", ") + "] } }"
}

// fieldSchema returns a field's schema as one line of YAML.
func fieldSchema(f field) string {
	about := "description: " + quote(f.about)
	switch {
	case f.list:
		return fmt.Sprintf("{ type: %s, items: %s, %s }", orNull("array", f.null), valueSchema(f.of, false, ""), about)
	case f.object:
		return fmt.Sprintf("{ type: %s, additionalProperties: %s, %s }", orNull("object", f.null), valueSchema(f.of, false, ""), about)
	default:
		return valueSchema(f.of, f.null, about)
	}
}

func valueSchema(of string, null bool, about string) string {
	var s string
	switch of {
	case "id":
		s = fmt.Sprintf("type: %s, pattern: %q", orNull("string", null), snowflakePattern)
	case "str":
		s = "type: " + orNull("string", null)
	case "time":
		s = "type: " + orNull("string", null) + ", format: date-time"
	case "int":
		s = "type: " + orNull("integer", null)
	case "num":
		s = "type: " + orNull("number", null)
	case "bool", "flag":
		s = "type: " + orNull("boolean", null)
	case "any":
	default:
		if null {
			s = "oneOf: [" + ref(of) + `, { type: "null" }]`
		} else if about != "" {
			s = "allOf: [" + ref(of) + "]"
		} else {
			return ref(of)
		}
	}
	switch {
	case s == "":
		return "{ " + about + " }"
	case about == "":
		return "{ " + s + " }"
	default:
		return "{ " + s + ", " + about + " }"
	}
}

func orNull(name string, null bool) string {
	if null {
		return "[" + name + `, "null"]`
	}
	return name
}

func ref(name string) string { return fmt.Sprintf(`{ $ref: "#/components/schemas/%s" }`, name) }

// quote returns a string literal that is valid in both YAML and JSON.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return `""` // no string fails
	}
	return strings.TrimSpace(b.String())
}

const anyEvent = `webhooks:
  event:
    post:
      summary: A delivery in the format ` + "`standard`" + `, of any event
      description: |
        Sent to a listener's URL, and signed as Standard Webhooks prescribes
        (` + "`webhook-id`, `webhook-timestamp`, `webhook-signature`" + `). Any 2xx
        response accepts it. For a RAW_ event, ` + "`data`" + ` is the payload byte for
        byte as Discord sent it. For any other event, ` + "`data`" + ` is a model; the
        webhooks below define the model of each event.
      operationId: receiveEvent
      security: []
      requestBody:
        required: true
        content:
          application/json:
            schema: { $ref: "#/components/schemas/Delivery" }
      responses:
        "204": { description: Accepted. }
`

func writeWebhook(b *bytes.Buffer, t event.Type) error {
	fmt.Fprintf(b, `  %[1]s:
    post:
      summary: %[2]s
      operationId: receive%[3]s
      tags: [events]
      security: []
      requestBody:
        required: true
        content:
          application/json:
            schema:
              allOf:
                - { $ref: "#/components/schemas/Delivery" }
                - type: object
                  required: [%[6]s]
                  properties: { type: { type: string, enum: [%[1]s] }, data: %[4]s%[5]s }
`, t.Name, quote(t.About), camel(t.Name), ref(t.Model), originSchema(t.Name), strings.Join(required(t.Name), ", "))
	if sample, ok := event.Sample(t.Name); ok {
		example, err := exampleOf(t, sample)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "            example: %s\n", example)
	}
	b.WriteString("      responses: { \"204\": { description: Accepted. } }\n")
	return nil
}

// camel converts GUILD_BAN_ADD to GuildBanAdd.
func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}

// origins returns the possible origins of an event; nil for an event without one.
func origins(name string) []string {
	switch name {
	case "GUILD_CREATE":
		return []string{string(event.OriginStartup), string(event.OriginAvailable), string(event.OriginJoin), string(event.OriginOutage)}
	case "GUILD_DELETE":
		return []string{string(event.OriginOutage), string(event.OriginRemoved)}
	default:
		return nil
	}
}

func required(name string) []string {
	if origins(name) == nil {
		return []string{"type", "data"}
	}
	return []string{"type", "origin", "data"}
}

func originSchema(name string) string {
	values := origins(name)
	if values == nil {
		return ""
	}
	about := "Why the event was sent: the session began (startup), the bot was in the guild before (available), the bot was added (join), or the guild is unavailable (outage)."
	if name == "GUILD_DELETE" {
		about = "Why the event was sent: an outage began (outage), or the bot is no longer in the guild (removed)."
	}
	return fmt.Sprintf(", origin: { type: string, enum: [%s], description: %s }", strings.Join(values, ", "), quote(about))
}
