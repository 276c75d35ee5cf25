package openapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gatehook/gatehook/internal/event"
	"github.com/gatehook/gatehook/internal/openapi"
)

// contract is the served document, as a user of the API reads it.
type contract struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
}

func newContract(t *testing.T) *contract {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openapi.Contract()))
	if err != nil {
		t.Fatal(err)
	}
	c := &contract{compiler: jsonschema.NewCompiler()}
	c.compiler.AssertFormat()
	if err := c.compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	c.doc, _ = doc.(map[string]any)
	return c
}

// at returns the value at a path of keys, or nil.
func (c *contract) at(path ...string) any {
	var v any = c.doc
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// body returns the schema of an event's delivery.
func (c *contract) body(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	s, err := c.compiler.Compile("openapi.json#/webhooks/" + name + "/post/requestBody/content/application~1json/schema")
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// resolve follows references until it reaches the schema of an object. value
// selects the variant of a union.
func (c *contract) resolve(schema map[string]any, value any) map[string]any {
	if ref, ok := schema["$ref"].(string); ok {
		name := ref[strings.LastIndexByte(ref, '/')+1:]
		next, _ := c.at("components", "schemas", name).(map[string]any)
		return c.resolve(next, value)
	}
	if all, ok := schema["allOf"].([]any); ok {
		first, _ := all[0].(map[string]any)
		return c.resolve(first, value)
	}
	one, ok := schema["oneOf"].([]any)
	if !ok {
		return schema
	}
	object, _ := value.(map[string]any)
	for _, v := range one {
		variant, _ := v.(map[string]any)
		if all, ok := variant["allOf"].([]any); ok && len(all) == 2 {
			narrow, _ := all[1].(map[string]any)
			properties, _ := narrow["properties"].(map[string]any)
			for field, s := range properties {
				one, _ := s.(map[string]any)
				if enum, ok := one["enum"].([]any); ok && !slices.ContainsFunc(enum, func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(object[field]) }) {
					variant = nil
				}
			}
		}
		if variant != nil {
			return c.resolve(variant, value)
		}
	}
	return nil
}

// walk calls visit for every object in a payload that has a schema.
func (c *contract) walk(schema map[string]any, value any, visit func(properties, object map[string]any)) {
	schema = c.resolve(schema, value)
	switch value := value.(type) {
	case []any:
		items, _ := schema["items"].(map[string]any)
		for _, v := range value {
			c.walk(items, v, visit)
		}
	case map[string]any:
		if each, ok := schema["additionalProperties"].(map[string]any); ok {
			for _, v := range value {
				c.walk(each, v, visit)
			}
			return
		}
		properties, _ := schema["properties"].(map[string]any)
		if properties == nil {
			return
		}
		for name, v := range value {
			if of, ok := properties[name].(map[string]any); ok {
				c.walk(of, v, visit)
			}
		}
		visit(properties, value)
	}
}

// optional reports whether Discord may leave out a field with this schema.
func optional(schema any) bool {
	s, _ := schema.(map[string]any)
	text := fmt.Sprint(s["type"])
	_, values := s["additionalProperties"]
	one, _ := s["oneOf"].([]any)
	// A schema that has only a description allows null.
	return strings.Contains(text, "null") || text == "array" || text == "boolean" || values || len(one) == 2 || len(s) == 1
}

func decode(t *testing.T, b []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestModels parses a complete, a minimal and an odd payload of every event, and checks
// the results against the served document with a validator of JSON Schema.
func TestModels(t *testing.T) {
	t.Parallel()
	c := newContract(t)
	for _, e := range event.Types() {
		sample, ok := event.Sample(e.Name)
		if !ok {
			continue
		}
		data, _ := c.at("components", "schemas", e.Model).(map[string]any)
		complete := decode(t, sample)

		minimal := decode(t, sample)
		c.walk(data, minimal, func(properties, object map[string]any) {
			maps.DeleteFunc(object, func(name string, _ any) bool { return properties[name] == nil || optional(properties[name]) })
		})

		odd, added := decode(t, sample), 0
		c.walk(data, odd, func(properties, object map[string]any) {
			object["invented"] = map[string]any{"of": []any{"tomorrow", json.Number("1e3"), nil}}
			added++
			for name, v := range object {
				schema, _ := properties[name].(map[string]any)
				if number, ok := v.(json.Number); ok && schema["type"] == "integer" && name != "type" {
					object[name] = "77" + number
				}
				if s, ok := v.(string); ok && schema["pattern"] != nil {
					object[name] = json.Number(s)
				}
			}
		})

		for kind, payload := range map[string]any{"complete": complete, "minimal": minimal, "odd": odd} {
			parsed, err := event.Parse(nil, e.Name, encode(t, payload))
			if err != nil {
				t.Errorf("%s, %s: %v", e.Name, kind, err)
				continue
			}
			c.judge(t, e.Name, kind, parsed)
			if got := strings.Count(string(parsed), `"invented"`); kind == "odd" && got != added {
				t.Errorf("%s: %d of %d unknown fields are left", e.Name, got, added)
			}
		}
	}
}

// judge checks a delivery with this data against its schema.
func (c *contract) judge(t *testing.T, name, kind string, data []byte) {
	t.Helper()
	origin := map[string]string{"GUILD_CREATE": `"origin":"join",`, "GUILD_DELETE": `"origin":"removed",`}[name]
	body := fmt.Appendf(nil, `{"type":%q,"timestamp":"2026-03-14T15:09:26.535Z","id":"6f1f8b0a-3c1d-8e2f-a1b2-c3d4e5f60718","shard":[0,1],"seq":42,%s"data":%s}`, name, origin, data)
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s, %s: %v", name, kind, err)
		return
	}
	if err := c.body(t, name).Validate(v); err != nil {
		t.Errorf("%s, %s: %v\n%s", name, kind, err, data)
	}
}

// TestModelsAreStrict checks that the validator refuses raw payloads, which lack
// fields of the model.
func TestModelsAreStrict(t *testing.T) {
	t.Parallel()
	c := newContract(t)
	for name, data := range map[string]string{
		"GUILD_BAN_ADD":         `{"guild_id":"1","user":{"id":"2","username":"a"}}`,
		"MESSAGE_DELETE":        `{"id":"1","channel_id":"2"}`,
		"TYPING_START":          `{"channel_id":1,"guild_id":null,"user_id":"2","timestamp":3,"member":null}`,
		"CHANNEL_CREATE":        `{"id":"1","type":0}`,
		"GUILD_CREATE":          `{"id":"1","unavailable":false}`,
		"GUILD_ROLE_DELETE":     `{"guild_id":"1","role_id":"x"}`,
		"MESSAGE_POLL_VOTE_ADD": `{"user_id":"1","channel_id":"1","message_id":"1","guild_id":null,"answer_id":"1"}`,
	} {
		body := fmt.Sprintf(`{"type":%q,"timestamp":"2026-03-14T15:09:26Z","id":"6f1f8b0a-3c1d-8e2f-a1b2-c3d4e5f60718","shard":[0,1],"seq":1,"data":%s}`, name, data)
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if c.body(t, name).Validate(v) == nil {
			t.Errorf("%s: %s was accepted as a model", name, data)
		}
	}
}

// TestDocumentsAgree checks that the catalog, the samples, the served document and
// docs/events.md list the same events and models.
func TestDocumentsAgree(t *testing.T) {
	t.Parallel()
	c := newContract(t)
	table, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir("../event/samples")
	if err != nil {
		t.Fatal(err)
	}
	var webhooks, rows, samples, models, dispatched, all []string
	for name := range c.at("webhooks").(map[string]any) { //nolint:forcetypeassert // a panic fails the test
		if name != "event" {
			webhooks = append(webhooks, name)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllSubmatch(table, -1) {
		rows = append(rows, string(row[1]))
	}
	for _, f := range files {
		samples = append(samples, strings.TrimSuffix(f.Name(), ".json"))
	}
	for _, e := range event.Types() {
		all = append(all, e.Name)
		if e.Group == event.GroupDispatch {
			dispatched = append(dispatched, e.Name)
		}
		if e.Model == "" {
			continue
		}
		models = append(models, e.Name)
		if c.at("components", "schemas", e.Model) == nil {
			t.Errorf("%s: there is no schema %s", e.Name, e.Model)
		}
		c.walk(c.at("components", "schemas", e.Model).(map[string]any), c.at("webhooks", e.Name, "post", "requestBody", "content", //nolint:forcetypeassert // a panic fails the test
			"application/json", "example", "data"), func(properties, object map[string]any) {
			for name := range object {
				if properties[name] == nil && name != "_trace" {
					t.Errorf("%s: the example has a field %s that the document does not describe", e.Name, name)
				}
			}
		})
		if row := regexp.MustCompile("(?m)^\\| `" + e.Name + "` .*$").Find(table); !strings.Contains(string(row), "`"+e.Model+"`") {
			t.Errorf("docs/events.md: %s does not name %s: %s", e.Name, e.Model, row)
		}
		example := c.at("webhooks", e.Name, "post", "requestBody", "content", "application/json", "example", "data")
		if sample, ok := event.Sample(e.Name); ok {
			parsed, err := event.Parse(nil, e.Name, sample)
			var want, got any
			err = errors.Join(err, json.Unmarshal(parsed, &want), json.Unmarshal(encode(t, example), &got))
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%s: %v; the example is not the parsed sample (-sample +example):\n%s", e.Name, err, diff)
			}
		}
	}
	slices.Sort(rows)
	slices.Sort(webhooks)
	for what, got := range map[string][2][]string{
		"webhooks": {webhooks, models}, "rows of docs/events.md": {rows, all}, "samples": {samples, dispatched},
	} {
		if !slices.Equal(got[0], got[1]) {
			t.Errorf("%s: %v, want %v", what, got[0], got[1])
		}
	}
}
