// Gen writes the files that are generated from api/models.txt and the catalog of
// events: the tables that event.Parse uses, the schemas and webhooks at the end of
// api/openapi.yaml, that document as JSON, and docs/events.md. Go generate runs it
// in api twice: first for the tables, then for the documents, because event.Parse
// makes their examples.
package main

import (
	"fmt"
	"os"
)

const (
	modelsPath  = "models.txt"
	openapiDoc  = "openapi.yaml"
	openapiJSON = "openapi.json"
	eventsDoc   = "../docs/events.md"
	tablePath   = "../internal/event/model.gen.go"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: gen tables or gen documents")
	}
	text, err := os.ReadFile(modelsPath)
	if err != nil {
		return err
	}
	models, err := readModels(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", modelsPath, err)
	}
	switch args[0] {
	case "tables":
		return writeTables(models)
	case "documents":
		if err := writeOpenAPI(models); err != nil {
			return err
		}
		return writeEvents(models)
	default:
		return fmt.Errorf("%q is neither tables nor documents", args[0])
	}
}
